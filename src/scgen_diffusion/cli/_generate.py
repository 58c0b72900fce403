"""``scgen-diffusion info`` and ``generate``: describe a model, and generate cells to a file."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import known_names, list_first
from scgen_diffusion._files import parts_folder

from ._command import Keyed, Model, command, existing, flag, given, new, number, number_or_text, option
from ._files import ANNDATA, MUDATA, check_place, read_cells, read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from ._terminal import Terminal

PASSED_ON = (
    "n_cells", "sampler", "n_steps", "counts", "library_size", "batch_size", "seed",
    "shard_size", "rank", "n_ranks", "overwrite",
)  # fmt: skip
GUIDANCE = ("guidance_scale", "guidance_interval", "guidance_rescale")
EXCLUSIVE = [("condition", "condition_table"), ("library_size", "library_size_column")]
N_NAMED = 20
SIZES = (
    "n_latent_tokens", "n_latent", "width", "n_layers", "n_heads", "prior_width", "prior_n_layers", "prior_n_heads",
)  # fmt: skip

TABLE = option(
    "--condition-table",
    "A .csv or .tsv file with a row per cell, keys as columns (spatial_0, spatial_1 of an array); or cells (.h5ad, "
    ".zarr, .h5mu), for as many new cells under the same conditions.",
    existing(),
)
LIBRARY_SIZE = option(
    "--library-size", "Total counts, or empirical, normal, latent.", Keyed("[MODALITY=]N|NAME", number_or_text)
)
COUNTS = flag("--counts", "Return integer counts, also from SCRDIT and WBDIT.")
SAMPLING = [
    option(
        "--guidance-scale -g",
        "Strength of the condition (default: 1): a number, or one per key.",
        Keyed("[KEY=]NUMBER", number),
    ),
    option("--guidance-interval", "Times between which guidance is used.", float, "FROM TO", nargs=2),
    option("--guidance-rescale", "How far to restore the spread of predictions.", float, "SHARE"),
    option("--sampler", "Sampler: euler, midpoint, heun, ddim, dpm_solver ...", metavar="NAME"),
    option("--n-steps", "Steps of the sampler.", int),
    option("--batch-size", "Cells at a time. It does not change the cells.", int),
    option("--seed", "Same seed, same cells.", int, default=0),
    option("--accelerator", "Accelerator of Lightning: auto, cpu, gpu ...", metavar="NAME"),
    option("--device", "Index of the device.", number_or_text, "N"),
]
OUTPUT = [
    flag("--overwrite", "Replace cells of another request."),
    option("--shard-size", "Cells per part of the output. After an interruption, only finished parts are kept.", int),
    option("--rank", "Index of this process from 0, such as $SLURM_PROCID.", int),
    option("--n-ranks", "Number of processes, such as $SLURM_NTASKS.", int),
]
SECTIONS = {
    "Request": [
        option("--n-cells -n", "Number of cells; not needed with a table.", int),
        option(
            "--condition -c",
            "Condition such as cell_type=NK or spatial=120,85; several values get equal shares; repeat one for more.",
            Keyed(repeats=True),
        ),
        TABLE,
        LIBRARY_SIZE,
        option(
            "--library-size-column", "Column of the table, or of obs, with each cell's total counts.", metavar="NAME"
        ),
        COUNTS,
    ],
    "Sampling": SAMPLING,
    "Output": OUTPUT,
}


@command(
    "generate",
    [click.Argument(["model"], type=Model()), click.Argument(["out"], type=new())],
    SECTIONS,
    short_help="Generate cells to a file.",
    epilog="After Ctrl-C, SIGTERM or a crash, run the same command again to resume. With --n-ranks, "
    "each process makes its share and the last one joins them; the cells do not depend on the number of processes.",
)
def generate(terminal: Terminal, options: dict[str, Any]) -> None:
    """Generate cells with a model, and write them into a file (.zarr, .h5ad; .h5mu for several modalities).

    MODEL is a folder, or the name of a pretrained model: pbmc3k, kang_ifnb or pbmc10k_citeseq.

    scgen-diffusion generate pbmc3k cells.h5ad --n-cells 1000 --condition cell_type=B
    """
    out = options["out"]
    if "library_size_column" in options and "condition_table" not in options:
        msg = "--library-size-column needs --condition-table."
        raise click.UsageError(msg)
    if not {"n_cells", "condition_table"} & set(options):
        msg = "--n-cells is needed, unless there is a --condition-table with a row per cell."
        raise click.UsageError(msg)
    model = load_for(terminal, options)
    arguments = given(options, *PASSED_ON) | read_conditions(model, options) | read_guidance(options)
    terminal.on_interrupt = "Run the same command again to resume."
    finish(terminal, model.generate_to(out, **arguments, show_progress=not terminal.quiet), options)


def load_for(terminal: Terminal, options: Mapping[str, Any], inputs: Sequence[Path] = ()) -> Any:
    """Check the options that name files, and load the model.

    Raises
    ------
    click.UsageError
        If the output cannot be written, has the suffix of another kind of model, or conditions are given twice.
    """
    out = options["out"]
    needed = [*inputs, *given(options, "model", "condition_table").values()]
    check_place(out, suffixes=(".zarr", ".h5ad", MUDATA), inputs=needed)
    for one, other in EXCLUSIVE:
        if one in options and other in options:
            msg = f"--{one.replace('_', '-')} and --{other.replace('_', '-')} exclude each other."
            raise click.UsageError(msg)
    package = terminal.libraries()
    model = package.model.load(options["model"], adata=False, **given(options, "accelerator", "device"))
    has_modalities = bool(model.modalities)
    if (out.suffix == MUDATA) is not has_modalities:
        what = "several modalities writes .h5mu" if has_modalities else "one modality writes .zarr or .h5ad"
        msg = f"{out} has the wrong suffix: a model of {what}."
        raise click.UsageError(msg)
    return model


def finish(terminal: Terminal, out: Path, options: Mapping[str, Any]) -> bool:
    """Print the path of the cells, or say that other processes are still at work; return whether there are cells."""
    # several processes: with --overwrite, former cells may still be there; one: parts are those of another request
    is_whole = out.exists() and (options.get("n_ranks", 1) == 1 or not parts_folder(out).exists())
    if is_whole:
        terminal.result(out)
    else:
        terminal.say("This process is done; other processes are still at work.")
    return is_whole


def read_conditions(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given ``condition``, and the ``library_size`` of a table or of cells."""
    from scgen_diffusion.data import as_label

    by_key = model.conditions.by_key
    kinds = {column: "continuous" for key in by_key for column in getattr(key, "table_columns", ())}
    kinds |= {key.name: key.kind for key in by_key}
    # 1 means 1.0 too: a missing value makes floats of integers
    by_text = {
        key.name: {as_text(value): value for as_text in (as_label, str) for value in getattr(key, "values", ())}
        for key in by_key
    }

    def read(name: str, written: str) -> Any:
        """Read a value of a condition: numbers, or a class with this text; the model refuses others."""
        if kinds.get(name) == "array":
            return [number_or_text(part) for part in written.strip("[] ").split(",")]
        if kinds.get(name) == "continuous":
            return number_or_text(written)
        known = by_text.get(name, {})
        if written in known:
            return known[written]
        same = known.get(as_label(number_or_text(written)))  # a table may have 1.0 for 1
        return written if same is None or isinstance(same, str) else same

    if "condition_table" in options:
        return _read_table_of_conditions(model, options, kinds, read)
    found = {
        name: [read(name, each) for each in value] if isinstance(value, list) else read(name, value)
        for name, value in options.get("condition", {}).items()
    }
    return {"condition": found} if found else {}


