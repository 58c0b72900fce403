"""How compact and how sparse the tokens of a white-box network are, layer by layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from scgen_diffusion.data import known_names

from ._generation import GenerationMixin
from ._guidance import GuidanceOptions
from ._request import resolve_seed
from ._white_box_cells import ALL_CELLS, DEFAULT_TIME, DEFAULT_TIMES, Groups, NoisedCellsMixin, resolve_times
from ._white_box_measures import ALL_HEADS, GroupMoments, Label, cell_statistics
from ._white_box_sampling import SamplingRecord, WatchedSampler, check_steps_are_shared
from ._white_box_tables import compare_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Sampler

    from ._guidance import Composition, GuidanceScale


class LayerStatisticsMixin(NoisedCellsMixin, GenerationMixin):
    """Measures of what each layer does to the tokens, of given cells and while cells are generated."""

    compare_groups = staticmethod(compare_groups)

    def get_layer_statistics(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        times: Sequence[float] | float | None = None,
        groupby: str | None = None,
        conditional: bool = True,
        eps: float = 0.5,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        r"""Measure how each layer compresses and sparsifies the tokens of noised cells.

        A token is a patch of genes, or a global token that reads all of them. With a cell's ``n`` tokens as the columns of
        ``Z``, of width ``d`` and scaled to about unit norm, and the basis :math:`U_k`, ``(d, p)``, of each head:

        .. math::

            R(Z) &= \tfrac12 \log\det\Bigl(I + \tfrac{d}{n \epsilon^2} Z^\top Z\Bigr) \\
            R^c_k(Z) &= \tfrac12 \log\det\Bigl(I + \tfrac{p}{n \epsilon^2} (U_k^\top Z)^\top U_k^\top Z\Bigr),
            \quad R^c = \sum_k R^c_k

        ``statistic`` is one of

        - ``coding_rate_before``, ``coding_rate_after``: :math:`R` of what the attention sees, and of what it would see if it
          came a second time, normalised and modulated alike.
        - ``subspace_coding_rate_before``, ``..._after``: :math:`R^c` of the same tokens, which attention is derived to
          lower; of all heads together (``head`` is ``"all"``) and of each.
        - ``sparsity``, ``l0_norm``, ``l1_norm``: of the output of the sparse half (ISTA): its share of exact zeros, and what
          is left of a token on average.
        - ``sparse_coding_loss_before``, ``..._after``: :math:`\tfrac12 \lVert z - D a \rVert^2 + \lambda \lVert a \rVert_1`,
          which the sparse half is derived to lower, for the code ``a = z`` that it starts from, and for its output.
        - ``attention_step``, ``sparse_coding_step``: how far each half moves the tokens, relative to their norm.

        Parameters
        ----------
        adata
            Cells; default: those of the model.
        indices
            Which of them; default: all.
        times
            Diffusion times as the network counts them: timesteps from 0 (data) to 999 (noise) on variance-preserving paths;
            0 (noise) to 1 (data) for flow matching. Default: six of them.
        groupby
            Column of ``obs`` whose groups are averaged apart.
        conditional
            Whether the network is told each cell's own conditions, as in training; False: none, so that groups differ by
            their expression alone.
        eps
            :math:`\epsilon`, for tokens of unit norm. CRATE: 0.5.
        batch_size
            Cells at a time. Default: as many as have about 4 000 tokens.
        seed
            Seed of the noise. Each cell keeps its noise at all times and in all batches.
        show_progress
            Whether to show a progress bar.

        Returns
        -------
        pandas.DataFrame
            One row per time, group, layer, statistic and head, with the mean ``value`` over ``n_cells`` cells, their
            standard deviation ``std``, and the time's ``noise_level`` :math:`\sigma_t`.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            For times, columns and sizes that are not there.

        Notes
        -----
        What these numbers cannot tell:

        - They depend on ``eps`` and on the scale of the tokens, which the modulation changes with time and condition.
          Compare ``before`` with ``after``, and cells at the same layer and time.
        - The :math:`U_k` are learned without constraint. They are not orthonormal, so that :math:`R^c` is no upper bound of
          :math:`R`, and they are defined only up to a rotation within a head.
        - The blocks are not CRATE's to the letter: attention has a learned output map, both halves have a gate that depends on
          time and condition, and the sparse half has a residual around it. No half is bound to lower its objective; whether
          it does is what ``before`` and ``after`` tell.

        References
        ----------
        Yu et al. (2023), *White-box transformers via sparse rate reduction*, arXiv 2306.01129. Yu et al. (2020), *Learning
        diverse and discriminative representations via the principle of maximal coding rate reduction*, arXiv 2006.08558.
        """
        source, rows = self._opened(adata, indices)
        groups = Groups.of(source.obs, rows, groupby)
        moments = resolve_times(self.module.path, times, default=DEFAULT_TIMES)
        found = [GroupMoments(len(groups.names)) for _ in moments]
        batches = self._noised(source, rows, conditional=conditional, seed=resolve_seed(seed), batch_size=batch_size)
        with tqdm(total=len(rows), desc="Measuring", unit="cell", disable=not show_progress) as progress:
            for batch in batches:
                for moment, moments_of_groups in zip(moments, found, strict=True):
                    inputs = batch.at(self.module.path, moment)
                    measured = cell_statistics(self._opened_network, *inputs, eps)
                    moments_of_groups.add(measured, groups.codes[batch.rows])
                progress.update(len(batch.rows))
        tables = [
            sums.to_frame(groups.names, time=moment.network_time, noise_level=moment.noise_level)
            for moment, sums in zip(moments, found, strict=True)
        ]
        return pd.concat(tables, ignore_index=True)

    def get_head_coding_rates(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        time: float | None = None,
        conditional: bool = True,
        eps: float = 0.5,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Return how many nats each head's view of each cell costs: the cell's coding rate within the head's subspace.

        Parameters
        ----------
        adata, indices, conditional, eps, batch_size, seed
            See :meth:`get_layer_statistics`, of whose ``subspace_coding_rate_before`` these are the single cells.
        time
            One time as there. Default: timestep 500, or 0.25 for flow matching, where a gene's own value says little.

        Returns
        -------
        pandas.DataFrame
            Cells by heads; ``L0H2`` is head 2 of layer 0.
        """
        source, rows = self._opened(adata, indices)
        (moment,) = resolve_times(self.module.path, time, default=DEFAULT_TIME)
        parts = []
        for batch in self._noised(
            source, rows, conditional=conditional, seed=resolve_seed(seed), batch_size=batch_size
        ):
            measured = cell_statistics(self._opened_network, *batch.at(self.module.path, moment), eps)
            heads = {label.head: rate for label, rate in measured.items() if is_rate_of_head(label)}
            parts.append(pd.DataFrame({head: rate.float().cpu().numpy() for head, rate in heads.items()}))
        table = pd.concat(parts, ignore_index=True)
        table.index = source.obs_names[rows]
        return table

    def get_sampling_statistics(
        self,
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        groupby: str | None = None,
        guidance_scale: GuidanceScale = 1.0,
        composition: Composition | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        eps: float = 0.5,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """Measure the same while noise becomes cells.

        The cells are those that :meth:`generate` makes of the same arguments. They are measured whenever the sampler asks the
        network, under their own conditions, also where guidance mixes several predictions.

        Parameters
        ----------
        n_cells, condition, guidance_scale, composition, guidance_interval, guidance_rescale, sampler, n_steps, seed
            See :meth:`generate`. Not the sampler ``"dopri5"``, whose steps are not the same for all cells.
        groupby
            Condition key whose classes are averaged apart.
        eps, show_progress
            See :meth:`get_layer_statistics`.

        Returns
        -------
        pandas.DataFrame
            As of :meth:`get_layer_statistics`, with a column ``step`` in front: the number of the network's evaluation.
        """
        self._check_can_read_cells()
        guidance = GuidanceOptions(guidance_scale, composition, guidance_interval, guidance_rescale)
        options = self._sampling_options(sampler, n_steps, guidance, "log1p")
        check_steps_are_shared(options.sampler)
        key = number_of_key(groupby, self.conditions.keys)
        names = [ALL_CELLS] if groupby is None else [str(name) for name in self.conditions.categories[groupby]]
        record = SamplingRecord(
            partial(cell_statistics, self._opened_network, eps=eps),
            names,
            key,
            len(self.conditions.encode(condition, n_cells)),
        )
        self._generate(
            n_cells,
            condition,
            guidance=guidance,
            sampler=WatchedSampler(options.sampler, record.add),
            n_steps=n_steps,
            library_size=None,
            batch_size=None,
            seed=seed,
            show_progress=show_progress,
            output="log1p",
        )
        return record.to_frame(self.module.path)


def is_rate_of_head(label: Label) -> bool:
    """Tell whether a number is what one head's view of a cell costs."""
    return label.statistic == "subspace_coding_rate_before" and label.head != ALL_HEADS


def number_of_key(groupby: str | None, keys: Sequence[str]) -> int | None:
    """Return the place of a condition key among the model's."""
    if groupby is None:
        return None
    if groupby not in keys:
        msg = f"`groupby` {groupby!r} is not a condition key. {known_names(groupby, list(keys))}"
        raise ValueError(msg)
    return list(keys).index(groupby)
