"""Opening the white box: what WBDIT's layers and heads do, in tables and in AnnData."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from ._request import resolve_seed
from ._white_box_cells import DEFAULT_TIME, resolve_times
from ._white_box_effects import HeadEffectsMixin
from ._white_box_genes import HeadGenesMixin
from ._white_box_statistics import LayerStatisticsMixin
from ._white_box_tables import head_specificity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from anndata import AnnData

    from ._white_box_measures import Tokens


class WhiteBoxMixin(LayerStatisticsMixin, HeadGenesMixin, HeadEffectsMixin):
    """Looking inside a trained white-box network."""

    def write_white_box(
        self,
        adata: AnnData | None = None,
        *,
        time: float | None = None,
        times: Sequence[float] | float | None = None,
        groupby: str | None = None,
        conditional: bool = True,
        tokens: Tokens | None = None,
        eps: float = 0.5,
        n_probes: int = 1,
        seed: int | None = None,
        key: str = "WBDIT",
    ) -> None:
        """Write all that can be seen in the network at these cells into the AnnData.

        Parameters
        ----------
        adata
            Cells, all of which are read; default: those of the model. They are changed in place, and can be written to h5ad
            and zarr.
        time
            Diffusion time of loadings, attention and coding rates of cells, see :meth:`get_head_loadings`.
        times
            Those of the layers' statistics, see :meth:`get_layer_statistics`.
        groupby, conditional, tokens, eps, n_probes, seed
            See there.
        key
            Start of the names below.

        Returns
        -------
        None
            It sets

            - ``varm["WBDIT_loadings"]`` and ``varm["WBDIT_specificity"]``: genes by heads, the latter with ``relative=True``;
            - ``var["WBDIT_patch"]``: the name of each gene's patch;
            - ``obsm["WBDIT_coding_rates"]``: cells by heads, see :meth:`get_head_coding_rates`;
            - ``uns["WBDIT"]``: ``"statistics"``, the table of the layers; ``"patch_attention"``,
              ``(groups, heads, tokens, tokens)`` with the names in ``"groups"``, ``"heads"`` and ``"tokens"``; and ``"params"``.
        """
        source, _ = self._opened(adata, None)
        seed = resolve_seed(seed)
        here: dict[str, Any] = {"time": time, "conditional": conditional, "seed": seed}
        loadings = self.get_head_loadings(source, tokens=tokens, n_probes=n_probes, **here)
        rates = self.get_head_coding_rates(source, eps=eps, **here)
        attention = self.get_patch_attention(source, groupby=groupby, **here)
        statistics = self.get_layer_statistics(
            source, times=times, groupby=groupby, conditional=conditional, eps=eps, seed=seed
        )
        names = {f"{level}s": attention.index.unique(level).to_numpy(dtype=object) for level in attention.index.names}
        (moment,) = resolve_times(self.module.path, time, default=DEFAULT_TIME)
        source.varm[f"{key}_loadings"] = loadings
        source.varm[f"{key}_specificity"] = head_specificity(loadings)
        source.var[f"{key}_patch"] = self.get_patches()["patch"].reindex(source.var_names)
        source.obsm[f"{key}_coding_rates"] = rates
        source.uns[key] = {
            "statistics": statistics,
            "patch_attention": attention.to_numpy().reshape(*map(len, names.values()), -1),
            **names,
            "params": {
                "time": moment.network_time,
                "groupby": groupby or "",
                "conditional": conditional,
                "eps": eps,
                "n_probes": n_probes,
                "seed": seed,
            },
        }

    def with_shuffled_weights(self, seed: int | None = None) -> Self:
        """Return a copy of the model whose network has its weights shuffled: a control for all that is read off it.

        The numbers of every parameter tensor change places. The copy has the architecture, the order of the genes and the
        sizes of the weights, but nothing of what training arranged. What looks the same in it is no biology.

        Parameters
        ----------
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
        self._check_can_read_cells()
        control = copy.copy(self)
        control.module = copy.deepcopy(self.module)
        generator = torch.Generator().manual_seed(resolve_seed(seed))
        for parameter in control._opened_network.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
        return control
