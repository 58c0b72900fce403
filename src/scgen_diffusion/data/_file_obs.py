"""What several files of cells have in common: their genes, and the columns that are conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype, union_categoricals

from ._checks import known_names, name_some

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from pandas.api.extensions import ExtensionArray

    from ._anndata_file import AnnDataFile

EMPTY = "nothing"
KINDS = {  # by what pandas finds
    "string": "text",
    "integer": "whole numbers",
    "floating": "decimal numbers",
    "boolean": "truth values",
    "empty": EMPTY,
}
NUMBERS = {KINDS["integer"], KINDS["floating"]}


@dataclass(frozen=True)
class ReadTables:
    """What was read of cells: some columns, and some tables of embeddings, where an AnnData has them."""

    obs: pd.DataFrame
    uns: Mapping[str, Any]


def columns_of_genes(
    files: Sequence[AnnDataFile], genes: Sequence[str] | str | None
) -> tuple[pd.DataFrame, list[np.ndarray | None]]:
    """Return the genes that are taken, with their columns in the first file, and where each file has them.

    Parameters
    ----------
    files
        The files.
    genes
        Names of genes; None for those of the first file, which all others must have too, and no more; ``"shared"`` for those that all have.

    Raises
    ------
    ValueError
        For genes that a file lacks, or has twice.
    """
    tables = [file.var for file in files]
    names = [table.index for table in tables]
    for file, index in zip(files, names, strict=True):
        _check_distinct(index, file.name)
    wanted = _wanted(files, names, genes)
    places = [index.get_indexer(wanted) for index in names]
    for file, index, place in zip(files, names, places, strict=True):
        if (place < 0).any():
            msg = f"{file.name} lacks genes that `genes` names: {name_some(wanted[place < 0])}. {known_names(wanted[place < 0][0], list(index))}"
            raise ValueError(msg)
    return tables[0].loc[wanted], [
        None if _are_all(place, len(index)) else place for place, index in zip(places, names, strict=True)
    ]


def _wanted(files: Sequence[AnnDataFile], names: Sequence[pd.Index], genes: Sequence[str] | str | None) -> pd.Index:
    first = names[0]
    if genes is None:
        for file, index in zip(files[1:], names[1:], strict=True):
            _check_same(files[0].name, first, file.name, index)
        return first
    if isinstance(genes, str) and genes != "shared":
        msg = f"`genes` must be a list of names, 'shared' or None, but found {genes!r}."
        raise TypeError(msg)
    if isinstance(genes, str):
        shared = first[np.logical_and.reduce([first.isin(index) for index in names])]
        if not len(shared):
            msg = f"The {len(files)} files have no gene in common; are all of their names of one kind (symbols, or Ensembl)?"
            raise ValueError(msg)
        return shared
    wanted = pd.Index([str(gene) for gene in genes])
    _check_distinct(wanted, "`genes`")
    return wanted


def _check_same(first: str, expected: pd.Index, other: str, found: pd.Index) -> None:
    missing, extra = expected.difference(found, sort=False), found.difference(expected, sort=False)
    if len(missing) or len(extra):
        msg = (
            f"The genes of {other} are not those of {first}: {name_some(missing)} missing, {name_some(extra)} more. Take those that all "
            "files have with `genes='shared'`, or name some with `genes=[...]`."
        )
        raise ValueError(msg)


def _check_distinct(names: pd.Index, where: str) -> None:
    if not names.is_unique:
        msg = f"{where} has genes that occur more than once: {name_some(names[names.duplicated()].unique())}. Make their names unique."
        raise ValueError(msg)


def _are_all(place: np.ndarray, n_genes: int) -> bool:
    return len(place) == n_genes and bool((place == np.arange(n_genes)).all())


def read_columns(files: Sequence[AnnDataFile], names: Iterable[str], numbers: Container[str] = ()) -> pd.DataFrame:
    """Read columns of the cells of all files, one file below the other; classes are those of any.

    Parameters
    ----------
    files
        The files.
    names
        The columns.
    numbers
        Those of them that are read as numbers, of which some files may have whole ones, and others not.

    Raises
    ------
    KeyError
        For a column that a file lacks.
    ValueError
        For one that holds numbers in one file, and text in another; for classes also if they are whole numbers in one file, and others not.
    """
    n_cells = sum(file.n_cells for file in files)
    columns = {name: _read_column(files, name, are_numbers=name in numbers) for name in names}
    return pd.DataFrame(columns, index=pd.RangeIndex(n_cells))


def _read_column(files: Sequence[AnnDataFile], name: str, *, are_numbers: bool) -> ExtensionArray | np.ndarray:
    for file in files:
        if name not in file.columns:
            msg = f"The condition key {name!r} is not a column of obs in {file.name}. {known_names(name, file.columns)}"
            raise KeyError(msg)
    parts = [file.column(name) for file in files]
    if len(parts) == 1:
        return parts[0].cat.as_unordered().array if _has_classes(parts[0]) else parts[0].array
    _check_same_kind(files, parts, name, are_numbers=are_numbers)
    if are_numbers:
        return pd.concat([_without_classes(part) for part in parts], ignore_index=True).array
    return union_categoricals([_as_classes(part) for part in parts], sort_categories=True)


def _check_same_kind(files: Sequence[AnnDataFile], parts: Sequence[pd.Series], name: str, *, are_numbers: bool) -> None:
    kinds = [_kind_of(part) for part in parts]
    distinct = set(kinds) - {EMPTY}
    if len(distinct) < 2 or (are_numbers and distinct <= NUMBERS):
        return
    found = ", ".join(f"{kind} in {file.name}" for file, kind in zip(files, kinds, strict=True))
    msg = f"The column {name!r} holds values of different kinds: {found}. Write it alike in all files."
    raise ValueError(msg)


def _kind_of(part: pd.Series) -> str:
    """Say what a column holds, whichever of pandas' types it is stored as."""
    inferred = infer_dtype(part.cat.categories if _has_classes(part) else part, skipna=True)
    return KINDS.get(inferred, inferred)


def _has_classes(part: pd.Series) -> bool:
    return isinstance(part.dtype, pd.CategoricalDtype)


def _without_classes(part: pd.Series) -> pd.Series:
    return part.astype(part.cat.categories.dtype) if _has_classes(part) else part


def _as_classes(part: pd.Series) -> pd.Categorical:
    """Turn a column into classes, whose type is what pandas takes their values for: the same for all of one kind."""
    classes = part.astype("category").cat.as_unordered()
    return classes.cat.rename_categories(pd.Index(classes.cat.categories.tolist())).array


def looked_up(files: Sequence[AnnDataFile], tables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what ``uns`` of the files has under the names of tables, of the first file that has it."""
    named = [table for table in tables.values() if isinstance(table, str)] if isinstance(tables, Mapping) else []
    found = {table: [entry for file in files if (entry := file.unstructured(table)) is not None] for table in named}
    return {table: entries[0] for table, entries in found.items() if entries}
