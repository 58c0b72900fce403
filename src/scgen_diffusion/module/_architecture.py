"""Sizes and parts of the models: plain values in frozen dataclasses, checked against their annotations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from scgen_diffusion._arguments import check_options, is_number

if TYPE_CHECKING:
    from collections.abc import Mapping

OptionsT = TypeVar("OptionsT")
MOST = {"ema_decay": 1, "initial_log_theta": 80, "largest_log_theta": 80}


def change_options(architectures: Mapping[str, OptionsT], size: str, changes: Mapping[str, Any]) -> OptionsT:
    """Return the named architecture with the given changes.

    Raises
    ------
    ValueError
        If the name or a value is not allowed.
    TypeError
        If there is no such option.
    """
    if size not in architectures:
        msg = f"`size` must be one of {list(architectures)}, but found {size!r}."
        raise ValueError(msg)
    return replace(architectures[size], **changes)  # type: ignore[type-var]


# --- SCLDM and MULTISCLDM ---------------------------------------------------------------------------------------------


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
        How the encoder pools a cell's genes: ``"attention"`` (published), ``"factors"`` or ``"both"``.
    decoder
        How the decoder computes a gene's parameters: ``"gene_queries"`` (published) or ``"factors"``.
    likelihood
        ``"negative_binomial"`` for counts, or ``"gaussian"`` for log-normalised values.
    dispersion
        Negative binomial only. ``"gene"``: one dispersion per gene; ``"gene-cell"``: one per gene and cell.
    initial_log_theta, largest_log_theta
        Negative binomial only. Start and limit of the log inverse dispersions. Beyond the default limit the
        distribution is practically Poisson, and likelihoods suffer from rounding errors (published: no limit).
    outliers
        Negative binomial only. Whether a rare second component explains isolated large counts, which would otherwise
        widen every gene's distribution.
    condition_effects
        Negative binomial only. Whether classes and sets change each gene's share and dispersion in generated cells,
        beyond what the latent says about them. Numbers never do, and :class:`~scgen_diffusion.model.MULTISCLDM` has no
        such effects.
    width, n_layers, n_heads, n_heads_cross, feed_forward_width
        Transformer of the autoencoder: token width, self-attention blocks (in encoder and decoder each), their heads,
        heads of the cross-attention, hidden width of the feed-forward layers (None: 8/3 of the width).
    pooling_width, decoder_width, n_factors
        Width of the factor pooling, width of the factor decoder's network, and number of its factors.
    share_gene_embedding
        Whether attention pooling and gene queries share one embedding per gene.
    value_after_norm
        Whether a gene's value scales its token after normalisation, or before it, where it has almost no effect
        (published).
    mask_padding
        Whether attention ignores padding tokens; the published encoder does not.
    padded_length
        Number of gene tokens of every cell. None: the length of the longest cell of the batch. It changes the latent
        only if padding is not masked.
    prior_width, prior_n_layers, prior_n_heads, prior_feed_forward_width
        Sizes of the diffusion transformer.
    condition_strategy
        Which keys training shows together: ``"joint"``, all or none; ``"mutually_exclusive"``, one or none;
        ``"additive"``, every subset, which allows guidance by single keys (user guide, "Guidance").
    ema_decay
        Decay of the averaged weights of the prior, which generate the cells.
    """

    latent: Literal["variational", "deterministic"] = "variational"
    n_latent_tokens: int = 4
    n_latent: int = 8
    pooling: Literal["attention", "factors", "both"] = "both"
    decoder: Literal["gene_queries", "factors"] = "factors"
    likelihood: Literal["negative_binomial", "gaussian"] = "negative_binomial"
    dispersion: Literal["gene", "gene-cell"] = "gene"
    initial_log_theta: float = 2.0
    largest_log_theta: float = 10.0
    outliers: bool = True
    condition_effects: bool = True
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
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        """Check all options."""
        check_options(self, from_zero=("n_layers", "prior_n_layers"), most=MOST)


SCLDM_ARCHITECTURES = {
    "default": SCLDMArchitecture(),
    "published": SCLDMArchitecture(
        latent="deterministic",
        n_latent_tokens=16,
        n_latent=16,
        pooling="attention",
        decoder="gene_queries",
        initial_log_theta=1.0,
        largest_log_theta=80.0,
        outliers=False,
        condition_effects=False,
        width=32,
        n_layers=8,
        n_heads=8,
        n_heads_cross=4,
        value_after_norm=False,
        prior_width=256,
        prior_n_layers=8,
        prior_n_heads=8,
        ema_decay=0.9999,
    ),
}


