"""``scgen-diffusion generate``: from a folder with a model to a file with cells."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._cells import are_paired
from ._command import Option, command, existing, new, python_options
from ._outputs import check_new, check_place, whole
from ._progress_lines import bars_as_lines
from ._setup import read_table
from ._values import Keyed, number, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pandas as pd

    from ._terminal import Terminal

REQUEST, SAMPLING, OUTPUT = "Request", "Sampling", "Output"
LIBRARY_SIZE_COLUMN = "library_size_column"
PASSED_ON = (
    "n_cells",
    "composition",
    "guidance_interval",
    "guidance_rescale",
    "sampler",
    "n_steps",
    "counts",
    "batch_size",
    "seed",
    "shard_size",
    "rank",
    "n_ranks",
    "overwrite",
)
SUFFIXES = (".zarr", ".h5ad", ".h5mu")


def read_library_size(value: Any) -> Any:
    """Take a number of counts, or the name of a distribution."""
    try:
        return number(value)
    except ValueError:
        return text(value)


OF_REQUEST = [
    Option(
        ["--n-cells", "-n"], section=REQUEST, type=int, metavar="N", help="Number of cells; not needed with a table."
    ),
    Option(
        ["--condition", "-c"],
        section=REQUEST,
        type=Keyed(repeats=True),
        help="What the cells shall be, such as cell_type=NK. Several values of a key get equal shares of the cells; keys left out are drawn as "
        "they occur in training.",
    ),
    Option(
        ["--condition-table"],
        section=REQUEST,
        type=existing(dir_okay=False),
        help="A .csv or .tsv file with one row per cell and keys as columns, in place of --condition.",
    ),
    Option(
        ["--library-size"],
        section=REQUEST,
        type=Keyed(read_library_size, key="MODALITY", value="N|NAME", alone=True),
        help="Total counts of every cell, or a distribution: empirical, normal, latent.",
    ),
    Option(
        ["--library-size-column"],
        section=REQUEST,
        metavar="NAME",
        help="Column of the table with total counts, cell by cell.",
    ),
    Option(
        ["--counts"],
        section=REQUEST,
        is_flag=True,
        default=None,
        help="Counts from SCRDIT and WBDIT, not log-normalised values.",
    ),
]
OF_SAMPLING = [
    Option(
        ["--guidance-scale", "-g"],
        section=SAMPLING,
        type=Keyed(number, value="NUMBER", alone=True),
        help="1: conditional; more: more typical of the condition; one number, or one per key or subset of keys (KEY,KEY=NUMBER).",
    ),
    Option(["--composition"], section=SAMPLING, metavar="NAME", help="joint, mutually_exclusive or additive guidance."),
    Option(
        ["--guidance-interval"], section=SAMPLING, type=float, nargs=2, metavar="FROM TO", help="Times of guidance."
    ),
    Option(
        ["--guidance-rescale"],
        section=SAMPLING,
        type=float,
        metavar="SHARE",
        help="How far its spread is brought back.",
    ),
    Option(["--sampler"], section=SAMPLING, metavar="NAME", help="euler, midpoint, heun, dopri5, ddim, dpm_solver ..."),
    Option(["--n-steps"], section=SAMPLING, type=int, metavar="N", help="Steps of the sampler."),
    Option(
        ["--batch-size"], section=SAMPLING, type=int, metavar="N", help="Cells at a time. Does not change the cells."
    ),
    Option(
        ["--seed"],
        section=SAMPLING,
        type=int,
        metavar="N",
        default=0,
        show_default=True,
        help="The same seed, the same cells.",
    ),
    Option(["--accelerator"], section=SAMPLING, metavar="NAME", help="auto, cpu, gpu ... of Lightning."),
    Option(["--device"], section=SAMPLING, metavar="N", help="Which device."),
]
OF_OUTPUT = [
    Option(["--overwrite"], section=OUTPUT, is_flag=True, default=None, help="Replace cells of another request."),
    Option(["--shard-size"], section=OUTPUT, type=int, metavar="N", help="Cells of a part of the output."),
    Option(
        ["--rank"], section=OUTPUT, type=int, metavar="N", help="Number of this process, such as $SLURM_PROCID; from 0."
    ),
    Option(
        ["--n-ranks"],
        section=OUTPUT,
        type=int,
        metavar="N",
        help="How many processes share the work, such as $SLURM_NTASKS.",
    ),
]
EPILOG = (
    "The same command after Ctrl-C, SIGTERM or a crash goes on where that one stopped; .h5mu, which is made in memory, begins anew. With --n-ranks every process makes its share, and the last "
    "one puts the file together; the cells do not depend on the number of processes."
)


@command(
    "generate",
    click.Argument(["model"], type=existing(file_okay=False)),
    click.Argument(["out"], type=new()),
    *OF_REQUEST,
    *OF_SAMPLING,
    *OF_OUTPUT,
    short_help="Generate cells into a file.",
    excluding=[
        ("condition", "condition_table"),
        ("condition", LIBRARY_SIZE_COLUMN),
        ("library_size", LIBRARY_SIZE_COLUMN),
    ],
    epilog=EPILOG,
)
def generate(terminal: Terminal, options: dict[str, Any]) -> None:
    """Generate cells with the model in a folder, and write them into a file (.zarr, .h5ad; .h5mu for several modalities).

    scgen-diffusion generate my_model cells.zarr --n-cells 100000 --condition cell_type="CD4 T"
    """
    check_place(options["out"], suffixes=SUFFIXES, inputs=python_options(options, "model", "condition_table").values())
    if "condition" in options and "condition_table" in options:
        msg = "--condition and --condition-table exclude each other."
        raise click.UsageError(msg)
    if LIBRARY_SIZE_COLUMN in options and "condition_table" not in options:
        msg = "--library-size-column needs --condition-table, whose column it is."
        raise click.UsageError(msg)
    package = terminal.libraries()
    model = package.model.load(options["model"], adata=False, **_device(options))
    arguments = _arguments(model, options)
    is_paired = bool(getattr(model, "modalities", None))
    _check_suffix(options["out"], is_paired=is_paired)
    with bars_as_lines(terminal):
        if is_paired:
            _generate_paired(model, options, arguments)
        else:
            terminal.on_interrupt = "The same command goes on from the parts that are done."
            _check_known(model, model.generate_to, arguments)
            model.generate_to(options["out"], **arguments, show_progress=not terminal.quiet)
    if options["out"].exists():
        terminal.result(options["out"])
    else:
        terminal.say("This share is done; others are still to be made.")


def _generate_paired(model: Any, options: Mapping[str, Any], arguments: dict[str, Any]) -> None:
    """Write cells with several modalities, which are made in memory."""
    from scgen_diffusion.data import is_generated

    check_new(options["out"], overwrite=arguments.pop("overwrite", False))
    if options["out"].exists() and not is_generated(options["out"]):
        msg = f"{options['out']} holds something other than generated cells, which --overwrite does not replace; choose another name."
        raise click.UsageError(msg)
    _check_known(model, model.generate, arguments)
    cells = model.generate(**arguments, show_progress=True)
    with whole(options["out"]) as beside:
        cells.write_h5mu(beside)


def _check_suffix(path: Path, *, is_paired: bool) -> None:
    if is_paired != are_paired(path):
        what = (
            "a model of several modalities writes .h5mu"
            if is_paired
            else "a model of one modality writes .zarr or .h5ad"
        )
        msg = f"{path}: {what}."
        raise click.UsageError(msg)


def _device(options: Mapping[str, Any]) -> dict[str, Any]:
    chosen = python_options(options, "accelerator", "device")
    return {name: int(value) if value.isdecimal() else value for name, value in chosen.items()}


def _arguments(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Model.generate_to``; what was not given is left to it."""
    arguments = python_options(options, *PASSED_ON, "library_size")
    if "condition_table" in options:
        arguments |= _from_table(model, options)
    elif "condition" in options:
        arguments["condition"] = _typed(model, options["condition"])
    if "guidance_scale" in options:
        arguments["guidance_scale"] = _scale(options["guidance_scale"])
    return arguments


