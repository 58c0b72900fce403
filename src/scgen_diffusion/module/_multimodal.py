"""SCLDM's module for cells with several modalities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from ._autoencoder import Decoder, Encoder, Posterior, build_likelihood, gene_loadings, share_gene_embedding, start_at
from ._expression import TARGET_SUM, total_counts
from ._modality_likelihoods import (
    BernoulliLikelihood,
    ModalityPanel,
    MultimodalLikelihood,
    PoissonLikelihood,
    has_counts,
)
from ._multimodal_library_size import MultimodalLibrarySize
from ._scldm import SCLDMModule, log_share

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from scvi.module.base import LossOutput

    from scgen_diffusion.diffusion import Generators
    from scgen_diffusion.nn import ConditionSpec

    from ._architecture import SCLDMArchitecture
    from ._library_size import LibrarySizeKind
    from ._likelihoods import Likelihood

LARGE_PANEL = 500
"""Features from which on a modality is treated as genes are.

In a smaller panel, such as one of proteins, every feature has many counts. There isolated counts have no component of their own, which would
take what a rare type has of its marker for stray counts; dispersions belong to the cell too, since background and signal of a protein
vary differently; and loadings are not held small.
"""
COUNTS_PER_FEATURE = 5.0  # of a normalised profile; so 1e4 for the customary 2 000 genes


class MultimodalEncoder(nn.Module):
    r"""One :class:`Encoder` per modality, and the product of what they say.

    Each encoder is an expert: a Gaussian opinion on the latent. The posterior is the standard normal prior times the
    opinions of the modalities that the cell has, :math:`q(z) \propto p(z) \prod_m q_m(z)`. So each modality alone places a
    cell, several place it more precisely, and none leaves the prior.

    Parameters
    ----------
    n_features
        Number of features of each modality.
    architecture
        Sizes and parts, the same for every encoder.

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
    """One :class:`Decoder` per modality.

    Parameters
    ----------
    n_features, n_outputs
        Number of features of each modality, and numbers per feature.
    architecture
        Sizes and parts, the same for every decoder.
    """

    def __init__(self, n_features: Sequence[int], n_outputs: Sequence[int], architecture: SCLDMArchitecture) -> None:
        super().__init__()
        sizes = zip(n_features, n_outputs, strict=True)
        self.parts = nn.ModuleList(Decoder(n, k, architecture) for n, k in sizes)

    def forward(self, z: Tensor) -> list[Tensor]:
        """Decode latents ``(cells, tokens, n_latent)`` into ``(cells, features, n_outputs)`` for each modality."""
        return [part(z) for part in self.parts]