# --- models over all genes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneSpaceArchitecture:
    """Sizes and parts that models over all genes share.

    Parameters
    ----------
    backbone
        Network: ``"dit"``, a transformer over patches of genes; ``"white_box"``, the same with CRATE blocks.
    patch_size
        Number of neighbouring genes in a patch of the transformers. None: a tenth of the genes, at most 200.
    width
        Width of the network. None: 128 of the transformers, 256 of the residual network.
    n_layers, n_heads
        Its blocks, and heads of each.
    n_global_tokens
        Number of tokens in the transformers that read all genes at once, and write to all (published: none).
    condition_strategy
        Which keys training shows together: ``"joint"``, all or none; ``"mutually_exclusive"``, one or none;
        ``"additive"``, every subset, which allows guidance by single keys (user guide, "Guidance").
    ema_decay
        Decay of the averaged weights, which generate the cells; 0 keeps the last weights (published).
    """

    backbone: str = "dit"
    patch_size: int | None = None
    width: int | None = None
    n_layers: int = 3
    n_heads: int = 4
    n_global_tokens: int = 2
    condition_strategy: Literal["joint", "mutually_exclusive", "additive"] = "joint"
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        """Check all options."""
        check_options(self, from_zero=("n_global_tokens",), most=MOST, except_for=("zero_value",))


@dataclass(frozen=True)
class ProfileArchitecture(GeneSpaceArchitecture):
    """Sizes and parts of :class:`~scgen_diffusion.model.SCRDIT` and :class:`~scgen_diffusion.model.WBDIT`.

    Its other options are those of :class:`GeneSpaceArchitecture`.

    Parameters
    ----------
    backbone
        Network: ``"dit"``, a transformer over patches of genes (SCRDIT, published); ``"unet"``, a one-dimensional U-Net
        (SCRDIT, published); or ``"white_box"``, the transformer with CRATE blocks (WBDIT).
    target
        What the network predicts: ``"data"``, or ``"noise"`` (published).
    head
        ``"spike_and_slab"``: the network's outputs are the distribution of each gene's value, exactly zero or normal,
        which Bayes' rule combines with the gene's noisy value; needs ``target="data"``. ``"regression"``: they are the
        prediction (published).
    zero_value
        Negative value that replaces exact zeros (*zero negation*; published for scRDiT: -10). Generated values below 0
        then become zeros. None leaves zeros as they are, and generated values below half of the smallest training value
        become zeros.
    scaling
        Scaling of profiles: ``"gene"``, each gene to unit variance, or ``"none"`` (published).
    unet_width
        Channels of the U-Net's first level, a multiple of 4; the others have two, four and four times as many.
    """

    backbone: Literal["dit", "unet", "white_box"] = "dit"
    target: Literal["noise", "data"] = "data"
    head: Literal["regression", "spike_and_slab"] = "spike_and_slab"
    zero_value: float | None = None
    scaling: Literal["none", "gene"] = "gene"
    unet_width: int = 16

    def __post_init__(self) -> None:
        """Check all options."""
        super().__post_init__()
        zero = self.zero_value
        if zero is not None and not (is_number(zero) and -1000 <= zero < 0):
            msg = f"`zero_value` must be None or a number below 0 (and at least -1000), but found {zero!r}."
            raise ValueError(msg)
        if self.head == "spike_and_slab" and self.target != "data":
            msg = f"`head='spike_and_slab'` predicts the data and needs `target='data'`, but found {self.target!r}."
            raise ValueError(msg)


@dataclass(frozen=True)
class MoleculeArchitecture(GeneSpaceArchitecture):
    """Sizes and parts of :class:`~scgen_diffusion.model.SCMDM`.

    Its other options are those of :class:`GeneSpaceArchitecture`.

    Parameters
    ----------
    backbone
        Network: ``"mlp"``, a residual network that reads all genes at once; ``"dit"``, a transformer over patches of
        genes; or ``"white_box"``, the transformer with CRATE blocks.
    n_axes
        Number of axes along which the residual network sees genes. They start at principal axes, scaled to unit
        variance.
    """

    backbone: Literal["mlp", "dit", "white_box"] = "mlp"
    n_axes: int = 64


SCRDIT_ARCHITECTURES = {
    "default": ProfileArchitecture(),
    "published": ProfileArchitecture(
        target="noise",
        head="regression",
        zero_value=-10.0,
        scaling="none",
        patch_size=10,
        width=768,
        n_heads=8,
        n_global_tokens=0,
        unet_width=64,
        ema_decay=0.0,
    ),
}
WBDIT_ARCHITECTURES = {
    "default": replace(SCRDIT_ARCHITECTURES["default"], backbone="white_box"),
    "published": replace(SCRDIT_ARCHITECTURES["published"], backbone="white_box", zero_value=None),
}
SCMDM_ARCHITECTURES = {"default": MoleculeArchitecture()}
