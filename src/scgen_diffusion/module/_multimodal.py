"""SCLDM's module for cells with several modalities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from scgen_diffusion.nn import TARGET_SUM, log_profile, total_counts

from ._autoencoder import Decoder, Encoder, Posterior, build_likelihood, gene_loadings
from ._latent_diffusion import SCLDMModule
from ._library_size import MultimodalLibrarySize
from ._likelihoods import BernoulliLikelihood, MultimodalLikelihood, has_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi.module.base import LossOutput

    from scgen_diffusion.diffusion import Generators
    from scgen_diffusion.nn import ConditionEncoding

    from ._architecture import SCLDMArchitecture
    from ._likelihoods import Likelihood

LARGE_PANEL = 500
"""Number of features from which a modality is treated like genes.

In a smaller panel, such as one of proteins, every feature has many counts. Such a modality has no outlier component,
which would mistake the marker of a rare type for stray counts. Its dispersions depend on the cell, since background and
signal of a protein vary differently. Its loadings are not regularised. The encoder sees logarithms of its counts, since
beside a protein with thousands of counts, the root of another one's hundred would hardly be seen.
"""
COUNTS_PER_FEATURE = 5.0  # of a normalised profile: 1e4 for the usual 2,000 genes


class MultimodalEncoder(nn.Module):
    r"""Product of experts: one :class:`Encoder` per modality.

    Each encoder predicts a Gaussian of the latent. The posterior is the standard normal prior times the Gaussians of
    the cell's modalities, :math:`q(z) \propto p(z) \prod_m q_m(z)`. One modality is enough to place a cell, more
    modalities place it more precisely, and without any the prior remains.

    References
    ----------
    Wu & Goodman 2018, Multimodal generative models for scalable weakly-supervised learning. arXiv 1802.05335.
    """

    def __init__(self, n_features: Sequence[int], architecture: SCLDMArchitecture) -> None:
        super().__init__()
        self.n_features = list(n_features)
        self.latent_shape = (architecture.n_latent_tokens, architecture.n_latent)
        self.parts = nn.ModuleList(Encoder(n, architecture) for n in n_features)

    def forward(self, values: Tensor, profile: Tensor) -> Posterior:
        """Encode values and normalised profiles, both ``(cells, features of all)``."""
        precision = torch.ones(len(values), *self.latent_shape, device=values.device)  # of the prior
        weighted = torch.zeros_like(precision)
        blocks = zip(*(x.split(self.n_features, dim=1) for x in (values, profile)), strict=True)
        for part, (part_values, part_profile) in zip(self.parts, blocks, strict=True):
            opinion = part(part_values, part_profile)
            certainty = has_counts(part_values)[:, None, None] / opinion.std.square()
            precision, weighted = precision + certainty, weighted + certainty * opinion.mean
        return Posterior(weighted / precision, precision.rsqrt())


class MultimodalDecoder(nn.Module):
    """One :class:`Decoder` per modality."""

    def __init__(self, n_features: Sequence[int], n_outputs: Sequence[int], architecture: SCLDMArchitecture) -> None:
        super().__init__()
        sizes = zip(n_features, n_outputs, strict=True)
        self.parts = nn.ModuleList(Decoder(n, k, architecture) for n, k in sizes)

    def forward(self, z: Tensor) -> list[Tensor]:
        """Decode latents ``(cells, tokens, n_latent)`` into ``(cells, features, n_outputs)`` for each modality."""
        return [part(z) for part in self.parts]


class MultimodalModule(SCLDMModule):
    """Set autoencoder of cells with several modalities, and a flow-matching prior over their shared latents.

    Expression ``x`` holds the features of all modalities side by side, ``(cells, features of all)``. A cell without any
    count in a modality lacks it. Library sizes are ``(cells, modalities)``.

    Parameters
    ----------
    modalities
        Number of features and likelihood, ``"negative_binomial"`` or ``"bernoulli"``, of each modality.
    conditions
        Encoding of each condition key.
    architecture
        As in :class:`SCLDMModule`.

    Raises
    ------
    ValueError
        For an architecture without a posterior, or a Gaussian head.
    """

    likelihood: MultimodalLikelihood
    library_size: MultimodalLibrarySize

    def __init__(
        self,
        modalities: Sequence[tuple[int, str]],
        conditions: Sequence[ConditionEncoding] = (),
        *,
        architecture: SCLDMArchitecture | None = None,
    ) -> None:
        self.modalities = tuple(modalities)  # super().__init__ needs them to build the parts
        super().__init__(sum(n for n, _ in modalities), conditions, architecture=architecture)

    def _build_autoencoder(self, n_input: int, architecture: SCLDMArchitecture) -> None:
        for name, needed in {"likelihood": "negative_binomial", "latent": "variational"}.items():
            if (found := getattr(architecture, name)) != needed:
                msg = f"Models of MuData need `{name}={needed!r}`, but found {found!r}."
                raise ValueError(msg)
        self.n_features = [n for n, _ in self.modalities]
        likelihoods = [build_modality_likelihood(*modality, architecture) for modality in self.modalities]
        self.likelihood = MultimodalLikelihood(likelihoods, self.n_features)
        self.encoder = MultimodalEncoder(self.n_features, architecture)
        self.decoder = MultimodalDecoder(self.n_features, [part.n_outputs for part in likelihoods], architecture)

    def _build_library_size(self, conditions: Sequence[ConditionEncoding], n_latent: int) -> MultimodalLibrarySize:
        return MultimodalLibrarySize(len(self.modalities), conditions, n_latent)

    @property
    def parts(self) -> Sequence[tuple[Encoder, Decoder, Likelihood]]:
        """Encoder, decoder and likelihood of each modality."""
        return list(zip(self.encoder.parts, self.decoder.parts, self.likelihood.parts, strict=True))

    def has(self, x: Tensor) -> Tensor:
        """Return which modalities each cell has, ``(cells, modalities)``."""
        return torch.stack([has_counts(values) for values in self.split(x)], dim=1)

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: Mapping[str, Any],
        generative_outputs: Mapping[str, Any],
        kl_weight: float = 1.0,
        condition: Tensor | None = None,
    ) -> LossOutput:
        """Return the loss of :class:`SCLDMModule` over the modalities shown to the encoder.

        Hidden modalities do not count: otherwise their likelihoods would learn to be as vague as a prediction from the
        other modalities.
        """
        shown = self.spread(self.has(inference_outputs["seen"]).float())
        x = tensors[REGISTRY_KEYS.X_KEY] * shown
        tensors = {**tensors, REGISTRY_KEYS.X_KEY: x}
        return super().loss(tensors, inference_outputs, generative_outputs, kl_weight, condition)

    # --- what differs from one modality ------------------------------------------------------------------------------

    def are_empty(self, cells: Tensor) -> Tensor:
        """Mark the features of modalities in which a cell has no count, ``(cells, features of all)``."""
        return self.spread(torch.stack([(values == 0).all(1) for values in self.split(cells)], dim=1))

    def log_totals(self, x: Tensor) -> Tensor:
        """Return log totals, NaN where a cell lacks the modality, ``(cells, modalities)``."""
        return self.totals(x).log().masked_fill(~self.has(x), torch.nan)

    def decoding_totals(self, x: Tensor, z: Tensor, generators: Generators | None) -> Tensor:
        """Return the totals for decoding latents ``z`` of cells ``x``; totals of missing modalities are predicted.

        Parameters
        ----------
        x, z
            Cells and their latents.
        generators
            One random generator per cell to draw missing totals; without them, totals are medians.

        Returns
        -------
        Tensor
            ``(cells, modalities)``.

        Raises
        ------
        RuntimeError
            If a modality is missing and the network that predicts its total is not trained.
        """
        totals = self.log_totals(x).exp()
        level = torch.full_like(totals, 0.5) if generators is None else generators.uniform(*self.library_size.shape)
        if not totals.isnan().any():
            return totals
        if not self.library_size.is_fitted:
            msg = "Some cells lack a modality, and its library size cannot be predicted yet; call train_prior() first."
            raise RuntimeError(msg)
        return self.library_size.draw(self.null_condition.expand(len(z), -1), z, level, totals)

    def draw_keep(self, x: Tensor, at_least: float, generator: torch.Generator) -> Tensor:
        """Draw the share of counts that the encoder sees, ``(cells, features of all)``; zero for hidden modalities."""
        thinning = super().draw_keep(x, at_least, generator)
        kept = self.spread(draw_shown(self.has(x), generator).float())
        return kept if thinning is None else kept * thinning

    def pooled_profile(self, x: Tensor) -> Tensor:
        """Return the input of factor pooling, ``(cells, features of all)``."""
        return torch.cat([pooled_profile(values) for values in self.split(x)], dim=1)

    def expected_profiles(self, z: Tensor) -> Tensor:
        """Decode latents to log-normalised profiles of expected values at typical totals, modality by modality."""
        sizes = self.library_size.typical() if self.library_size.is_fitted else torch.ones(len(self.modalities))
        mean = self.likelihood.mean(**self.generative(z, sizes.to(z.device).expand(len(z), -1)))
        shares = [values / values.sum(1, keepdim=True) for values in self.split(mean)]
        return (torch.cat(shares, dim=1) * TARGET_SUM).log1p()

    def gene_loadings(self) -> list[Tensor]:
        """List the weight matrices with one row or column per feature, of modalities with many features."""
        large = [part for part, n in zip(self.parts, self.n_features, strict=True) if n >= LARGE_PANEL]
        return [loadings for encoder, decoder, _ in large for loadings in gene_loadings(encoder, decoder)]


def pooled_profile(values: Tensor) -> Tensor:
    """Return roots of a modality's normalised counts ``(cells, features)``, or their logarithms in a small panel."""
    n_features = values.shape[1]
    if n_features < LARGE_PANEL:
        return log_profile(values, "counts") / 3
    return (values * (min(TARGET_SUM, COUNTS_PER_FEATURE * n_features) / total_counts(values))).sqrt() / 3


def draw_shown(has: Tensor, generator: torch.Generator) -> Tensor:
    """Choose the modalities shown to the encoder from those that the cells have, both ``(cells, modalities)``.

    Half of the cells with several modalities show only a random choice of at least one, so that each encoder learns to
    place a cell without the others.
    """

    def draw(n: int) -> Tensor:
        return torch.rand(len(has), n, generator=generator, device=has.device)

    rank = draw(has.shape[1]).masked_fill(~has, 2).argsort(1).argsort(1)
    n_chosen = (1 + draw(1) * (has.sum(1, keepdim=True) - 1)).floor()
    return has & ((rank < n_chosen) | (draw(1) < 0.5))


def build_modality_likelihood(n_features: int, likelihood: str, architecture: SCLDMArchitecture) -> Likelihood:
    """Build the likelihood of one modality."""
    if likelihood == "bernoulli":
        return BernoulliLikelihood()
    if n_features < LARGE_PANEL:
        architecture = replace(architecture, outliers=False, dispersion="gene-cell")
    return build_likelihood(n_features, architecture)
