"""What ``setup_anndata`` and ``setup_mudata`` are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._command import python_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

TABLES = {".csv": ",", ".tsv": "\t"}


def set_up(model_class: Any, cells: AnnData | MuData, options: Mapping[str, Any]) -> None:
    """Register cells with a model class.

    Raises
    ------
    click.UsageError
        For options of the other kind of cells.
    """
    from mudata import MuData

    arguments = conditions_of(options)
    if isinstance(cells, MuData):
        _set_up_paired(model_class, cells, options, arguments)
        return
    check_single_modality(options)
    model_class.setup_anndata(cells, **arguments, **python_options(options, "layer", "values"))


def check_single_modality(options: Mapping[str, Any]) -> None:
    """Raise for options that only several modalities have."""
    if "modality" in options or isinstance(options.get("layer"), dict):
        msg = "--modality, and --layer with a modality, are for .h5mu files."
        raise click.UsageError(msg)


def conditions_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that say what is a condition."""
    names = {
        "condition": "condition_keys",
        "continuous_condition": "continuous_condition_keys",
        "control": "control_values",
    }
    arguments = {python: options[option] for option, python in names.items() if option in options}
    if "set_condition" in options:
        arguments["set_condition_keys"] = {key: value or "+" for key, value in options["set_condition"].items()}
    if "condition_embedding" in options:
        tables = options["condition_embedding"].items()
        arguments["condition_embeddings"] = {key: _embedding(table) for key, table in tables}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Read a table of texts by its suffix.

    Raises
    ------
    click.UsageError
        For another suffix, and for a file that is no such table.
    """
    import pandas as pd

    if path.suffix not in TABLES:
        msg = f"{path}: tables are read from {' and '.join(TABLES)}."
        raise click.UsageError(msg)
    try:
        return pd.read_csv(path, sep=TABLES[path.suffix], **options)
    except (OSError, ValueError) as error:  # pandas' and Unicode's own are ValueErrors
        msg = f"{path} cannot be read as a table: {error}"
        raise click.UsageError(msg) from error


def _set_up_paired(model_class: Any, cells: MuData, options: Mapping[str, Any], arguments: dict[str, Any]) -> None:
    if not hasattr(model_class, "setup_mudata"):
        msg = f"{model_class.__name__} reads one modality, not .h5mu; SCLDM reads several."
        raise click.UsageError(msg)
    if "values" in options:
        msg = "--values is for .h5ad and .zarr; the modalities of .h5mu hold counts."
        raise click.UsageError(msg)
    layers = {"layers": options["layer"]} if "layer" in options else {}
    modalities = {"modalities": options["modality"]} if "modality" in options else {}
    model_class.setup_mudata(cells, **arguments, **layers, **modalities)


def _embedding(table: str) -> pd.DataFrame | str:
    path = Path(table)
    return read_table(path, index_col=0) if path.suffix in TABLES else table
