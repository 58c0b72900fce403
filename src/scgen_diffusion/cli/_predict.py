"""``scgen-diffusion predict``: how given cells would look under another condition, in a file."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import known_names, list_first

from ._command import Keyed, Model, command, existing, flag, given, new, number_or_text, option
from ._files import read_cells_of
from ._generate import COUNTS, LIBRARY_SIZE, OUTPUT, SAMPLING, TABLE, finish, load_for, read_conditions, read_guidance
from ._terminal import in_shell

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import pandas as pd

    from ._terminal import Terminal

SUPPORTED = "supported"  # the best verdict
CHANGES = {"condition", "condition_table", "library_size", "expected", "residuals"}  # without any, cells come back
PASSED_ON = (
    "method", "residuals", "strength", "library_size", "counts", "sampler", "n_steps", "batch_size", "seed",
    "shard_size", "rank", "n_ranks", "overwrite",
)  # fmt: skip

SECTIONS = {
    "Cells": [
        option(
            "--where -w",
            "Use only cells with this value in a column of obs. Several values of a column: any of them.",
            Keyed("COLUMN=VALUE", repeats=True),
        ),
        option("--layer -l", "Layer with the counts, if it is not that of training.", metavar="NAME"),
        flag("--backed", "Read cells from the file part by part, if they do not fit into memory."),
    ],
    "Request": [
        option("--condition -c", "New condition of all cells. Keys left out keep each cell's own value.", Keyed()),
        TABLE,
        option("--method", "Method: transport or inversion.", click.Choice(["transport", "inversion"])),
        option("--residuals", "What the latent does not explain: own (kept) or new.", click.Choice(["own", "new"])),
        option("--strength", "How far to go, from 0.0001 to 1; default: 1.", float, "SHARE"),
        LIBRARY_SIZE,
        COUNTS,
        flag("--expected", "Return expected counts of the latent's mean, without draws (SCLDM, MULTISCLDM)."),
    ],
    "Sampling": SAMPLING,
    "Output": OUTPUT,
}  # fmt: skip


@command(
    "predict",
    [
        click.Argument(["model"], type=Model()),
        click.Argument(["cells"], nargs=-1, required=True, type=existing()),
        click.Argument(["out"], type=new()),
    ],
    SECTIONS,
    short_help="Predict cells under another condition.",
    epilog="After Ctrl-C, SIGTERM or a crash, run the same command again to resume. Several files stay on disk, as "
    "with --backed. Of cells that stay there, the new file has only the conditions.",
)
def predict(terminal: Terminal, options: dict[str, Any]) -> None:
    """Predict how given cells (.h5ad, .zarr, .h5mu) would look under another condition, and write them into a file.

    MODEL is a folder, or the name of a pretrained model: pbmc3k, kang_ifnb or pbmc10k_citeseq.

    scgen-diffusion predict my_model cells.h5ad predicted.h5ad --where condition=control -c condition=stimulated
    """
    out, paths = options["out"], options["cells"]
    model = load_for(terminal, options, paths)
    _check_request(model, options)
    terminal.say(f"Reading {list_first(paths)}")
    cells, rows = _open(model, options)
    arguments = given(options, *PASSED_ON) | read_conditions(model, options) | read_guidance(options)
    if rows is not None:
        arguments["indices"] = rows
    if options.get("expected"):
        arguments["sample"] = False
    terminal.on_interrupt = "Run the same command again to resume."
    model.predict_perturbation_to(out, cells, **arguments, show_progress=not terminal.quiet)
    if finish(terminal, out, options):
        from scgen_diffusion.data import PROVENANCE_KEY, open_tables

        with closing(open_tables(out)[0]) as written:
            verdicts = written.unstructured(PROVENANCE_KEY).get("verdict")
        if verdicts is not None and (verdicts["verdict"] == SUPPORTED).all():  # of others, there was a warning
            for reason, some in verdicts.groupby("reason", sort=False, observed=True):
                names = list_first([f"({name})" for name in some["combination"]])
                terminal.say(f"{SUPPORTED.capitalize()}: {reason}: {names}")


def _check_request(model: Any, options: Mapping[str, Any]) -> None:
    """Raise, before the cells are read, if nothing changes, or a transport is needed that is not there."""
    if not (model.modalities or CHANGES & {*options}):
        msg = "Nothing is predicted without a new condition: give --condition KEY=VALUE or --condition-table."
        raise click.UsageError(msg)
    if options.get("expected") and not hasattr(model, "get_reconstruction"):
        msg = f"--expected is for SCLDM and MULTISCLDM; the model is of {type(model).__name__}."
        raise click.UsageError(msg)
    if options.get("method") == "transport" and "transport" not in getattr(model, "trained_stages_", ()):
        msg = "--method transport: the model has none; `train --control` makes one. Choose --method inversion."
        raise click.UsageError(msg)


def _open(model: Any, options: Mapping[str, Any]) -> tuple[Any, np.ndarray | None]:
    """Open the cells as the model's training cells were registered; return the rows of the chosen ones, None for all.

    The conditions of other cells need not be known.

    Raises
    ------
    click.UsageError
        For a layer of cells that stay in files.
    """
    from scgen_diffusion.data import CellFiles, open_tables, read_columns

    paths, where = options["cells"], options.get("where")
    if len(paths) == 1 and not options.get("backed"):
        cells = _read(model, paths[0], options.get("layer"))
        return cells, None if where is None else _rows(cells.obs, where)
    if "layer" in options:
        msg = "--layer needs cells in memory, but several files, or --backed, leave them in their files."
        raise click.UsageError(msg)
    rows = None
    if where is not None:
        numbers = [key.name for key in model.conditions.by_key if key.is_numeric]
        with ExitStack() as opened:
            files = [opened.enter_context(closing(file)) for path in paths for file in open_tables(path)]
            rows = _rows(read_columns(files, where, numbers, kind="--where"), where)
    return CellFiles.like(model.registry, list(paths), indices=rows), rows


def _read(model: Any, path: Path, layer: str | None) -> Any:
    """Read cells with the genes of the model, and their counts where the model looks for them.

    Raises
    ------
    click.UsageError
        For a layer of cells with several modalities, and for a layer that the cells lack.
    """
    cells = read_cells_of(model, path)
    if model.modalities:
        if layer is not None:
            msg = (
                "--layer is for one modality; cells of several modalities have their counts in the layers of training."
            )
            raise click.UsageError(msg)
        return cells
    if layer is not None:
        if layer not in cells.layers:
            from scgen_diffusion.data import layer_names

            msg = f"--layer: there is no layer {layer!r}. {known_names(layer, layer_names(cells))}"
            raise click.UsageError(msg)
        read = model.registry["setup_args"]["layer"]
        if read is None:
            cells.X = cells.layers[layer]
        else:
            cells.layers[read] = cells.layers[layer]
    return cells


def _rows(obs: pd.DataFrame, where: Mapping[str, Any]) -> np.ndarray:
    """Return the rows of the cells that have the values.

    Raises
    ------
    click.UsageError
        For a column that the cells lack, a value that no cell has in it, or values that no cell has together.
    """
    import numpy as np

    from scgen_diffusion.data import as_label, as_labels

    is_chosen = np.ones(len(obs), dtype=bool)
    for name, value in where.items():
        if name not in obs:
            msg = in_shell(f"--where: obs has no column {name!r}. {known_names(name, list(obs))}")
            raise click.UsageError(msg)
        labels = as_labels(obs[name]).where(obs[name].notna())
        known = list(labels.dropna().unique())
        are_text = any(isinstance(found, str) for found in obs[name].unique())
        wanted = value if isinstance(value, list) else [value]
        wanted = wanted if are_text else [as_label(number_or_text(each)) for each in wanted]  # 1 for 1.0
        if unknown := [each for each in wanted if each not in known]:
            msg = f"--where: no cell has {unknown[0]!r} in {name!r}. {known_names(unknown[0], known)}"
            raise click.UsageError(msg)
        is_chosen &= labels.isin(wanted).to_numpy()
    if not is_chosen.any():
        msg = f"--where: no cell has all of {dict(where)}."
        raise click.UsageError(msg)
    return np.flatnonzero(is_chosen)
