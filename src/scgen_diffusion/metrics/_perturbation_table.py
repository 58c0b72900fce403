"""One table of how well the cells of perturbations are predicted, beside simple baselines and beside real cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scgen_diffusion.data import is_whole_number, warn_user

from ._evaluate_checks import check_genes, check_numbers, check_space, layer_to_read
from ._expression import align_genes, expression_of
from ._labels import labels_of
from ._perturbation_baselines import SEPARATOR, parts_of
from ._perturbation_cases import ALL, FIGURES, PerturbedCells, Sets
from ._perturbation_measures import Settings
from ._safety import copied_cells
from ._space import ComparisonSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ._perturbation_effects import Ranking

N_TOP = (20, 100)
NAMES = ("metric", "perturbation", "group")
MANY = 0.2  # of the predicted cells: more copies than this are no accident


def evaluate_perturbation(
    real_test: AnnData,
    predicted: AnnData,
    *,
    control: AnnData,
    perturbation_key: str,
    train: AnnData | None = None,
    others: Mapping[str, AnnData] | None = None,
    groupby: str | Sequence[str] | None = None,
    separator: str = SEPARATOR,
    n_top: int | Sequence[int] = N_TOP,
    ranking: Ranking = "welch",
    layer: str | None = None,
    space: ComparisonSpace | None = None,
    max_cells: int = 2_000,
    n_floor: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge predicted cells of perturbations against real ones, beside baselines that need no model.

    A model has predicted an effect only where it is better than every baseline, and it is as good as data of this size can tell where
    it reaches the floor.

    Parameters
    ----------
    real_test
        Real perturbed cells that the model has not seen. Every perturbation in it is judged.
    predicted
        Predicted cells of (at least) the same perturbations.
    control
        Real unperturbed cells. Where they have a value in ``obs[perturbation_key]``, cells with that value are taken as unperturbed in the
        other sets too and left out there, as is that part of a name such as ``"KLF1+ctrl"``.
    perturbation_key
        Column of `obs` with the perturbation.
    train
        Real cells that the model was trained on, for the baselines ``mean_shift`` and ``additive``. Their principal components, without the
        unperturbed cells, are the space of the distances.
    others
        Cells that other methods predict, by the name of the method, such as ``{"latent_arithmetic": cells}``. Each gets a column, measured as `predicted` is.
    groupby
        Column of `obs` such as the cell type or cell line, or several. Changes are then taken against the control cells of the same group;
        the mean shift is that of all training perturbations in all groups, the additive baseline that of parts in the same group.
    separator
        What stands between the names of the parts of a combination. Their order does not matter.
    n_top, ranking
        How many genes are the most changed ones, one number or several, and by what (:func:`mean_change_correlation`).
    layer
        Layer with the counts of real cells, and of predicted cells if they have it.
    space
        Space of the distances, in place of the one fitted on `train`. With neither, it is that of all genes.
    max_cells
        Largest number of cells of each kind in a distance; a random draw of larger sets. Means and variances use all cells.
    n_floor
        How often the real cells of a perturbation are split in two halves for the floor.
    seed
        Decides the draws.

    Returns
    -------
    One row per metric, perturbation and group, with columns

    ``metric``
        - ``energy_distance``: :func:`energy_distance` between real and predicted cells. Sees means, spread and shape.
        - ``w2``: :func:`wasserstein_2` between one half of the real cells and as many predicted ones, the mean over `n_floor` halves. All columns have
          equally many cells, on which this distance depends: half of the real cells, or fewer where a prediction or the control has fewer.
        - ``mean_change_error``: mean absolute difference of real and predicted mean over genes. Sees the size of the effect.
        - ``mean_change_correlation``: :func:`mean_change_correlation` over all genes. Sees the direction, not the size.
        - ``mean_change_correlation_top_20``, ``.._100``: the same over the genes that really change most.
        - ``de_overlap_top_20``, ``.._100``: :func:`de_overlap`, whether the genes that change most are the right ones.
        - ``de_jaccard``: :func:`de_jaccard`, whether the genes called differential are the right ones, and as many.
        - ``de_direction``: :func:`de_direction`, whether differential genes go the right way.
        - ``variance_error``, ``variance_error_top_20``, ``.._100``: :func:`variance_error` over all genes, and over those that really change most. Sees spread only.

        The numbers are those of `n_top`.
    ``perturbation``, ``group``
        What is predicted; the group is ``"all"`` without `groupby`.
    ``value``
        Figure of the predicted cells.
    ``floor``
        Figure of one half of the real cells as prediction of the other, the mean over splits. A half has more sampling noise than
        all predicted cells, so a very good prediction can score slightly better. NaN below four cells.
    ``no_change``, ``mean_shift``, ``additive``
        Figures of the baselines: the control cells; control cells moved by the mean change of all training perturbations; control cells moved by the
        sum of the changes of the parts. NaN where `train` does not allow it.
    names of `others`
        Figures of what these methods predict. NaN where one has fewer than two cells of a perturbation.
    ``better``
        ``"lower"`` or ``"higher"``.

    Raises
    ------
    KeyError
        If a column is not in `obs`.
    TypeError
        If a set is no AnnData.
    ValueError
        If a cell has no perturbation or group, a perturbation has not been predicted, a group has no control cells, a set has fewer than two cells, or a name of `others` is that of
        another column.

    Notes
    -----
    cell-eval calls ``mean_change_correlation`` ``pearson_delta``, ``mean_change_error`` ``mae``, ``de_overlap`` ``overlap_at_N`` and ``de_direction``
    ``de_direction_match``.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> def cells(rate, name):
    ...     counts = np.random.default_rng(len(name)).poisson(rate, (100, 30)).astype(np.float32)
    ...     return ad.AnnData(counts, obs=pd.DataFrame({"gene": name}, index=[f"{name}{i}" for i in range(100)]))
    >>> changed = np.repeat([2.0, 8.0], 15)
    >>> table = evaluate_perturbation(
    ...     cells(changed, "KLF1"), cells(changed, "KLF1"), control=cells(4.0, "none"), perturbation_key="gene"
    ... )
    >>> bool((table.query("metric == 'energy_distance'").value < 1e-6).all())
    True
    """
    check_numbers(max_cells=max_cells, n_floor=n_floor, seed=seed, min_cells=2)
    check_space(space)
    if not (isinstance(perturbation_key, str) and separator and isinstance(separator, str)):
        msg = f"`perturbation_key` must name a column of `obs` and `separator` be a text, but they are {perturbation_key!r} and {separator!r}."
        raise TypeError(msg)
    if not isinstance(others, Mapping | None):
        msg = f"`others` must be a dict of AnnData by the name of the method, but is {type(others).__name__}."
        raise TypeError(msg)
    others = dict(others or {})
    columns = _figure_columns(others)
    given = {"real_test": real_test, "predicted": predicted, "control": control} | others
    given |= {} if train is None else {"train": train}
    for name, cells in given.items():
        if not isinstance(cells, AnnData):
            msg = f"`{name}` must be an AnnData, but is {type(cells).__name__}."
            raise TypeError(msg)
        check_genes(name, cells, real_test.var_names)
    reader = _Reader(
        real_test.var_names, perturbation_key, groupby, separator, _names_of_control(control, perturbation_key), layer
    )
    trained = None if train is None else reader.perturbed(train, "train").treated()
    if space is None and trained is not None:
        space = ComparisonSpace.fit(trained.expression, seed=seed)
    settings = Settings(_numbers_of_genes(n_top), ranking, space, max_cells, n_floor, seed)
    sets = Sets(
        reader.perturbed(real_test, "real_test").treated(),
        reader.perturbed(predicted, "predicted"),
        reader.unperturbed(control, "control"),
        trained,
        {name: reader.perturbed(cells, name) for name, cells in others.items()},
    )
    _warn_of_real_cells(sets)
    names = {parts: name for name, parts in reader.parts_by_name(real_test, "real_test").items()}
    return pd.DataFrame(
        {"perturbation": names[case.parts], **row} for case in sets.cases() for row in case.rows(settings, columns)
    )[[*NAMES, *columns, "better"]]