class MultimodalModule(SCLDMModule):
    """Set autoencoder of cells with several modalities, and a flow-matching prior over their shared latents.

    Expression ``x`` holds the features of all modalities side by side, ``(cells, features of all)``. A cell lacks a modality
    in which it has no count. Library sizes are ``(cells, modalities)``.

    Parameters
    ----------
    modalities
        Features and likelihood of each modality.
    conditions
        What the condition keys are.
    architecture, key_groups
        As of :class:`SCLDMModule`.

    Raises
    ------
    ValueError
        For an architecture without a posterior, or a Gaussian head.
    """

    likelihood: MultimodalLikelihood
    library_size: MultimodalLibrarySize

    def __init__(
        self,
        modalities: Sequence[ModalityPanel],
        conditions: Sequence[ConditionSpec] = (),
        *,
        architecture: SCLDMArchitecture | None = None,
        key_groups: Sequence[Sequence[int]] = (),
    ) -> None:
        self.modalities = tuple(modalities)  # first, since building the parts needs them
        self.n_features = [modality.n_features for modality in self.modalities]
        super().__init__(sum(self.n_features), conditions, architecture=architecture, key_groups=key_groups)

    def _build_autoencoder(self, n_input: int, architecture: SCLDMArchitecture) -> None:
        _check(architecture)
        likelihoods = [build_modality_likelihood(modality, architecture) for modality in self.modalities]
        self.likelihood = MultimodalLikelihood(likelihoods, self.n_features)
        self.encoder = MultimodalEncoder(self.n_features, architecture)
        self.decoder = MultimodalDecoder(self.n_features, [part.n_outputs for part in likelihoods], architecture)
        if architecture.share_gene_embedding:
            for encoder, decoder in self._pairs():
                share_gene_embedding(encoder, decoder)

    def _build_library_size(self, conditions: Sequence[ConditionSpec], n_latent: int) -> MultimodalLibrarySize:
        return MultimodalLibrarySize(len(self.modalities), conditions, n_latent)

    def _pairs(self) -> Iterator[tuple[Encoder, Decoder]]:
        """Yield the encoder and the decoder of each modality."""
        return zip(self.encoder.parts, self.decoder.parts, strict=True)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split ``(cells, features of all)`` into one tensor per modality."""
        return x.split(self.n_features, dim=1)

    def spread(self, per_modality: Tensor) -> Tensor:
        """Repeat ``(cells, modalities)`` for the features of each modality, ``(cells, features of all)``."""
        return per_modality.repeat_interleave(torch.tensor(self.n_features, device=per_modality.device), dim=1)

    def has(self, x: Tensor) -> Tensor:
        """Tell which modalities each cell has, ``(cells, modalities)``."""
        return torch.stack([has_counts(values) for values in self.split(x)], dim=1)

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: Mapping[str, Any],
        generative_outputs: Mapping[str, Any],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Return the loss of :class:`SCLDMModule`, over the modalities that the encoder saw.

        A modality that it was not shown is not held against the latent, or its likelihood would learn to be as vague as what the
        others know of it.
        """
        shown = self.spread(self.has(inference_outputs["seen"]).float())
        x = tensors[REGISTRY_KEYS.X_KEY] * shown
        return super().loss({**tensors, REGISTRY_KEYS.X_KEY: x}, inference_outputs, generative_outputs, kl_weight)

    # --- where one modality differs from several --------------------------------------------------------------------

    def totals(self, x: Tensor) -> Tensor:
        """Return each cell's total counts in each modality, at least 1, ``(cells, modalities)``."""
        return torch.cat([total_counts(values) for values in self.split(x)], dim=1)

    def log_totals(self, x: Tensor) -> Tensor:
        """Return their logarithms, NaN where a cell lacks the modality, ``(cells, modalities)``."""
        return self.totals(x).log().masked_fill(~self.has(x), torch.nan)

    def predict_log_totals(self, z: Tensor, log_totals: Tensor) -> tuple[Tensor, Tensor]:
        """Read mean and standard deviation of log totals off latents, and off the totals of earlier modalities."""
        return self.library_size.predict(z, log_totals)

    def draw_totals(
        self, library_size: LibrarySizeKind | np.ndarray, condition: Tensor, features: Tensor, generators: Generators
    ) -> Tensor:
        """Draw total counts ``(cells, modalities)``; given ones stay, and where they are NaN they are drawn."""
        if isinstance(library_size, str):
            return super().draw_totals(library_size, condition, features, generators)
        drawn = super().draw_totals(self.architecture.library_size, condition, features, generators)
        given = torch.from_numpy(library_size).to(features.device)
        return torch.where(given.isnan(), drawn, given)

    def decoding_totals(self, x: Tensor, z: Tensor, generators: Generators | None) -> Tensor:
        """Return the totals to decode latents ``z`` of cells ``x`` with; those of lacking modalities are predicted.

        Parameters
        ----------
        x, z
            Cells and their latents.
        generators
            One per cell, to draw what is lacking; without them it is the median.

        Returns
        -------
        Tensor
            ``(cells, modalities)``.

        Raises
        ------
        RuntimeError
            If a modality is lacking, and what predicts its total is not trained.
        """
        noise = 0 if generators is None else generators.normal(len(self.modalities))
        log_totals = self.log_totals(x)
        if log_totals.isnan().any() and not self.library_size.is_fitted:
            msg = "Cells lack a modality, whose library size is predicted by what train_prior() trains; call it first."
            raise RuntimeError(msg)
        for number in range(len(self.modalities)):  # an earlier total is known, or predicted, when a later one is
            mean, std = self.predict_log_totals(z, log_totals)
            predicted = (mean + std * noise)[:, number].clamp(min=0)
            log_totals[:, number] = torch.where(log_totals[:, number].isnan(), predicted, log_totals[:, number])
        return log_totals.exp()

    def draw_keep(self, x: Tensor, at_least: float, generator: torch.Generator) -> Tensor:
        """Draw the share of each count that the encoder sees, ``(cells, features of all)``: none of some modalities."""
        thinning = super().draw_keep(x, at_least, generator)
        kept = self.spread(draw_shown(self.has(x), generator).float())
        return kept if thinning is None else kept * thinning

    def pooled_profile(self, x: Tensor) -> Tensor:
        """Return what the factor poolings sum up, the square root of normalised counts, ``(cells, features of all)``."""
        profiles = []
        for values in self.split(x):
            target_sum = min(TARGET_SUM, COUNTS_PER_FEATURE * values.shape[1])
            profiles.append((values * (target_sum / total_counts(values))).sqrt() / 3)
        return torch.cat(profiles, dim=1)

    def expected_profiles(self, z: Tensor) -> Tensor:
        """Decode latents to log-normalised profiles of expected values at typical library sizes, modality by modality."""
        sizes = self.library_size.typical() if self.library_size.is_fitted else torch.ones(len(self.modalities))
        mean = self.likelihood.mean(**self.generative(z, sizes.to(z.device).expand(len(z), -1)))
        shares = [values / values.sum(1, keepdim=True) for values in self.split(mean)]
        return (torch.cat(shares, dim=1) * TARGET_SUM).log1p()

    def gene_loadings(self) -> list[Tensor]:
        """List the weight matrices with one row or column per feature, of modalities with many features."""
        large = [pair for pair, n in zip(self._pairs(), self.n_features, strict=True) if n >= LARGE_PANEL]
        return [loadings for encoder, decoder in large for loadings in gene_loadings(encoder, decoder)]

    def n_cells_with(self, x: Tensor) -> Tensor:
        """Count the cells that have each feature's modality, ``(features of all,)``."""
        return self.spread(self.has(x).sum(0)[None])[0]

    @torch.no_grad()
    def start_from_means(self, target: Tensor, pooled_profile: Tensor) -> None:
        """Start each decoder at the mean cell, and centre the factor poolings there."""
        means = zip(target.split(self.n_features), pooled_profile.split(self.n_features), strict=True)
        parts = zip(self._pairs(), self.likelihood.parts, means, strict=True)
        for (encoder, decoder), likelihood, (mean, pooled) in parts:
            if isinstance(likelihood, BernoulliLikelihood):
                mean = -torch.log1p(-mean.clamp(max=0.999))  # the rate at which a Poisson count is so often above zero
            start_at(log_share(mean), pooled, encoder, decoder, likelihood, self.architecture.initial_log_theta)


