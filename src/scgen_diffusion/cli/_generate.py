"""``scgen-diffusion generate``: from a folder with a model to a file with cells."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._files import write_atomically

from ._command import Keyed, command, existing, flag, given, new, number, number_or_text, option
from ._files import ANNDATA, MUDATA, check_place, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._terminal import Terminal

PASSED_ON = (
    "n_cells", "sampler", "n_steps", "counts", "library_size", "batch_size", "seed",
    "shard_size", "rank", "n_ranks", "overwrite",
)  # fmt: skip
OF_STREAMS = ("shard_size", "rank", "n_ranks", "overwrite")

SECTIONS = {
    "Request": [
        option("--n-cells -n", "Number of cells; not needed with a table.", int),
        option(
            "--condition -c",
            "What the cells shall be, such as cell_type=NK. Several values of a key get equal shares of the cells; keys left out are drawn as "
            "they occur in training.",
            Keyed(repeats=True),
        ),
        option(
            "--condition-table",
            "A .csv or .tsv file with one row per cell and keys as columns, in place of --condition.",
            existing(dir_okay=False),
        ),
        option(
            "--library-size",
            "Total counts of every cell, or a distribution: empirical, normal, latent.",
            Keyed("[MODALITY=]N|NAME", number_or_text),
        ),
        option("--library-size-column", "Column of the table with total counts, cell by cell.", metavar="NAME"),
        flag("--counts", "Whole counts, also from SCRDIT and WBDIT."),
    ],
    "Sampling": [
        option(
            "--guidance-scale -g",
            "1: conditional; more: more typical of the condition; one number, or one per key or subset of keys (KEY,KEY=NUMBER).",
            Keyed("[KEY=]NUMBER", number),
        ),
        option("--composition", "joint, mutually_exclusive or additive guidance.", metavar="NAME"),
        option("--guidance-interval", "Times of guidance.", float, "FROM TO", nargs=2),
        option("--guidance-rescale", "How far its spread is brought back.", float, "SHARE"),
        option("--sampler", "euler, midpoint, heun, dopri5, ddim, dpm_solver ...", metavar="NAME"),
        option("--n-steps", "Steps of the sampler.", int),
        option("--batch-size", "Cells at a time. Does not change the cells.", int),
        option("--seed", "The same seed, the same cells.", int, default=0),
        option("--accelerator", "auto, cpu, gpu ... of Lightning.", metavar="NAME"),
        option("--device", "Which device.", metavar="N"),
    ],
    "Output": [
        flag("--overwrite", "Replace cells of another request."),
        option("--shard-size", "Cells of a part of the output.", int),
        option("--rank", "Number of this process, such as $SLURM_PROCID; from 0.", int),
        option("--n-ranks", "How many processes share the work, such as $SLURM_NTASKS.", int),
    ],
}


@command(
    "generate",
    [click.Argument(["model"], type=existing(file_okay=False)), click.Argument(["out"], type=new())],
    SECTIONS,
    excluding=[
        ("condition", "condition_table"),
        ("condition", "library_size_column"),
        ("library_size", "library_size_column"),
    ],
    short_help="Generate cells into a file.",
    epilog="The same command after Ctrl-C, SIGTERM or a crash goes on where that one stopped; .h5mu, which is made in memory, begins anew. "
    "With --n-ranks every process makes its share, and the last one puts the file together; the cells do not depend on the number of processes.",
)
def generate(terminal: Terminal, options: dict[str, Any]) -> None:
    """Generate cells with the model in a folder, and write them into a file (.zarr, .h5ad; .h5mu for several modalities).

    scgen-diffusion generate my_model cells.zarr --n-cells 100000 --condition cell_type="CD4 T"
    """
    out = options["out"]
    check_place(out, suffixes=(".zarr", ".h5ad", MUDATA), inputs=given(options, "model", "condition_table").values())
    if "condition" in options and "condition_table" in options:
        msg = "--condition and --condition-table exclude each other."
        raise click.UsageError(msg)
    if "library_size_column" in options and "condition_table" not in options:
        msg = "--library-size-column needs --condition-table, whose column it is."
        raise click.UsageError(msg)
    package = terminal.libraries()
    device = {name: number_or_text(value) for name, value in given(options, "accelerator", "device").items()}
    model = package.model.load(options["model"], adata=False, **device)
    arguments = _arguments(model, options)
    if not getattr(model, "modalities", None):
        if out.suffix not in ANNDATA:
            msg = f"{out}: a model of one modality writes .zarr or .h5ad."
            raise click.UsageError(msg)
        terminal.on_interrupt = "The same command goes on from the parts that are done."
        _check_known(model, model.generate_to, arguments)
        model.generate_to(out, **arguments, show_progress=not terminal.quiet)
    else:  # made in memory
        if out.suffix != MUDATA:
            msg = f"{out}: a model of several modalities writes .h5mu."
            raise click.UsageError(msg)
        check_place(out, overwrite=arguments.pop("overwrite", False))
        if out.exists() and not package.data.is_generated(out):
            msg = f"{out} holds something other than generated cells, which --overwrite does not replace; choose another name."
            raise click.UsageError(msg)
        _check_known(model, model.generate, arguments)
        cells = model.generate(**arguments, show_progress=not terminal.quiet)
        with write_atomically(out) as beside:
            cells.write_h5mu(beside)
    if out.exists():
        terminal.result(out)
    else:
        terminal.say("This share is done; others are still to be made.")


def _arguments(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Model.generate_to``; what was not given is left to it."""
    arguments = given(options, *PASSED_ON)
    keys = {key.name: key for key in model.conditions.by_key}
    if "condition_table" in options:
        table = read_table(options["condition_table"], dtype=str, keep_default_na=False)
        column = options.get("library_size_column")
        if column is not None:
            if column not in table:
                msg = f"--library-size-column {column!r} is no column of the table; it has {list(table)}."
                raise click.UsageError(msg)
            arguments["library_size"] = [number(value) for value in table.pop(column)]
        columns = {name: [_value(keys.get(name), value) for value in table[name]] for name in table}
        arguments["condition"] = type(table)(columns, dtype=object)
    elif "condition" in options:
        arguments["condition"] = {
            key: [_value(keys.get(key), v) for v in value] if isinstance(value, list) else _value(keys.get(key), value)
            for key, value in options["condition"].items()
        }
    if guidance := _guidance(options):
        arguments["guidance_scale"] = guidance
    return arguments