def _scale(given: Any) -> Any:
    """Return a guidance scale; a mapping whose keys name several condition keys has tuples of them."""
    if not isinstance(given, dict) or not any("," in key for key in given):
        return given
    return {tuple(part.strip() for part in key.split(",")): value for key, value in given.items()}


def _from_table(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    table = read_table(options["condition_table"], dtype=str, keep_default_na=False)
    column = options.get(LIBRARY_SIZE_COLUMN)
    sizes = {}
    if column is not None:
        if column not in table:
            msg = f"--library-size-column {column!r} is no column of the table; it has {list(table)}."
            raise click.UsageError(msg)
        sizes["library_size"] = [number(value) for value in table.pop(column)]
    return {"condition": _typed_table(model, table), **sizes}


def _typed_table(model: Any, table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    readers = _readers(model)
    return pd.DataFrame(
        {name: [readers.get(name, text)(value) for value in table[name]] for name in table}, dtype=object
    )


def _typed(model: Any, condition: Mapping[str, Any]) -> dict[str, Any]:
    readers = _readers(model)
    return {
        key: [readers.get(key, text)(v) for v in value] if isinstance(value, list) else readers.get(key, text)(value)
        for key, value in condition.items()
    }


def _readers(model: Any) -> dict[str, Callable[[Any], Any]]:
    """Return for each key how its values are read: classes that are no text are found by how they are written."""
    return {key.name: _reader(key) for key in model.conditions.by_key}


def _reader(key: Any) -> Callable[[Any], Any]:
    if key.kind == "continuous":
        return _number_or_text
    classes = {str(value): value for value in getattr(key, "values", ())}
    return lambda value: classes.get(str(value), value)


def _number_or_text(value: Any) -> Any:
    """Take a number; what is none is for the model to refuse, which says where."""
    try:
        return number(value)
    except ValueError:
        return value


def _check_known(model: Any, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    known = inspect.signature(function).parameters
    if unknown := [name for name in arguments if name not in known]:
        msg = f"--{unknown[0].replace('_', '-')} is not an option of {type(model).__name__}."
        if unknown[0] not in inspect.signature(model.generate_to).parameters:
            raise click.UsageError(msg)
        msg = f"--{unknown[0].replace('_', '-')} is for cells of one modality."
        raise click.UsageError(msg)