def draw_shown(has: Tensor, generator: torch.Generator) -> Tensor:
    """Choose which modalities the encoder is shown, of those that the cells have, both ``(cells, modalities)``.

    Half of the cells that have several show a random choice of them only, at least one, so that each encoder learns to place a
    cell without the others.
    """

    def draw(n: int) -> Tensor:
        return torch.rand(len(has), n, generator=generator, device=has.device)

    rank = draw(has.shape[1]).masked_fill(~has, 2).argsort(1).argsort(1)
    n_chosen = (1 + draw(1) * (has.sum(1, keepdim=True) - 1)).floor()
    return has & ((rank < n_chosen) | (draw(1) < 0.5))


def build_modality_likelihood(modality: ModalityPanel, architecture: SCLDMArchitecture) -> Likelihood:
    """Build the likelihood of one modality."""
    others: dict[str, Any] = {"poisson": PoissonLikelihood, "bernoulli": BernoulliLikelihood}
    if modality.likelihood in others:
        return others[modality.likelihood]()
    if modality.n_features < LARGE_PANEL:
        architecture = replace(architecture, outliers=False, dispersion="gene-cell")
    return build_likelihood(modality.n_features, architecture)


def _check(architecture: SCLDMArchitecture) -> None:
    if architecture.likelihood != "negative_binomial":
        msg = (
            "Models of MuData need counts: leave `likelihood` out, and give `modalities` likelihoods in `setup_mudata`."
        )
        raise ValueError(msg)
    if architecture.latent != "variational":
        msg = "Models of MuData need `latent='variational'`: modalities are weighed by how certain they are of a cell."
        raise ValueError(msg)
