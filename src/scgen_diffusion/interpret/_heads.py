"""What the heads of a white-box network read, and how they change predicted cells."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scgen_diffusion._arguments import check_count
from scgen_diffusion.data import resolve_seed

from ._noised_cells import (
    ALL,
    DEFAULT_TIME,
    CellBatch,
    check_times,
    groups_of,
    noised_cells,
    opened,
    opened_network,
    path_time,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor, nn

    from scgen_diffusion.model import WBDIT
    from scgen_diffusion.module import ProfileModule
    from scgen_diffusion.nn import GeneDiT

SMALLEST_SHARE = 1e-6


def head_name(layer: int, head: int) -> str:
    """Name a head as interpretability papers do: ``L0H2`` is head 2 of layer 0."""
    return f"L{layer}H{head}"


def head_names(network: GeneDiT) -> list[str]:
    """Name all heads, layer by layer."""
    blocks = network.network.blocks
    return [head_name(layer, head) for layer, block in enumerate(blocks) for head in range(block.attention.n_heads)]


def head_loadings(
    model: WBDIT,
    adata: AnnData | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    time: float = DEFAULT_TIME,
    conditional: bool = True,
    n_probes: int = 1,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Measure how strongly each gene affects what each head reads.

    .. math:: \ell_{kg} = \sqrt{\operatorname{mean}_{\text{cells}}
        \lVert \partial (U_k^\top Z) / \partial x_{t,g} \rVert_F^2}

    over tokens ``Z`` that the attention sees, for the network's input :math:`x_t`, at the given cells and time: the
    global tokens, which read all genes, or those of patches if the network has none. Inputs are scaled to unit variance
    per gene, so genes can be compared.

    Parameters
    ----------
    model
        A trained :class:`~scgen_diffusion.model.WBDIT`.
    adata
        Cells. Default: those of the model.
    indices
        Rows to use. Default: all.
    time
        Timestep, from 0 (data) to 999 (noise). At the default, a gene's own value says little, so the network must
        infer it from other genes.
    conditional
        Whether to give the network each cell's conditions, or none; then given cells in memory need none. Of a cell
        without one of its labels, a network trained with ``condition_strategy="joint"`` gets none. With
        ``"mutually_exclusive"`` and several keys, it must be False: training never showed all of them.
    n_probes
        Number of random directions per cell that estimate the norm. The relative standard error of a loading is at most
        about ``(2 * cells * n_probes) ** -0.5``.
    seed
        Seed of each cell's noise and directions.

    Returns
    -------
    pandas.DataFrame
        Genes by heads; ``L0H2`` is head 2 of layer 0. They are similar in all heads; :func:`head_specificity` returns
        what is specific to a head.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If a time or the number of probes is not allowed.

    Notes
    -----
    A loading has no sign, because a head computes the same in every rotated basis of its subspace. It shows what a head
    can see, not what the model does with it (:func:`head_effects`). Global tokens start at principal axes, of which the
    genes of a strong programme share one. So each may load less than a gene that varies alone; compare with a
    model that was trained for one epoch.

    All patches share one embedding. So loadings of patches depend on a gene's position in its patch, whatever the gene.
    A network with shuffled weights (:func:`shuffle_weights`) shows what comes from the architecture alone.
    """
    network, source, rows = opened(model, adata, indices)
    (timestep,) = check_times(model.module.path, time, most=1)
    check_count("n_probes", n_probes)
    places = slice(network.n_patches if network.n_global_tokens else 0, None)
    total = np.zeros((len(head_names(network)), source.n_vars))
    for batch in noised_cells(model, source, rows, conditional=conditional, seed=seed):
        x_t, t, condition = batch.at(timestep)
        with torch.enable_grad():
            x_t = x_t.detach().clone().requires_grad_()
            layers = network.head_coordinates(x_t, t, condition)
            read = [head for layer in layers for head in layer[:, :, places].unbind(1)]  # (cells, tokens, p) each
        for _ in range(n_probes):
            # With random signs v, the mean of (J^T v)_g^2 is the squared norm of J's column g.
            signs = 1 - 2 * batch.generators.uniform(len(read), *read[0].shape[1:]).round()
            for head, (coordinates, sign) in enumerate(zip(read, signs.unbind(1), strict=True)):
                (gradient,) = torch.autograd.grad(coordinates, x_t, sign, retain_graph=True)
                total[head] += gradient.square().sum(0).cpu().double().numpy()
    loadings = np.sqrt(total.T / (len(rows) * n_probes))
    return pd.DataFrame(loadings, index=source.var_names, columns=head_names(network))


