"""``scgen-diffusion train``: from files with cells to a folder with a model."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._files import remove, write_atomically

from ._command import Keyed, columns, command, existing, flag, given, new, option, scalar, toml_value, whole_number
from ._files import (
    COMMAND_FILE,
    MUDATA,
    TABLES,
    about,
    check_place,
    check_replaced,
    read_cells,
    read_table,
)
from ._terminal import ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from lightning.pytorch.callbacks import Callback
    from mudata import MuData

    from ._terminal import Terminal

MODELS = ("SCLDM", "MULTISCLDM", "SCRDIT", "WBDIT")
STAGES = ("autoencoder", "prior", "transport", "diffusion")
OF_WINDOWS = ("shared_genes", "window_size", "block_size")
LARGEST_SEED = 2**32 - 1
OF_TRAIN = (
    "max_epochs", "batch_size", "train_size", "validation_size", "early_stopping", "early_stopping_patience", "check_val_every_n_epoch",
    "compile", "accelerator", "num_nodes", "strategy", "precision",
)  # fmt: skip


def read_devices(value: Any) -> int | list[int] | str:
    """Take a number of devices, a list of their numbers, or a name."""
    written = str(value)
    if written.lstrip("-").isdecimal():
        return int(written)
    parts = [part.strip() for part in written.strip("[] ").split(",") if part.strip()]
    return [int(part) for part in parts] if parts and all(part.isdecimal() for part in parts) else written


SECTIONS = {
    "Cells": [
        option("--layer -l", "Layer that holds the values; X by default.", Keyed("[MODALITY=]NAME")),
        columns("--condition -c", "Column of obs with classes to generate by. As often as needed."),
        columns("--continuous-condition", "Column of numbers to generate by: dose, time, age."),
        option(
            "--set-condition",
            'Column of sets such as "A+B", such as combined perturbations; the separator is + if none is given.',
            Keyed("COLUMN[=SEPARATOR]"),
        ),
        option("--control", "What is written for unperturbed cells in a column.", Keyed("COLUMN=VALUE", scalar)),
        option(
            "--condition-embedding",
            "Known vectors of the values of a column: a .csv or .tsv file, its first column the values, or an entry of uns.",
            Keyed("COLUMN=TABLE"),
        ),
        option("--values", "What the layer holds; counts by default.", click.Choice(["counts", "log1p"])),
        option(
            "--modality",
            "Modality of .h5mu to train on, and what explains its values; all by default.",
            Keyed("NAME[=LIKELIHOOD]"),
        ),
        flag(
            "--backed",
            "Read the cells from the files window by window, for what does not fit in memory; always so for several files.",
        ),
        flag("--shared-genes", "Of several files take the genes that all have."),
        option("--window-size", "Cells in memory together, if they are read from files.", int),
        option("--block-size", "Neighbouring cells that are read together.", int),
    ],
    "Model": [
        option("--model -m", "Class of the model.", click.Choice(MODELS), default=MODELS[0]),
        option("--size", "Architecture: ours, or the paper's.", click.Choice(["default", "published"])),
        option(
            "--set architecture",
            "One part or size of the architecture, such as n_latent=16.",
            Keyed("KEY=VALUE", toml_value),
        ),
    ],
    "Training": [
        option(
            "--max-epochs -e",
            "Epochs of all stages, or of one (autoencoder, prior, transport); from the number of cells by default.",
            Keyed("[STAGE=]N", whole_number),
        ),
        option("--batch-size", "Cells per step.", int),
        option("--train-size", "Share of cells to train on.", float, "SHARE"),
        option("--validation-size", "Share of cells to validate on.", float, "SHARE"),
        flag("--early-stopping", "Stop a stage when its validation loss falls no more."),
        option("--early-stopping-patience", "Validations to wait for that.", int),
        option("--check-val-every-n-epoch", "Epochs between validations.", int),
        option("--seed", "Decides the split and all random draws.", click.IntRange(0, LARGEST_SEED), "N", default=0),
        flag("--compile", "Compile the networks (torch.compile)."),
        option("--accelerator", "auto, cpu, gpu ... of Lightning.", metavar="NAME"),
        option("--devices", "How many devices, or which.", metavar="N|I,J"),
        option("--num-nodes", "Machines of a distributed run.", int),
        option("--strategy", "ddp for several devices.", metavar="NAME"),
        option("--precision", "32-true, bf16-mixed ...", metavar="NAME"),
        option(
            "--autoencoder",
            "Change of the autoencoder's recipe (SCLDM), such as learning_rate=1e-3.",
            Keyed("KEY=VALUE", toml_value),
        ),
        option("--prior", "Change of the prior's recipe (SCLDM).", Keyed("KEY=VALUE", toml_value)),
        option("--recipe", "Change of the recipe (SCRDIT, WBDIT).", Keyed("KEY=VALUE", toml_value)),
        option("--trainer", "Further option of Lightning's trainer.", Keyed("KEY=VALUE", toml_value)),
    ],
    "Output": [
        option("--out -o", "Folder of the model.", new(file_okay=False), required=True),
        flag("--overwrite", "Replace the model if one is there; no other folder."),
        flag("--save-cells", "Save the training cells with the model."),
        option(
            "--checkpoint-dir",
            "Folder of checkpoints, from which the same command goes on. Default: a hidden one beside the model, removed at the end.",
            new(file_okay=False),
        ),
        flag("--no-checkpoints", "Keep none."),
        flag("--restart", "Begin anew, whatever checkpoints there are."),
    ],
}


@command(
    "train",
    [click.Argument(["cells"], nargs=-1, required=True, type=existing())],
    SECTIONS,
    excluding=[("checkpoint_dir", "no_checkpoints")],
    short_help="Train a model on files of cells.",
    epilog="After Ctrl-C or SIGTERM (exit code 130 or 143) or a crash the same command goes on from the last checkpoint.",
)
def train(terminal: Terminal, options: dict[str, Any]) -> None:
    """Train a model on the cells of one or several files (.h5ad, .zarr, .h5mu), and write it into a folder.

    scgen-diffusion train cells.h5ad --layer counts --condition cell_type --out my_model
    """
    out, paths = options["out"], options["cells"]
    needed = [*paths, *given(options, "checkpoint_dir").values()]
    check_place(out, overwrite=options.get("overwrite", False), inputs=needed)
    checkpoints = _checkpoint_dir(options)
    package = terminal.libraries()

    from lightning.pytorch.utilities import rank_zero_only
    from scvi import settings

    check_replaced(package, out)
    settings.seed = options["seed"]
    terminal.say(f"Reading {', '.join(map(str, paths))}")
    name = options["model"]
    model_class = getattr(package.model, "MULTISCLDM" if name == "SCLDM" and paths[0].suffix == MUDATA else name)
    architecture = given(options, "size") | options.get("architecture", {})
    if _reads_windows(options):
        _check_single_modality(options)
        windows = given(options, "layer", "values", "window_size", "block_size")
        genes = {"genes": "shared"} if options.get("shared_genes") else {}
        data = {"datamodule": package.data.CellFiles(list(paths), **_conditions(options), **windows, **genes)}
        model = model_class(registry=data["datamodule"].registry, **architecture)
    else:
        data, cells = {}, read_cells(paths[0])
        with about(paths[0]):
            _set_up(model_class, cells, options)
        model = model_class(cells, **architecture)
    _summarise(terminal, model)
    started = time.monotonic()
    if checkpoints is not None:
        terminal.on_interrupt = f"The checkpoints are in {checkpoints}; the same command goes on from there."
    watch, interrupted = _watch(terminal)
    defaults = {"enable_progress_bar": not terminal.quiet, "enable_model_summary": False, "callbacks": [watch]}
    model.train(**{**defaults, **_arguments(options)}, **data, checkpoint_dir=checkpoints)
    if interrupted.is_set():  # the stage ended in order, and the others were left out
        raise terminal.stopped(ExitCode.INTERRUPTED)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    check_place(out, overwrite=options.get("overwrite", False), inputs=needed)  # hours may have passed
    check_replaced(package, out)
    with write_atomically(out) as beside:
        model.save(beside, save_anndata=options.get("save_cells", False))
        (beside / COMMAND_FILE).write_text(train.as_toml(options), encoding="utf-8")
    if checkpoints is not None and "checkpoint_dir" not in options:
        remove(checkpoints)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    terminal.say(f"Trained in {minutes} min {seconds} s. Written:")
    terminal.result(out)


def _checkpoint_dir(options: Mapping[str, Any]) -> Path | None:
    """Return the folder of checkpoints, empty if the training shall begin anew."""
    if options.get("no_checkpoints"):
        if "checkpoint_dir" in options:
            msg = "--no-checkpoints and --checkpoint-dir exclude each other."
            raise click.UsageError(msg)
        return None
    out = options["out"].absolute()
    folder = options.get("checkpoint_dir", out.with_name(f".{out.name}.checkpoints"))
    if options.get("restart"):
        for stage in STAGES:  # a folder of yours may hold the checkpoints of others
            (folder / f"{stage}.ckpt").unlink(missing_ok=True)
    return folder


def _reads_windows(options: Mapping[str, Any]) -> bool:
    """Tell whether cells stay in their files."""
    windows = len(options["cells"]) > 1 or options.get("backed", False)
    unused = [name for name in OF_WINDOWS if name in options and not windows]
    msg = ""
    if windows and any(path.suffix == MUDATA for path in options["cells"]):
        msg = "Several modalities (.h5mu) are read into memory, and from one file."
    elif windows and options.get("save_cells"):
        msg = "--save-cells is for cells in memory; those of several files, or with --backed, stay where they are."
    elif unused:
        msg = f"--{unused[0].replace('_', '-')} is for cells that stay in their files: several files, or --backed."
    if msg:
        raise click.UsageError(msg)
    return windows


def _set_up(model_class: Any, cells: AnnData | MuData, options: Mapping[str, Any]) -> None:
    """Register cells in memory with a model class."""
    from mudata import MuData

    if not isinstance(cells, MuData):
        _check_single_modality(options)
        model_class.setup_anndata(cells, **_conditions(options), **given(options, "layer", "values"))
        return
    if not hasattr(model_class, "setup_mudata"):
        msg = f"{model_class.__name__} reads one modality, not .h5mu; MULTISCLDM reads several."
        raise click.UsageError(msg)
    if "values" in options:
        msg = "--values is for .h5ad and .zarr; the modalities of .h5mu hold counts."
        raise click.UsageError(msg)
    names = {"layer": "layers", "modality": "modalities"}
    arguments = {names[name]: value for name, value in given(options, *names).items()}
    model_class.setup_mudata(cells, **_conditions(options), **arguments)


def _check_single_modality(options: Mapping[str, Any]) -> None:
    if "modality" in options or isinstance(options.get("layer"), dict):
        msg = "--modality, and --layer with a modality, are for .h5mu files."
        raise click.UsageError(msg)


def _conditions(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``setup_anndata`` that say what is a condition."""
    arguments: dict[str, Any] = {
        f"{name}_keys": list(value) for name, value in given(options, "condition", "continuous_condition").items()
    }
    if "control" in options:
        arguments["control_values"] = options["control"]
    if "set_condition" in options:
        arguments["set_condition_keys"] = {key: value or "+" for key, value in options["set_condition"].items()}
    if "condition_embedding" in options:
        tables = options["condition_embedding"].items()
        arguments["condition_embeddings"] = {key: _embedding(table) for key, table in tables}
    return arguments


