"""What is measured inside a white-box network, and how it is averaged over cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch

from scgen_diffusion.nn import coding_rate, sparsity, subspace_coding_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scgen_diffusion.diffusion import Generators
    from scgen_diffusion.nn import GeneDiT, HalfTrace, SparseCoding

ALL_HEADS = "all"

Tokens = Literal["patches", "global"]


class Label(NamedTuple):
    """What a number measures: a statistic of one layer, of all its heads together or of one."""

    layer: int
    statistic: str
    head: str = ALL_HEADS


def head_name(layer: int, head: int) -> str:
    """Name a head as interpretability papers do: ``L0H2`` is head 2 of layer 0."""
    return f"L{layer}H{head}"


def layer_of_head(name: str) -> int:
    """Return the layer of a head's name."""
    return int(name[1:].partition("H")[0])


def head_names(network: GeneDiT) -> list[str]:
    """Name all heads, layer by layer."""
    blocks = network.network.blocks
    return [head_name(layer, head) for layer, block in enumerate(blocks) for head in range(block.attention.n_heads)]


def token_names(network: GeneDiT) -> list[str]:
    """Name all tokens: the patches of genes, ``P0`` and so on, and then the global tokens, ``G0``, if there are any."""
    return [f"P{patch}" for patch in range(network.n_patches)] + [f"G{n}" for n in range(network.n_global_tokens)]


@torch.no_grad()
def cell_statistics(network: GeneDiT, x_t: Tensor, t: Tensor, condition: Tensor, eps: float) -> dict[Label, Tensor]:
    """Measure every layer on every cell.

    Parameters
    ----------
    network
        With white-box blocks.
    x_t, t, condition
        As the network takes them.
    eps
        Error allowed per token, for tokens of unit norm.

    Returns
    -------
    dict
        One number per cell, ``(cells,)``, for every label.
    """
    measured: dict[Label, Tensor] = {}
    dit = network.network
    context = dit.embed_context(t, condition)
    for layer, (block, trace) in enumerate(zip(dit.blocks, network.trace(x_t, t, condition), strict=True)):
        # What the same attention would see if it came once more: the same normalisation and modulation, so comparable.
        again = block.trace(trace.attention.tokens_out, context).attention.modulated
        for when, tokens in (("before", trace.attention.modulated), ("after", again)):
            scaled_eps = eps * tokens.shape[-1] ** 0.5  # LayerNorm gives a token the norm sqrt(width)
            within = subspace_coding_rate(tokens, block.attention.subspaces, scaled_eps)
            measured[Label(layer, f"coding_rate_{when}")] = coding_rate(tokens, scaled_eps)
            measured[Label(layer, f"subspace_coding_rate_{when}")] = within.sum(-1)
            for head, values in enumerate(within.unbind(-1)):
                measured[Label(layer, f"subspace_coding_rate_{when}", head_name(layer, head))] = values
        measured[Label(layer, "attention_step")] = relative_step(trace.attention)
        for name, values in sparse_code_statistics(block.feed_forward, trace.feed_forward).items():
            measured[Label(layer, name)] = values
    return measured


def sparse_code_statistics(operator: SparseCoding, half: HalfTrace) -> dict[str, Tensor]:
    """Measure the sparse half of a block, ``(cells,)`` each."""
    code = half.output
    return {
        "sparsity": sparsity(code),
        "l0_norm": (code != 0).float().sum(-1).mean(-1),
        "l1_norm": code.abs().sum(-1).mean(-1),
        "sparse_coding_loss_before": sparse_coding_loss(operator, half.modulated, half.modulated),
        "sparse_coding_loss_after": sparse_coding_loss(operator, half.modulated, code),
        "sparse_coding_step": relative_step(half),
    }


def sparse_coding_loss(operator: SparseCoding, tokens: Tensor, code: Tensor) -> Tensor:
    r"""Return :math:`\tfrac12 \lVert z - D a \rVert^2 + \lambda \lVert a \rVert_1`, the mean over a cell's tokens."""
    residual = tokens - torch.nn.functional.linear(code, operator.dictionary)
    return (residual.square().sum(-1) / 2 + operator.threshold * code.abs().sum(-1)).mean(-1)


def relative_step(half: HalfTrace) -> Tensor:
    """Return how far a half moves a cell's tokens, relative to their norm; not a number where that is zero."""
    moved = (half.tokens_out - half.tokens_in).flatten(1).norm(dim=1)
    return moved / half.tokens_in.flatten(1).norm(dim=1)


