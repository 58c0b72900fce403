"""What the heads of a white-box network do to the predicted cells."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pandas as pd
import torch

from scgen_diffusion.diffusion import Denoiser

from ._request import resolve_seed
from ._white_box_cells import DEFAULT_TIME, CellBatch, Groups, Moment, NoisedCellsMixin, resolve_times
from ._white_box_measures import head_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from torch import Tensor, nn

    from scgen_diffusion.nn import GeneDiT


class HeadEffectsMixin(NoisedCellsMixin):
    """Heads removed one by one."""

    @torch.no_grad()
    def get_head_effects(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        time: float | None = None,
        groupby: str | None = None,
        conditional: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        r"""Measure what each head contributes to each gene of the predicted cells.

        .. math:: e_{kg} = \operatorname{mean}_{\text{cells}}
            \bigl(\hat x_g(x_t) - \hat x_g^{\setminus k}(x_t)\bigr)

        where :math:`\hat x` is the clean cell that the network predicts of a noised one, and :math:`\hat x^{\setminus k}` the
        same with the output of head ``k`` set to zero. While :meth:`get_head_loadings` tells what a head can see, this tells
        what the model does with it, and with a sign.

        Parameters
        ----------
        adata
            Cells; default: those of the model.
        indices
            Which of them; default: all.
        time
            Diffusion time, see :meth:`get_head_loadings`.
        groupby
            Column of ``obs`` whose groups are averaged apart. Effects of opposite signs cancel within a group.
        conditional
            Whether the network is told each cell's own conditions; False: none.
        batch_size
            Cells at a time. Default: as many as have about 4 000 tokens.
        seed
            Seed of the noise.

        Returns
        -------
        pandas.DataFrame
            One row per ``(group, gene)`` and one column per head, in units of log-normalised expression; positive where the
            head raises the gene. ``effects.loc["all"]`` are genes by heads.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            For times, columns and sizes that are not there.

        Notes
        -----
        Effects are not additive: heads of later layers make up for what is removed from earlier ones, and without a head the
        network is in a state that it never met in training.
        """
        source, rows = self._opened(adata, indices)
        (moment,) = resolve_times(self.module.path, time, default=DEFAULT_TIME)
        groups = Groups.of(source.obs, rows, groupby)
        heads = head_names(self._opened_network)
        network = copy.deepcopy(self.module.averaged_network.module)
        batches = self._noised(source, rows, conditional=conditional, seed=resolve_seed(seed), batch_size=batch_size)
        names, means = groups.means((batch.rows, self._head_effects(network, batch, moment)) for batch in batches)
        index = pd.MultiIndex.from_product([names, list(source.var_names)], names=["group", "gene"])
        return pd.DataFrame(means.reshape(-1, len(heads)), index=index, columns=heads)

    def _head_effects(self, network: nn.Module, batch: CellBatch, moment: Moment) -> Tensor:
        """Return what each head adds to the predicted profiles, ``(cells, genes, heads)``."""
        whole = self._predicted_profiles(network, batch, moment)
        lacking = [self._predicted_profiles(network, batch, moment) for _ in remove_each_head(network.backbone)]
        return whole[..., None] - torch.stack(lacking, dim=-1)

    def _predicted_profiles(self, network: nn.Module, batch: CellBatch, moment: Moment) -> Tensor:
        """Return the clean profiles that a network predicts of noised cells, ``(cells, genes)``, before zeros are cut."""
        module = self.module
        x_t, network_time, condition = batch.at(module.path, moment)
        denoiser = Denoiser(lambda x, _: network(x, network_time, condition), module.path, module.target)
        t = torch.full_like(network_time, moment.path_time)
        return denoiser.estimate(x_t, t).data * module.scale + module.shift


def remove_each_head(network: GeneDiT) -> Iterator[tuple[int, int]]:
    """Change the network so that it lacks one head after the other, layer by layer, and in the end none."""
    for layer, block in enumerate(network.network.blocks):
        for head in range(block.attention.n_heads):
            with head_removed(network, layer, head):
                yield layer, head


@contextmanager
def head_removed(network: GeneDiT, layer: int, head: int) -> Iterator[None]:
    """Set the output of one head to zero for a while."""
    attention = network.network.blocks[layer].attention
    weight = attention.project_out.weight.data.unflatten(1, (attention.n_heads, -1))  # a view
    kept = weight[:, head].clone()
    weight[:, head] = 0
    try:
        yield
    finally:
        weight[:, head] = kept
