"""``scgen-diffusion info`` and ``generate``: what a model in a folder can be asked for, and its cells in a file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._files import write_atomically

from ._command import Keyed, Model, command, existing, flag, given, new, number, number_or_text, option
from ._files import MUDATA, check_place, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._terminal import Terminal

PASSED_ON = (
    "n_cells", "sampler", "n_steps", "counts", "library_size", "batch_size", "seed",
    "shard_size", "rank", "n_ranks", "overwrite",
)  # fmt: skip
OF_STREAMS = ("shard_size", "rank", "n_ranks")
GUIDANCE = {
    "guidance_scale": "scale",
    "composition": "composition",
    "guidance_interval": "interval",
    "guidance_rescale": "rescale",
}

N_NAMED = 20

SECTIONS = {
    "Request": [
        option("--n-cells -n", "Number of cells; not needed with a table.", int),
        option(
            "--condition -c", "Condition such as cell_type=NK; several values get equal shares.", Keyed(repeats=True)
        ),
        option(
            "--condition-table", "A .csv or .tsv file with a row per cell, keys as columns.", existing(dir_okay=False)
        ),
        option(
            "--library-size", "Total counts, or empirical, normal, latent.", Keyed("[MODALITY=]N|NAME", number_or_text)
        ),
        option("--library-size-column", "Column of the table with total counts, cell by cell.", metavar="NAME"),
        flag("--counts", "Whole counts, also from SCRDIT and WBDIT."),
    ],
    "Sampling": [
        option(
            "--guidance-scale -g",
            "Strength of the condition, 1 by default: a number, or one per key or set of keys (KEY,KEY=2).",
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
        option("--device", "Which device.", number_or_text, "N"),
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
    [click.Argument(["model"], type=Model()), click.Argument(["out"], type=new())],
    SECTIONS,
    short_help="Generate cells into a file.",
    epilog="The same command after Ctrl-C, SIGTERM or a crash goes on where that one stopped; .h5mu, which is made in memory, begins anew. "
    "With --n-ranks every process makes its share, and the last one puts the file together; the cells do not depend on the number of processes.",
)
def generate(terminal: Terminal, options: dict[str, Any]) -> None:
    """Generate cells with a model, and write them into a file (.zarr, .h5ad; .h5mu for several modalities).

    MODEL is a folder, or the name of a pretrained model: pbmc3k, kang_ifnb or pbmc10k_citeseq.

    scgen-diffusion generate pbmc3k cells.h5ad --n-cells 1000 --condition cell_type=B
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
    model = package.model.load(options["model"], adata=False, **given(options, "accelerator", "device"))
    arguments = _arguments(model, options)
    has_modalities = bool(getattr(model, "modalities", None))
    if (out.suffix == MUDATA) is not has_modalities:
        what = "several modalities writes .h5mu" if has_modalities else "one modality writes .zarr or .h5ad"
        msg = f"{out}: a model of {what}."
        raise click.UsageError(msg)
    if not has_modalities:
        terminal.on_interrupt = "The same command goes on from the parts that are done."
        model.generate_to(out, **arguments, show_progress=not terminal.quiet)
    else:  # made in memory
        if unused := list(given(options, *OF_STREAMS)):
            msg = f"--{unused[0].replace('_', '-')} is for cells of one modality."
            raise click.UsageError(msg)
        check_place(out, overwrite=arguments.pop("overwrite", False))
        if out.exists() and not package.data.is_generated(out):
            msg = f"{out} holds something other than generated cells, which --overwrite does not replace; choose another name."
            raise click.UsageError(msg)
        cells = model.generate(**arguments, show_progress=not terminal.quiet)
        with write_atomically(out) as beside:
            cells.write_h5mu(beside)
    if out.exists():
        terminal.result(out)
    else:
        terminal.say("This share is done; others are still to be made.")


def _arguments(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Model.generate_to``; what was not given is left to it."""
    from scgen_diffusion.diffusion import Guidance

    arguments = given(options, *PASSED_ON)
    keys = {key.name: key for key in model.conditions.by_key}

    def read(name: str, written: str) -> Any:
        """Read a value of a condition: a number, or the class that is written so; what is neither is for the model to refuse."""
        key = keys.get(name)
        if getattr(key, "kind", None) == "continuous":
            return number_or_text(written)
        return {str(value): value for value in getattr(key, "values", ())}.get(str(written), written)

    if "condition_table" in options:
        table = read_table(options["condition_table"], dtype=str, keep_default_na=False)
        column = options.get("library_size_column")
        if column is not None:
            if column not in table:
                msg = f"--library-size-column {column!r} is no column of the table; it has {list(table)}."
                raise click.UsageError(msg)
            arguments["library_size"] = [number(value) for value in table.pop(column)]
        columns = {name: [read(name, value) for value in table[name]] for name in table}
        arguments["condition"] = type(table)(columns, dtype=object)
    elif "condition" in options:
        arguments["condition"] = {
            name: [read(name, each) for each in value] if isinstance(value, list) else read(name, value)
            for name, value in options["condition"].items()
        }
    guidance = {GUIDANCE[name]: value for name, value in given(options, *GUIDANCE).items()}
    scale = guidance.get("scale")
    if isinstance(scale, dict) and any("," in key for key in scale):  # keys are subsets of the conditions
        guidance["scale"] = {tuple(part.strip() for part in key.split(",")): value for key, value in scale.items()}
    return arguments | ({"guidance_scale": Guidance(**guidance)} if guidance else {})


@command(
    "info",
    [click.Argument(["model"], type=Model())],
    {"Output": [flag("--json", "For scripts: everything, as JSON.")]},
    short_help="Say what a model is.",
)
def info(terminal: Terminal, options: dict[str, Any]) -> None:
    """Show what a model is: class, genes, conditions and their values, architecture, training.

    MODEL is a folder, or the name of a pretrained model: pbmc3k, kang_ifnb or pbmc10k_citeseq.
    """
    model = terminal.libraries().model.load(options["model"], adata=False, accelerator="cpu")
    conditions = {}
    for key in model.conditions.by_key:
        parts = {
            name: getattr(key, name, None)
            for name in ("kind", "values", "members", "low", "high", "separator", "control")
        }
        conditions[key.name] = {name: value for name, value in parts.items() if value is not None}
    if not options.get("json"):
        terminal.result(str(model))
        for name, key in conditions.items():
            if values := key.get("values") or key.get("members"):
                listed = ", ".join(map(str, values[:N_NAMED])) + (", ..." if len(values) > N_NAMED else "")
                terminal.result(f"  values of {name}: {listed}")
        return
    histories = (model.history_ or {}).items()
    described = {
        "class": type(model).__name__,
        "trained": bool(model.is_trained_),
        "n_genes": int(model.summary_stats.n_vars),
        "n_cells": int(model.summary_stats.n_cells),
        "values": model.registry_["setup_args"].get("values", "counts"),
        "modalities": {name: m.likelihood for name, m in getattr(model, "modalities", {}).items()},
        "conditions": conditions,
        "n_combinations": len(model.conditions.combinations),
        "architecture": asdict(model.architecture),
        "final_losses": {
            name: float(table.iloc[-1, 0]) for name, table in histories if name.split("_")[1:-1] == ["loss"]
        },
    }
    terminal.result(json.dumps(described, indent=2, default=str))