def token_slice(network: GeneDiT, tokens: Tokens | None) -> slice:
    """Return the places of the patches or of the global tokens; of the latter by default, if there are any.

    Raises
    ------
    ValueError
        For other names, and for global tokens where there are none.
    """
    if tokens is None:
        tokens = "global" if network.n_global_tokens else "patches"
    if tokens not in get_args(Tokens):
        msg = f"`tokens` must be 'patches' or 'global', but found {tokens!r}."
        raise ValueError(msg)
    if tokens == "global" and not network.n_global_tokens:
        msg = "The network has no global tokens; construct the model with `n_global_tokens`, or take tokens='patches'."
        raise ValueError(msg)
    return slice(network.n_patches) if tokens == "patches" else slice(network.n_patches, None)


def squared_loadings(
    network: GeneDiT, x_t: Tensor, t: Tensor, condition: Tensor, *, tokens: slice, generators: Generators
) -> Tensor:
    r"""Estimate each gene's squared derivatives, summed over what each head reads of some tokens and over cells.

    With random signs ``v``, :math:`\mathbb E_v (J^\top v)_g^2 = \lVert J_{\cdot g} \rVert^2`.

    Parameters
    ----------
    network
        With white-box blocks.
    x_t, t, condition
        As the network takes them.
    tokens
        Which tokens.
    generators
        Source of the signs.

    Returns
    -------
    Tensor
        ``(heads of all layers, genes)``.
    """
    with torch.enable_grad():
        x_t = x_t.detach().clone().requires_grad_()
        layers = network.head_coordinates(x_t, t, condition)
        heads = [head for layer in layers for head in layer[:, :, tokens].unbind(1)]  # (cells, tokens, p) each
    signs = 1 - 2 * generators.uniform(len(heads), *heads[0].shape[1:]).round()
    gradients = [
        torch.autograd.grad(head, x_t, sign, retain_graph=True)[0]
        for head, sign in zip(heads, signs.unbind(1), strict=True)
    ]
    return torch.stack([gradient.square().sum(0) for gradient in gradients])


@torch.no_grad()
def attention_maps(network: GeneDiT, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Return how much each patch attends to each other, ``(cells, heads of all layers, patches, patches)``."""
    traces = network.trace(x_t, t, condition)
    blocks = network.network.blocks
    maps = [b.attention.attention_weights(trace.attention.modulated) for b, trace in zip(blocks, traces, strict=True)]
    return torch.cat(maps, dim=1)


@dataclass
class GroupMoments:
    """Means and standard deviations over the cells of each group, summed up batch by batch.

    Parameters
    ----------
    n_groups
        Number of groups.
    """

    n_groups: int
    n: np.ndarray = field(init=False)
    labels: list[Label] = field(init=False, default_factory=list)
    sums: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.n = np.zeros(self.n_groups, dtype=int)

    def add(self, measured: dict[Label, Tensor], groups: np.ndarray) -> None:
        """Add cells with their group numbers ``(cells,)``."""
        if not self.labels:
            self.labels = list(measured)
            self.sums, self.squares = np.zeros((2, self.n_groups, len(measured)))
        values = torch.stack([column.cpu().double() for column in measured.values()], dim=1).numpy()
        np.add.at(self.n, groups, 1)
        np.add.at(self.sums, groups, values)
        np.add.at(self.squares, groups, values**2)

    def to_frame(self, names: Sequence[str], **constants: float) -> pd.DataFrame:
        """Return one row per group that has cells, and label; ``constants`` become columns."""
        parts = []
        for group in np.flatnonzero(self.n).tolist():
            mean = self.sums[group] / self.n[group]
            std = unbiased_std(self.n[group], mean, self.squares[group])
            part = pd.DataFrame(self.labels, columns=Label._fields).assign(value=mean, std=std, n_cells=self.n[group])
            parts.append(part.assign(group=names[group], **constants))
        columns = [*constants, "group", *Label._fields, "value", "std", "n_cells"]
        return pd.concat(parts, ignore_index=True)[columns]


def unbiased_std(n: np.ndarray, mean: np.ndarray, sum_of_squares: np.ndarray) -> np.ndarray:
    """Return the standard deviation of ``n`` numbers from their mean and sum of squares; not a number for fewer than two."""
    n = np.asarray(n, dtype=float)
    variance = np.clip(sum_of_squares - n * mean**2, 0, None) / np.where(n > 1, n - 1, np.nan)
    return np.sqrt(variance)