def _read_table_of_conditions(
    model: Any, options: Mapping[str, Any], known: Collection[str], read: Callable[[str, str], Any]
) -> dict[str, Any]:
    """Return ``condition`` and ``library_size`` of a table, or of cells, whose columns of conditions are ``known``."""
    path, column = options["condition_table"], options.get("library_size_column")
    are_cells = path.suffix in (*ANNDATA, MUDATA)
    if are_cells:
        cells = read_cells(path, backed=True)
        table = model.conditions.as_table(cells)
        if column in cells.obs:
            table[column] = cells.obs[column]
    else:
        table = read_table(path, dtype=str, keep_default_na=False)
    found: dict[str, Any] = {}
    if column is not None:
        if column not in table:
            known_columns = list(cells.obs if are_cells else table)
            msg = f"--library-size-column {column!r} is not a column of the table, which has {known_columns}."
            raise click.UsageError(msg)
        try:
            found["library_size"] = [number(str(value)) for value in table[column]]
        except ValueError as error:
            msg = f"--library-size-column {column!r} needs a number in every row: {error}."
            raise click.UsageError(msg) from error
        if column not in known:
            del table[column]
    if unknown := [name for name in table if name not in known]:
        msg = (
            f"--condition-table has the column {unknown[0]!r}, which is no key of the model. "
            f"{known_names(unknown[0], list(known))} Rename the column, or remove it."
        )
        raise click.UsageError(msg)
    if not are_cells:  # these have values as they are, not text
        table = type(table)({name: [read(name, value) for value in table[name]] for name in table}, dtype=object)
    return found | {"condition": table}


