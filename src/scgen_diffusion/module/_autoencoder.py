"""SCLDM's autoencoder, assembled from its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from scgen_diffusion.nn import (
    LAYER_NORM_EPS,
    AttentionPooling,
    FactorPooling,
    GeneFactorDecoder,
    GeneQueryDecoder,
    expressed_genes,
)

from ._likelihoods import GaussianLikelihood, NegativeBinomialLikelihood

if TYPE_CHECKING:
    from ._architecture import SCLDMArchitecture
    from ._likelihoods import Likelihood


class Posterior(NamedTuple):
    """Gaussian posterior of latents: mean and standard deviation, both ``(cells, tokens, n_latent)``."""

    mean: Tensor
    std: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Shift and scale standard normal ``noise``."""
        return self.mean + self.std * noise

    def kl_divergence(self) -> Tensor:
        """Return the KL divergence from a standard normal, ``(cells,)``; zero for a deterministic latent."""
        variance = self.std.square()
        kl = (self.mean.square() + variance - 1 - variance.clamp(min=1e-12).log()) / 2
        return torch.where(variance > 0, kl, 0).flatten(1).sum(1)


class Encoder(nn.Module):
    """Maps a cell's expression to its :class:`Posterior`, by attention pooling, factor pooling, or the sum of both."""

    def __init__(self, n_genes: int, architecture: SCLDMArchitecture) -> None:
        super().__init__()
        a = architecture
        self.is_variational = a.latent == "variational"
        self.norm = nn.LayerNorm(a.n_latent, eps=LAYER_NORM_EPS, elementwise_affine=False)
        n_outputs = 2 * a.n_latent if self.is_variational else a.n_latent
        self.shape, self.padded_length = (a.n_latent_tokens, n_outputs), a.padded_length
        self.network = nn.ModuleDict()
        if a.pooling != "factors":
            how = {"value_after_norm": a.value_after_norm, "mask_padding": a.mask_padding}
            self.network["attention"] = AttentionPooling(n_genes, a.n_latent_tokens, **how, **_transformer_sizes(a))
        if a.pooling != "attention":
            self.network["factors"] = FactorPooling(n_genes, a.pooling_width)
        if a.pooling != "factors":
            self.network["read_attention"] = nn.Linear(a.width, n_outputs, bias=False)
        if a.pooling != "attention":
            self.network["read_factors"] = nn.Linear(a.pooling_width, a.n_latent_tokens * n_outputs)

    def forward(self, values: Tensor, profile: Tensor) -> Posterior:
        """Encode cells.

        Parameters
        ----------
        values
            Value of each gene for the attention, 0 if it is not expressed, ``(cells, genes)``.
        profile
            Normalised expression for the factors, ``(cells, genes)``.
        """
        encoded = self.encode(values, profile)
        if not self.is_variational:
            mean = self.norm(encoded)
            return Posterior(mean, torch.zeros_like(mean))
        mean, log_variance = encoded.chunk(2, dim=-1)
        return Posterior(mean, (log_variance.clamp(-12, 5) / 2).exp())

    def encode(self, values: Tensor, profile: Tensor) -> Tensor:
        """Return what the posterior follows from, ``(cells, tokens, numbers)``; arguments as in :meth:`forward`."""
        encoded = torch.zeros(len(values), *self.shape, device=values.device)
        if "attention" in self.network:
            encoded = encoded + self.network.read_attention(self._attend(values))
        if "factors" in self.network:
            pooled = self.network.factors(profile)
            encoded = encoded + self.network.read_factors(pooled).view(-1, *self.shape)
        return encoded

    def _attend(self, values: Tensor) -> Tensor:
        """Pool by attention: over the expressed genes on a CPU, over all genes, with fixed shapes, elsewhere."""
        pool = self.network.attention
        is_eager_on_cpu = values.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_eager_on_cpu or not pool.mask_padding:
            return pool(*expressed_genes(values, length=self.padded_length))
        return pool(torch.arange(1, values.shape[1] + 1, device=values.device).expand_as(values), values)


class Decoder(nn.Module):
    """Maps latents to ``n_outputs`` numbers per gene, which the likelihood needs, by gene queries or gene factors."""

    def __init__(self, n_genes: int, n_outputs: int, architecture: SCLDMArchitecture) -> None:
        super().__init__()
        a = architecture
        self.gene_queries: GeneQueryDecoder | None = None
        self.factors: GeneFactorDecoder | None = None
        if a.decoder == "gene_queries":
            self.gene_queries = GeneQueryDecoder(n_genes, a.n_latent, n_outputs=n_outputs, **_transformer_sizes(a))
        else:
            n_latent = a.n_latent_tokens * a.n_latent
            sizes = {"width": a.decoder_width, "n_factors": a.n_factors, "n_outputs": n_outputs}
            self.factors = GeneFactorDecoder(n_genes, n_latent, **sizes)

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents ``(cells, tokens, n_latent)`` into ``(cells, genes, n_outputs)``."""
        return self.factors(z) if self.gene_queries is None else self.gene_queries(z)


def build_likelihood(n_genes: int, architecture: SCLDMArchitecture) -> NegativeBinomialLikelihood | GaussianLikelihood:
    """Build the likelihood that the architecture names."""
    if architecture.likelihood == "gaussian":
        return GaussianLikelihood()
    return NegativeBinomialLikelihood(
        n_genes,
        per_cell=architecture.dispersion == "gene-cell",
        outliers=architecture.outliers,
        initial_log_theta=architecture.initial_log_theta,
        largest_log_theta=architecture.largest_log_theta,
    )


def gene_loadings(encoder: Encoder, decoder: Decoder) -> list[Tensor]:
    """List the weight matrices with one row or column per gene."""
    loadings = [encoder.network.factors.weight.weight] if "factors" in encoder.network else []
    return loadings if decoder.factors is None else [*loadings, decoder.factors.loadings.weight]


def start_at_mean(
    encoder: Encoder, decoder: Decoder, likelihood: Likelihood, mean: Tensor, pooled: Tensor, initial_log_theta: float
) -> None:
    """Initialise the decoder's outputs at mean values ``(genes,)``, and centre the factor pooling at a mean profile."""
    start, factors = likelihood.outputs_at(mean), decoder.factors
    if "factors" in encoder.network:
        encoder.network.factors.profile_mean.copy_(pooled)
    if (outliers := getattr(likelihood, "outliers", None)) is not None:
        outliers.log_share.copy_(start)
    if factors is not None:
        bias = factors.loadings.bias.view(len(start), -1)
        bias[:, 0] = start
        bias[:, 1:] = initial_log_theta
    else:
        decoder.gene_queries.readout.bias[1:] = initial_log_theta


def _transformer_sizes(a: SCLDMArchitecture) -> dict[str, Any]:
    """Return what attention pooling and gene queries have in common."""
    sizes = {name: getattr(a, name) for name in ("width", "n_layers", "n_heads", "n_heads_cross")}
    return {**sizes, "hidden": a.feed_forward_width}