def _warn_of_real_cells(sets: Sets) -> None:
    """Warn where the predicted cells are the real ones, which no two measured cells are but in data with hardly any counts."""
    found, usual = (copied_cells(cells.expression, sets.real.expression) for cells in (sets.predicted, sets.control))
    if found - usual > MANY:
        msg = f"{found:.0%} of the cells in `predicted` are cells of `real_test`, count by count: these figures say nothing of a model."
        warn_user(msg)


@dataclass(frozen=True)
class _Reader:
    """Which genes and columns are read, and how names are taken apart."""

    genes: pd.Index
    perturbation_key: str
    groupby: str | Sequence[str] | None
    separator: str
    controls: set[str]
    layer: str | None

    def perturbed(self, cells: AnnData, name: str) -> PerturbedCells:
        """Read cells with the perturbation that each names."""
        by_name = self.parts_by_name(cells, name)
        return self._read(cells, [by_name[own] for own in labels_of(cells, self.perturbation_key, name=name)], name)

    def unperturbed(self, cells: AnnData, name: str) -> PerturbedCells:
        """Read cells as unperturbed ones, whatever they name."""
        return self._read(cells, [()] * cells.n_obs, name)

    def parts_by_name(self, cells: AnnData, name: str) -> dict[str, tuple[str, ...]]:
        """Return the single perturbations of every name."""
        names = np.unique(labels_of(cells, self.perturbation_key, name=name)).tolist()
        return {name: parts_of(name, separator=self.separator, ignored=self.controls) for name in names}

    def _read(self, cells: AnnData, parts: list[tuple[str, ...]], name: str) -> PerturbedCells:
        layer = layer_to_read(name, cells, self.layer)
        expression = expression_of(align_genes(cells, self.genes, name=name), layer=layer, name=name)
        groups = np.full(cells.n_obs, ALL) if self.groupby is None else labels_of(cells, self.groupby, name=name)
        return PerturbedCells(expression, _object_array(parts), groups)


def _figure_columns(others: Mapping[str, AnnData]) -> tuple[str, ...]:
    for name in others:
        if name in {*NAMES, *FIGURES, "better", "real_test", "predicted", "control", "train"}:
            msg = f"`others` has the name {name!r}, which is a name of the table or of another set of cells; choose another one."
            raise ValueError(msg)
    return (*FIGURES, *others)


def _numbers_of_genes(n_top: int | Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(np.unique(np.atleast_1d(n_top)).tolist())
    if not numbers or not all(is_whole_number(number) and number >= 2 for number in numbers):
        msg = f"`n_top` must be at least 2 genes, or several such numbers, but is {n_top}."
        raise ValueError(msg)
    return numbers


def _object_array(items: list[tuple[str, ...]]) -> NDArray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _names_of_control(control: AnnData, perturbation_key: str) -> set[str]:
    return set(control.obs[perturbation_key].astype(str)) if perturbation_key in control.obs else set()