def read_guidance(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given guidance as ``guidance_scale``."""
    from scgen_diffusion.diffusion import Guidance

    guidance = {name.removeprefix("guidance_"): value for name, value in given(options, *GUIDANCE).items()}
    return {"guidance_scale": Guidance(**guidance)} if guidance else {}


@command(
    "info",
    [click.Argument(["model"], type=Model())],
    {"Output": [flag("--json", "For scripts: everything, as JSON.")]},
    short_help="Describe a model.",
)
def info(terminal: Terminal, options: dict[str, Any]) -> None:
    """Show what a model is: class, genes, conditions and their values, architecture, training.

    MODEL is a folder, or the name of a pretrained model: pbmc3k, kang_ifnb or pbmc10k_citeseq.
    """
    from scgen_diffusion.data import mark_occurring

    model = terminal.libraries().model.load(options["model"], adata=False, accelerator="cpu")
    conditions, controls = {}, model.control_values_
    for key in model.conditions.by_key:
        names = ("kind", "values", "members", "columns", "low", "high", "separator")
        parts = {name: getattr(key, name, None) for name in names} | {"control": controls.get(key.name)}
        conditions[key.name] = {name: value for name, value in parts.items() if value is not None}
    if options.get("json"):
        terminal.result(_as_json(model, conditions))
        return
    terminal.result(str(model).partition("\n  next:")[0])  # the rest says what to do in Python
    keys = model.conditions.by_key
    for key, occur in zip(keys, mark_occurring(keys, model.combinations_), strict=True):
        known = [label for label, occurs in zip(key.labels, occur, strict=True) if occurs]
        # the control of a set is the empty one, which occurs as no label
        lacking = [label for label in key.labels if label not in {*known, controls.get(key.name)}]
        for which, values in (("", known), (" without training cells", lacking)):
            if values:
                terminal.result(f"  values of {key.name}{which}: {list_first(values, N_NAMED)}")
    terminal.result(f"  architecture: {_architecture(model)}")
    if training := _training(model):
        terminal.result(f"  training: {training}")
    model_name = shlex.quote(str(options["model"]))
    suffix = MUDATA if model.modalities else ".h5ad"
    short = [stage for stage, how in model.cut_short_.items() if stage != "transport" and how != "stopped"]
    if short or not model.is_trained_:
        terminal.result("  next: run the same `scgen-diffusion train` command with --overwrite, without --max-epochs")
        return
    terminal.result(f"  next: scgen-diffusion generate {model_name} cells{suffix} --n-cells 1000")
    if "transport" in model.trained_stages_:
        before, after = (
            " ".join(f"{option} {shlex.quote(f'{name}={value}')}" for name, value in values.items())
            for option, values in {"--where": controls, "--condition": _perturbed(model, controls)}.items()
        )
        files = f"control{suffix} predicted{suffix}"
        terminal.result(f"    or: scgen-diffusion predict {model_name} {files} {before} {after}")


def _as_json(model: Any, conditions: Mapping[str, Any]) -> str:
    """Return everything about a model as JSON."""
    described = {
        "class": type(model).__name__,
        "trained": bool(model.is_trained_),
        "n_genes": int(model.summary_stats.n_vars),
        "n_cells": int(model.summary_stats.n_cells),
        "values": model.registry_["setup_args"].get("values", "counts"),
        "modalities": {name: m.likelihood for name, m in model.modalities.items()},
        "conditions": conditions,
        "n_combinations": len(model.conditions.combinations),
        "architecture": asdict(model.architecture),
        "recipes": dict(model.recipes_),
        "final_losses": {
            f"{stage}_loss_{kind}": float(table.iloc[-1, 0])
            for stage in model.trained_stages_
            for kind, table in _losses(model, stage).items()
        },
    }
    return json.dumps(described, indent=2, default=str)


def _architecture(model: Any) -> str:
    """Return the size of the networks, and the numbers that make it."""
    values = asdict(model.architecture)
    n_weights = sum(weights.numel() for weights in model.module.parameters())
    shown = [f"{name}={values[name]}" for name in SIZES if values.get(name) is not None]
    return f"{n_weights:,} weights; {', '.join(shown)} (all: --json)"


def _training(model: Any) -> str:
    """Return the epochs, the last loss and the seed of each stage, and what the transport paired cells within."""
    parts = []
    for stage in model.trained_stages_:
        losses = _losses(model, stage)
        found = [f"{kind} loss {table.iloc[-1, 0]:.4g}" for kind, table in losses.items()]
        if (seed := model.recipes_.get(stage, {}).get("seed")) is not None:
            found.append(f"seed {seed}")
        if keys := model.recipes_.get(stage, {}).get("match_keys"):
            found.append(f"pairs within {', '.join(keys)}")
        if "train" in losses:
            parts.append(f"{stage} {len(losses['train'])} epochs ({', '.join(found)})")
    return "; ".join(parts)


def _losses(model: Any, stage: str) -> dict[str, pd.DataFrame]:
    """Return the training and the validation loss of a stage, as far as there are any."""
    from scgen_diffusion.train import AutoencoderPlan, DiffusionPlan, PriorPlan, TransportPlan

    key_parts = {plan.name: plan.key_part for plan in (AutoencoderPlan, PriorPlan, TransportPlan, DiffusionPlan)}
    names = {kind: f"{stage}_{key_parts[stage]}_{kind}" for kind in ("train", "validation")}
    return {kind: model.history_[name] for kind, name in names.items() if name in (model.history_ or {})}


def _perturbed(model: Any, controls: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value of each key that perturbs, other than that of control cells; dots for numbers and sets."""
    values = {key.name: getattr(key, "values", ()) for key in model.conditions.by_key}
    return {
        name: next((value for value in values[name] if value != control), "...") for name, control in controls.items()
    }