@torch.no_grad()
def head_effects(
    model: WBDIT,
    adata: AnnData | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    time: float = DEFAULT_TIME,
    groupby: str | None = None,
    conditional: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Measure what each head contributes to each gene of the predicted cells.

    .. math:: e_{kg} = \operatorname{mean}_{\text{cells}}
        \bigl(\hat x_g(x_t) - \hat x_g^{\setminus k}(x_t)\bigr)

    where :math:`\hat x` is the clean cell that the network predicts from a noised one, and :math:`\hat x^{\setminus k}`
    the same with the output of head ``k`` set to zero. :func:`head_loadings` shows what a head can see; this shows what
    the model does with it, with a sign.

    Parameters
    ----------
    model
        A trained :class:`~scgen_diffusion.model.WBDIT`.
    adata
        Cells. Default: those of the model.
    indices
        Rows to use. Default: all.
    time
        Timestep, see :func:`head_loadings`.
    groupby
        Column of ``obs`` whose groups are averaged separately. Effects of opposite signs cancel within a group.
    conditional
        Whether to give the network each cell's conditions, or none; then given cells in memory need none.
    seed
        Seed of the noise.

    Returns
    -------
    pandas.DataFrame
        One row per ``(group, gene)`` and one column per head, in units of log-normalised expression; positive if the
        head raises the gene. The last column, ``"all"``, is the effect of all heads together. Without ``groupby``,
        ``effects.loc["all"]`` is genes by heads.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    KeyError, TypeError
        If ``groupby`` is not one column of ``obs``.
    ValueError
        If a time is not allowed, or a cell has no label.

    Notes
    -----
    Effects are not additive: heads of later layers compensate for what is removed from earlier ones. Without a head,
    the network is in a state that never occurred in training.

    Much may pass beside the heads: tokens, also the global ones, which read and write all genes, go on past the
    attention. So an effect near zero does not mean that the network ignores a gene, not even one of all heads together.
    """
    network, source, rows = opened(model, adata, indices)
    module = model.module
    (timestep,) = check_times(module.path, time, most=1)
    groups = groups_of(source, rows, groupby).cat
    codes = torch.from_numpy(groups.codes.to_numpy(np.int64))
    changed = copy.deepcopy(module.averaged_network.module)
    attentions = [block.attention for block in changed.backbone.network.blocks]
    weights = [of.project_out.weight.data.unflatten(1, (of.n_heads, -1)).unbind(1) for of in attentions]
    heads = list(chain.from_iterable(weights))  # views
    columns = [*head_names(network), ALL]
    sums = torch.zeros(len(groups.categories), source.n_vars, len(columns), dtype=torch.float64)
    for batch in noised_cells(model, source, rows, conditional=conditional, seed=seed):
        whole = predicted_profiles(module, changed, batch, timestep)
        effects = []
        for removed in (*([head] for head in heads), heads):
            kept = [head.clone() for head in removed]
            for head in removed:
                head.zero_()
            effects.append(whole - predicted_profiles(module, changed, batch, timestep))
            for head, weight in zip(removed, kept, strict=True):
                head.copy_(weight)
        sums.index_add_(0, codes[batch.rows], torch.stack(effects, dim=-1).double().cpu())
    means = sums / codes[rows].bincount(minlength=len(sums))[:, None, None]  # NaN for groups without cells
    index = pd.MultiIndex.from_product([groups.categories, source.var_names], names=["group", "gene"])
    return pd.DataFrame(means.flatten(0, 1).numpy(), index=index, columns=columns).dropna()


def predicted_profiles(module: ProfileModule, network: nn.Module, batch: CellBatch, timestep: float) -> Tensor:
    """Return the clean profiles that a network predicts from noised cells, ``(cells, genes)``, before zeros are cut."""
    x_t, timesteps, condition = batch.at(timestep)
    t = torch.full_like(timesteps, path_time(module.path, timestep).item())
    data, _ = module.network.target.to_data_and_noise(module.path, network(x_t, timesteps, condition), x_t, t)
    return module.expected_profiles(data)


def head_specificity(loadings: pd.DataFrame) -> pd.DataFrame:
    r"""Return how much loadings exceed what their gene and their head lead to expect, as a log2 ratio.

    Within each layer, this is :math:`\log_2 \ell_{kg}` minus the mean of gene ``g`` over heads and the mean of head
    ``k`` over genes, plus the overall mean. Loadings below a millionth of the largest one are raised to it.

    Parameters
    ----------
    loadings
        Genes by heads, from :func:`head_loadings`.

    Returns
    -------
    pandas.DataFrame
        Genes by heads.
    """
    smallest = max(SMALLEST_SHARE * loadings.to_numpy().max(), np.finfo(float).tiny)
    logs = np.log2(loadings.clip(lower=smallest))
    layers = logs.T.groupby(lambda head: head.partition("H")[0], sort=False)
    centred = layers.transform(lambda of_heads: of_heads - of_heads.mean()).T
    return centred - centred.mean()


def shuffle_weights(model: WBDIT, seed: int | None = None) -> WBDIT:
    """Return a copy of the model with shuffled network weights, as a control for interpretations.

    The numbers of every parameter tensor are permuted. The copy keeps the architecture, the order of the genes and the
    sizes of the weights, but nothing that training arranged. What looks the same in the copy is not biology.

    Parameters
    ----------
    model
        A trained :class:`~scgen_diffusion.model.WBDIT`.
    seed
        Seed of the permutations.

    Returns
    -------
    WBDIT
        A model with the same cells.

    References
    ----------
    Adebayo et al. (2018), *Sanity checks for saliency maps*.
    """
    opened_network(model)
    control = copy.copy(model)
    control.module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(resolve_seed(seed))
    for parameter in opened_network(control).parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return control
