"""Sizes and parts of SCLDM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ._options import changed_options, check_key_groups, check_options, with_key_groups

Size = Literal["default", "published"]


@dataclass(frozen=True)
class SCLDMArchitecture:
    """Sizes and parts of :class:`~scgen_diffusion.model.SCLDM`.

    Parameters
    ----------
    latent
        ``"variational"``: a Gaussian posterior, regularised towards a standard normal. ``"deterministic"``: one point,
        normalised to zero mean and unit variance (published).
    n_latent_tokens, n_latent
        Number of latent tokens, and their width.
    pooling
        How the encoder sums up a cell's genes: ``"attention"`` (published), ``"factors"`` or ``"both"``.
    decoder
        How a gene's parameters are read off the latent: ``"gene_queries"`` (published), ``"factors"`` or ``"both"``.
    likelihood
        ``"negative_binomial"`` for counts, or ``"gaussian"`` for log-normalised values.
    dispersion
        Negative binomial only. ``"gene"``: one dispersion per gene; ``"gene-cell"``: one per gene and cell.
    initial_log_theta, largest_log_theta
        Negative binomial only. Where the dispersions start, and where they end: beyond the default the distribution is
        Poisson's for all purposes, and likelihoods drown in rounding errors (published: no limit).
    outliers
        Negative binomial only. Whether a rare second component explains isolated large counts, which would otherwise
        widen every gene's distribution.
    width, n_layers, n_heads, n_heads_cross, feed_forward_width
        Transformer of the autoencoder: token width, self-attention blocks (in the encoder, and again in the decoder),
        their heads, heads of the cross-attention, inner width of the feed-forward halves (None: 8/3 of the width).
    pooling_width, decoder_width, n_factors
        Width of the factor pooling, of the factor decoder's network, and number of its loadings per gene.
    share_gene_embedding
        Whether attention pooling and gene queries share one embedding per gene.
    value_after_norm
        Whether a gene's value scales its normalised token (ours) or is normalised away with it (published).
    mask_padding
        Whether padding tokens are kept out of the attention; the published encoder does not.
    padded_length
        Number of gene tokens of every cell. None: as many as the longest cell of the batch needs. Matters only where
        padding is not masked: there the latent depends on it.
    prior_width, prior_n_layers, prior_n_heads, prior_feed_forward_width
        The diffusion transformer.
    condition_strategy
        What training shows of several keys: ``"joint"``, all or none; ``"mutually_exclusive"``, one or none; ``"additive"``,
        every subset, for guidance of each key apart (user guide, "Guidance").
    dropped_together
        With ``"additive"``: groups of keys that are given together or not at all, such as ``[("drug", "dose")]``. All other
        keys are dropped on their own.
    ema_decay
        Decay of the averaged weights of the prior, with which cells are generated.
    library_size
        Distribution that total counts are drawn from unless :meth:`generate` is told otherwise: ``"empirical"``,
        ``"normal"`` or ``"latent"``.
    """

    latent: Literal["variational", "deterministic"] = "variational"
    n_latent_tokens: int = 4
    n_latent: int = 8
    pooling: Literal["attention", "factors", "both"] = "both"
    decoder: Literal["gene_queries", "factors", "both"] = "factors"
    likelihood: Literal["negative_binomial", "gaussian"] = "negative_binomial"
    dispersion: Literal["gene", "gene-cell"] = "gene"
    initial_log_theta: float = 2.0
    largest_log_theta: float = 10.0
    outliers: bool = True
    width: int = 16
    n_layers: int = 1
    n_heads: int = 2
    n_heads_cross: int = 2
    feed_forward_width: int | None = None
    pooling_width: int = 256
    decoder_width: int = 128
    n_factors: int = 64
    share_gene_embedding: bool = True
    value_after_norm: bool = True
    mask_padding: bool = True
    padded_length: int | None = None
    prior_width: int = 64
    prior_n_layers: int = 4
    prior_n_heads: int = 4
    prior_feed_forward_width: int | None = None
    condition_strategy: Literal["joint", "mutually_exclusive", "additive"] = "joint"
    dropped_together: tuple[tuple[str, ...], ...] = ()
    ema_decay: float = 0.999
    library_size: Literal["empirical", "normal", "latent"] = "latent"

    def __post_init__(self) -> None:
        """Check every choice and size."""
        check_options(self, except_for=("dropped_together",))
        check_key_groups(self.dropped_together, self.condition_strategy)

    @property
    def uses_attention(self) -> bool:
        """Whether the encoder has the attention pooling."""
        return self.pooling in ("attention", "both")

    @property
    def uses_factor_pooling(self) -> bool:
        """Whether the encoder has the factor pooling."""
        return self.pooling in ("factors", "both")

    @property
    def uses_gene_queries(self) -> bool:
        """Whether the decoder has gene queries."""
        return self.decoder in ("gene_queries", "both")

    @property
    def uses_factor_decoder(self) -> bool:
        """Whether the decoder has gene factors."""
        return self.decoder in ("factors", "both")


PUBLISHED = SCLDMArchitecture(
    latent="deterministic",
    n_latent_tokens=16,
    n_latent=16,
    pooling="attention",
    decoder="gene_queries",
    initial_log_theta=1.0,
    largest_log_theta=80.0,
    outliers=False,
    width=32,
    n_layers=8,
    n_heads=8,
    n_heads_cross=4,
    value_after_norm=False,
    prior_width=256,
    prior_n_layers=8,
    prior_n_heads=8,
    ema_decay=0.9999,
    library_size="normal",
)

ARCHITECTURES: dict[str, SCLDMArchitecture] = {"default": SCLDMArchitecture(), "published": PUBLISHED}


def build_architecture(size: str, **changes: Any) -> SCLDMArchitecture:
    """Return the named architecture with the given changes.

    Raises
    ------
    ValueError
        If the name or a value is not allowed.
    TypeError
        If there is no such option.
    """
    return changed_options(ARCHITECTURES, size, with_key_groups(changes), owner="SCLDM")
