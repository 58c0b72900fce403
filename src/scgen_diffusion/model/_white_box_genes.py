"""Which genes the heads of a white-box network read, and which patches of genes attend to which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgen_diffusion.data import is_whole_number

from ._request import resolve_seed
from ._white_box_cells import DEFAULT_TIME, Groups, NoisedCellsMixin, resolve_times
from ._white_box_measures import Tokens, attention_maps, head_names, squared_loadings, token_names, token_slice
from ._white_box_tables import head_specificity, top_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class HeadGenesMixin(NoisedCellsMixin):
    """The heads mapped back to genes, and attention between patches of genes."""

    head_specificity = staticmethod(head_specificity)
    top_genes = staticmethod(top_genes)

    def get_patches(self) -> pd.DataFrame:
        """Return which genes are the tokens of the network.

        Returns
        -------
        pandas.DataFrame
            Genes in the order in which the network sees them, with the name of their ``patch``, such as ``P0``, and their
            ``position`` in it.
        """
        self._check_can_read_cells()
        patches = self._opened_network.genes_of_patches.cpu().numpy()
        patch, position = np.nonzero(patches >= 0)
        genes = self.var_.index[patches[patch, position]]
        names = token_names(self._opened_network)
        labels = pd.Categorical.from_codes(patch, categories=names[: len(patches)])
        return pd.DataFrame({"patch": labels, "position": position}, index=genes)

    def get_head_loadings(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        time: float | None = None,
        tokens: Tokens | None = None,
        relative: bool = False,
        conditional: bool = True,
        n_probes: int = 1,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        r"""Measure how strongly each gene moves what each head reads.

        .. math:: \ell_{kg} = \sqrt{\operatorname{mean}_{\text{cells}}
            \lVert \partial (U_k^\top Z) / \partial x_{t,g} \rVert_F^2}

        over tokens ``Z`` that the attention sees, for the values :math:`x_t` that diffuse, at the given cells and time.

        Parameters
        ----------
        adata
            Cells; default: those of the model.
        indices
            Which of them; default: all.
        time
            Diffusion time as the network counts it: a timestep from 0 (data) to 999 (noise) on variance-preserving paths,
            0 (noise) to 1 (data) for flow matching. Default: timestep 500, or 0.25, where a gene's own value
            says little, so that the network must read it off the others.
        tokens
            ``"global"``: the tokens that read all genes, each with weights of its own. ``"patches"``: the tokens of patches.
            Default: the global tokens, if the network has any.
        relative
            Whether to return what is special about a head, see :meth:`head_specificity`. Raw loadings are much alike in all
            heads.
        conditional
            Whether the network is told each cell's own conditions; False: none.
        n_probes
            Random directions per cell that the norm is estimated with; the relative standard error of a loading is at most
            about ``(2 * cells * n_probes) ** -0.5``.
        batch_size
            Cells at a time. Default: as many as have about 4 000 tokens.
        seed
            Seed of the noise and of the directions, which each cell has of its own.

        Returns
        -------
        pandas.DataFrame
            Genes by heads; ``L0H2`` is head 2 of layer 0.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            For a time or a number of probes that is not allowed.

        Notes
        -----
        A loading has no sign, because a head computes the same in every rotated basis of its subspace. It tells what a head
        can see, not what the model does with it (:meth:`get_head_effects`).

        The embedding is the same for all patches, so that the loadings of ``tokens="patches"`` follow the position of a gene
        in its patch, whatever gene it is. A network with shuffled weights (:meth:`with_shuffled_weights`) tells what is
        architecture alone.
        """
        source, rows = self._opened(adata, indices)
        (moment,) = resolve_times(self.module.path, time, default=DEFAULT_TIME)
        check_n_probes(n_probes)
        network = self._opened_network
        places = token_slice(network, tokens)
        total = np.zeros(())
        for batch in self._noised(
            source, rows, conditional=conditional, seed=resolve_seed(seed), batch_size=batch_size
        ):
            inputs = batch.at(self.module.path, moment)
            for _ in range(n_probes):
                squares = squared_loadings(network, *inputs, tokens=places, generators=batch.generators)
                total = total + squares.cpu().double().numpy()
        mean_squares = total.T / (len(rows) * n_probes)
        table = pd.DataFrame(np.sqrt(mean_squares), index=source.var_names, columns=head_names(network))
        return head_specificity(table) if relative else table

    def get_patch_attention(
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
        r"""Return how much patches of genes attend to each other, averaged over cells.

        .. math:: \operatorname{softmax}\bigl(Z U_k (Z U_k)^\top / \sqrt{p}\bigr)

        with the tokens as the rows of ``Z``. Before the softmax it is symmetric, for one projection is query and key.

        Parameters
        ----------
        adata, indices, time, conditional
            See :meth:`get_head_loadings`.
        groupby
            Column of ``obs`` whose groups are averaged apart.
        batch_size
            Cells at a time. Default: as many as have about 4 000 tokens.
        seed
            Seed of the noise.

        Returns
        -------
        pandas.DataFrame
            One row per ``(group, head, token)`` and one column per token that is attended to; rows sum to one. Tokens are
            patches, ``P0`` and so on, and the global tokens, ``G0`` and so on, if the network has any.
            ``attention.loc["all", "L0H2"]`` is the matrix of a head, and :meth:`get_patches` tells the genes of a patch.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            For times, columns and sizes that are not there.
        """
        source, rows = self._opened(adata, indices)
        (moment,) = resolve_times(self.module.path, time, default=DEFAULT_TIME)
        groups = Groups.of(source.obs, rows, groupby)
        heads, tokens = head_names(self._opened_network), token_names(self._opened_network)
        batches = self._noised(source, rows, conditional=conditional, seed=resolve_seed(seed), batch_size=batch_size)
        names, means = groups.means(
            (batch.rows, attention_maps(self._opened_network, *batch.at(self.module.path, moment))) for batch in batches
        )
        index = pd.MultiIndex.from_product([names, heads, tokens], names=["group", "head", "token"])
        return pd.DataFrame(means.reshape(-1, len(tokens)), index=index, columns=pd.Index(tokens, name="attended"))


def check_n_probes(n_probes: object) -> None:
    """Raise unless there is at least one probe."""
    if not is_whole_number(n_probes) or n_probes < 1:  # type: ignore[operator]
        msg = f"`n_probes` must be a whole number of at least 1, but found {n_probes!r}."
        raise ValueError(msg)
