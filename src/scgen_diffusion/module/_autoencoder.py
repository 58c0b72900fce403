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
    SetEncoder,
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
    """Maps a cell's expression to its :class:`Posterior`.

    Parameters
    ----------
    n_genes
        Size of the panel.
    architecture
        Sizes and parts.
    """

    def __init__(self, n_genes: int, architecture: SCLDMArchitecture) -> None:
        super().__init__()
        a = architecture
        self.is_variational = a.latent == "variational"
        self.norm = nn.LayerNorm(a.n_latent, eps=LAYER_NORM_EPS, elementwise_affine=False)
        attention, factors = None, None
        if a.pooling != "factors":
            attention = AttentionPooling(
                n_genes,
                a.n_latent_tokens,
                value_after_norm=a.value_after_norm,
                mask_padding=a.mask_padding,
                **_transformer_sizes(a),
            )
        if a.pooling != "attention":
            factors = FactorPooling(n_genes, a.pooling_width)
        n_outputs = 2 * a.n_latent if self.is_variational else a.n_latent
        self.network = SetEncoder(
            a.n_latent_tokens, n_outputs, attention=attention, factors=factors, padded_length=a.padded_length
        )

    def forward(self, values: Tensor, profile: Tensor) -> Posterior:
        """Encode per-gene values and normalised profiles, both ``(cells, genes)``."""
        encoded = self.network(values, profile)
        if not self.is_variational:
            mean = self.norm(encoded)
            return Posterior(mean, torch.zeros_like(mean))
        mean, log_variance = encoded.chunk(2, dim=-1)
        return Posterior(mean, (log_variance.clamp(-12, 5) / 2).exp())


class Decoder(nn.Module):
    """Maps latents to the outputs that the likelihood needs, by gene queries or gene factors.

    Parameters
    ----------
    n_genes
        Size of the panel.
    n_outputs
        Numbers per gene.
    architecture
        Sizes and parts.
    """

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


def share_gene_embedding(encoder: Encoder, decoder: Decoder) -> None:
    """Share the gene embedding between attention pooling and gene queries, if both exist."""
    attention, queries = encoder.network.attention, decoder.gene_queries
    if attention is not None and queries is not None:
        queries.embed_gene = attention.embed_gene


def gene_loadings(encoder: Encoder, decoder: Decoder) -> list[Tensor]:
    """List the weight matrices with one row or column per gene."""
    pooling, factors = encoder.network.factors, decoder.factors
    loadings = [] if pooling is None else [pooling.weight.weight]
    return loadings if factors is None else [*loadings, factors.loadings.weight]


def initialise_decoder(
    start: Tensor,
    pooled_profile: Tensor,
    encoder: Encoder,
    decoder: Decoder,
    likelihood: Likelihood,
    initial_log_theta: float,
) -> None:
    """Initialise the decoder's outputs at ``start``, and centre the factor pooling at a mean profile ``(genes,)``."""
    pooling, factors = encoder.network.factors, decoder.factors
    if pooling is not None:
        pooling.profile_mean.copy_(pooled_profile)
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
    return {
        "width": a.width,
        "n_layers": a.n_layers,
        "n_heads": a.n_heads,
        "n_heads_cross": a.n_heads_cross,
        "hidden": a.feed_forward_width,
    }