def _embedding(table: str) -> pd.DataFrame | str:
    path = Path(table)
    return read_table(path, index_col=0) if path.suffix in TABLES else table


def _summarise(terminal: Terminal, model: Any) -> None:
    keys = [f"{name} ({len(values)})" for name, values in model.conditions.categories.items()]
    keys += [name for name in model.conditions.keys if name not in model.conditions.categories]
    conditions = f"conditions: {', '.join(keys)}" if keys else "no conditions"
    stats = model.summary_stats
    terminal.say(f"{type(model).__name__} of {stats.n_cells:,} cells and {stats.n_vars:,} genes; {conditions}")


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Model.train``; what was not given is left to it."""
    arguments = given(options, *OF_TRAIN) | options.get("trainer", {})
    if plan := options.get("recipe", {}) | given(options, "autoencoder", "prior"):
        arguments["plan_kwargs"] = plan
    if "devices" in options:
        arguments["devices"] = read_devices(options["devices"])
    return arguments


def _watch(terminal: Terminal) -> tuple[Callback, threading.Event]:
    """Return what says that a stage resumes and takes note of Ctrl-C, which ends a stage in order, and where it notes it."""
    from lightning.pytorch.callbacks import LambdaCallback

    interrupted = threading.Event()

    def on_train_start(trainer: Any, plan: Any) -> None:
        if trainer.current_epoch and trainer.is_global_zero:
            terminal.say(f"{plan.name}: going on after epoch {trainer.current_epoch}")
        if threading.current_thread() is not threading.main_thread():
            return
        stop = signal.getsignal(signal.SIGINT)

        def note_and_stop(*received: Any) -> None:
            interrupted.set()
            if callable(stop):
                stop(*received)

        signal.signal(signal.SIGINT, note_and_stop)

    return LambdaCallback(on_train_start=on_train_start), interrupted