def _guidance(options: Mapping[str, Any]) -> Any:
    """Return the guidance that was asked for, if any."""
    from scgen_diffusion.diffusion import Guidance

    names = {
        "guidance_scale": "scale",
        "composition": "composition",
        "guidance_interval": "interval",
        "guidance_rescale": "rescale",
    }
    asked = {names[name]: value for name, value in given(options, *names).items()}
    scale = asked.get("scale")
    if isinstance(scale, dict) and any("," in key for key in scale):  # keys are subsets of the conditions
        asked["scale"] = {tuple(part.strip() for part in key.split(",")): value for key, value in scale.items()}
    return Guidance(**asked) if asked else None


def _value(key: Any, written: str) -> Any:
    """Read a value of a condition: a number, or the class that is written so; what is neither is for the model to refuse."""
    if getattr(key, "kind", None) == "continuous":
        return number_or_text(written)
    return {str(value): value for value in getattr(key, "values", ())}.get(str(written), written)


def _check_known(model: Any, function: Any, arguments: Mapping[str, Any]) -> None:
    unknown = [name for name in arguments if name not in inspect.signature(function).parameters]
    if unknown:
        elsewhere = unknown[0] in OF_STREAMS
        reason = "is for cells of one modality" if elsewhere else f"is not an option of {type(model).__name__}"
        msg = f"--{unknown[0].replace('_', '-')} {reason}."
        raise click.UsageError(msg)
