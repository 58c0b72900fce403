"""``scgen-diffusion train``: from files of cells to a model folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import list_first
from scgen_diffusion._files import remove, write_atomically

from ._command import (
    Keyed,
    Model,
    columns,
    command,
    existing,
    flag,
    given,
    new,
    option,
    scalar,
    toml_value,
    whole_number,
)
from ._files import MUDATA, TABLES, check_place, check_replaced, read_cells, read_cells_of, read_table
from ._terminal import ExitCode, Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._terminal import Terminal

MODELS = ("SCLDM", "MULTISCLDM", "SCRDIT", "WBDIT")
MOST_NAMES = 1000
STAGES = ("autoencoder", "prior", "transport", "diffusion")
WINDOW_OPTIONS = ("shared_genes", "window_size", "block_size")
TRAINABLE = ("new_conditions", "conditions", "network", "all")
OF_REFERENCE = (  # what a fine-tuned model has from its reference
    "layer", "condition", "continuous_condition", "set_condition", "control", "unlabeled_category", "values",
    "modality", "size", "architecture", *WINDOW_OPTIONS,
)  # fmt: skip
LARGEST_SEED = 2**32 - 1
SETTING = Keyed("KEY=VALUE", toml_value)
TRAIN_OPTIONS = (
    "max_epochs", "batch_size", "train_size", "validation_size", "early_stopping", "compile", "accelerator",
    "devices", "num_nodes", "strategy", "precision",
)  # fmt: skip
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # those of `train`, which is slow to import


def read_devices(value: str) -> int | list[int] | str:
    """Read a number of devices, a list of their indices, or a name."""
    if value.lstrip("-").isdecimal():
        return int(value)
    parts = [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    return [int(part) for part in parts] if parts and all(part.isdecimal() for part in parts) else value


SECTIONS = {
    "Cells": [
        option("--layer -l", "Layer with the counts; default: X.", Keyed("[MODALITY=]NAME")),
        columns("--condition -c", "Column of obs with classes to condition on. Repeatable."),
        columns(
            "--continuous-condition",
            "Column of numbers (dose, age) or array of obsm (spatial) to condition on. Repeatable.",
        ),
        option("--set-condition", "Column of sets such as A+B; default separator: +.", Keyed("COLUMN[=SEPARATOR]")),
        option(
            "--control",
            "Value of unperturbed cells in a column; in quotes, a number or True is text: 'batch=\"0\"'.",
            Keyed("COLUMN=VALUE", scalar),
        ),
        option(
            "--condition-embedding",
            "Embedding of a column's values: a .csv or .tsv file, or an entry of uns.",
            Keyed("COLUMN=TABLE"),
        ),
        option("--unlabeled-category", "Value of cells without a label, which also train; so do NaN.", metavar="VALUE"),
        option("--values", "Kind of values in the layer; default: counts.", click.Choice(["counts", "log1p"])),
        option("--modality", "Modality of .h5mu and its likelihood; default: all.", Keyed("NAME[=LIKELIHOOD]")),
        flag("--backed", "Read cells from the file during training, if they do not fit into memory."),
        flag("--shared-genes", "Use the genes that all files have."),
        option("--window-size", "Cells in memory at a time, if they are read from files.", int),
        option("--block-size", "Neighbouring cells that are read together.", int),
    ],
    "Model": [
        option("--model -m", f"Class of the model; default: {MODELS[0]}.", click.Choice(MODELS)),
        option("--size", "Architecture: recommended, or of the paper.", click.Choice(["default", "published"])),
        option("--set architecture", "Option of the architecture, such as n_latent=16.", SETTING),
    ],
    "Fine-tuning": [
        option(
            "--reference", "Trained model to start from, which gives the options above: a folder or a name.", Model()
        ),
        option("--trainable", "What changes; default: new_conditions.", click.Choice(TRAINABLE)),
    ],
    "Training": [
        option(
            "--max-epochs -e", "Epochs of all stages, or of one, such as prior=20.", Keyed("[STAGE=]N", whole_number)
        ),
        option("--batch-size", "Cells per step, of all processes together.", int),
        option("--train-size", "Share of cells to train on.", float, "SHARE"),
        option("--validation-size", "Share of cells to validate on.", float, "SHARE"),
        flag("--early-stopping", "Stop a stage when its validation loss no longer falls."),
        option("--seed", "Seed of the split and all random draws.", click.IntRange(0, LARGEST_SEED), "N", default=0),
        flag("--compile", "Compile the networks (torch.compile)."),
        option("--accelerator", "Accelerator of Lightning: auto, cpu, gpu ...", metavar="NAME"),
        option("--devices", "Number of devices, or their indices.", read_devices, "N|I,J"),
        option("--num-nodes", "Number of machines of a distributed run.", int),
        option("--strategy", "Strategy of Lightning: ddp for several devices.", metavar="NAME"),
        option("--precision", "Precision: 32-true, bf16-mixed ...", click.Choice(PRECISIONS), "NAME"),
        option("--autoencoder", "Training option of the autoencoder (SCLDM), such as learning_rate=1e-3.", SETTING),
        option("--prior", "Training option of the prior (SCLDM).", SETTING),
        option("--recipe", "Training option (SCRDIT, WBDIT).", SETTING),
        option("--trainer", "Option of `train` in Python without a name here: early_stopping_patience=5.", SETTING),
    ],
    "Output": [
        option("--out -o", "Folder of the model.", new(file_okay=False), required=True),
        flag("--overwrite", "Replace an existing model; other folders are never replaced."),
        flag("--save-cells", "Save the training cells with the model."),
        option(
            "--checkpoint-dir",
            "Folder for checkpoints. Default: a hidden folder, removed at the end.",
            new(file_okay=False),
        ),
        flag("--restart", "Start again and ignore checkpoints."),
    ],
}


@command(
    "train",
    [click.Argument(["cells"], nargs=-1, required=True, type=existing())],
    SECTIONS,
    short_help="Train a model on files of cells.",
    epilog="After Ctrl-C, SIGTERM (exit code 130 or 143) or a crash, run the same command again to resume from the "
    "last checkpoint. Several files are always read during training, as with --backed.",
)
def train(terminal: Terminal, options: dict[str, Any]) -> None:
    """Train a model on the cells of one or several files (.h5ad, .zarr, .h5mu), and save it to a folder.

    scgen-diffusion train cells.h5ad --layer counts --condition cell_type --out my_model
    """
    out, paths = options["out"], options["cells"]
    stay_in_files = len(paths) > 1 or options.get("backed", False)
    has_modalities = any(path.suffix == MUDATA for path in paths)
    _check_options(options, stay_in_files=stay_in_files, has_modalities=has_modalities)
    inputs = [*paths, *given(options, "checkpoint_dir", "reference").values()]
    check_place(out, overwrite=options.get("overwrite", False), inputs=inputs)
    check_replaced(out)
    checkpoints = options.get("checkpoint_dir", out.absolute().with_name(f".{out.name}.checkpoints"))

    package = terminal.libraries()

    from scvi import settings

    from scgen_diffusion.train import RunOptions, is_interrupted

    how = RunOptions.of(**given(options, "accelerator", "devices", "num_nodes", "strategy"))
    terminal.quiet |= not how.check().is_global_zero
    settings.seed = options["seed"]
    terminal.say(f"Reading {list_first(paths)}")
    data: dict[str, Any] = {}
    if "reference" in options:
        model = _fine_tuned(package, options, stay_in_files=stay_in_files, has_modalities=has_modalities)
    else:
        model, data = _new(package, options, stay_in_files=stay_in_files, has_modalities=has_modalities)
    terminal.say(str(model).partition("\n  trained:")[0])  # the rest says what to do in Python

    arguments = given(options, *TRAIN_OPTIONS) | options.get("trainer", {})
    if plan := options.get("recipe", {}) | given(options, "autoencoder", "prior"):
        arguments["plan_kwargs"] = plan
    for stage in STAGES if options.get("restart") else ():  # the user's folder may hold other checkpoints too
        (checkpoints / f"{stage}.ckpt").unlink(missing_ok=True)
    terminal.on_interrupt = f"The checkpoints are in {checkpoints}; run the same command again to resume."
    arguments = {"enable_progress_bar": not terminal.quiet, **arguments, **data}
    try:
        model.train(**arguments, checkpoint_dir=checkpoints)
    finally:
        if checkpoints.is_dir() and not any(checkpoints.iterdir()):
            checkpoints.rmdir()
        if not any(checkpoints.glob("*.ckpt")):
            terminal.on_interrupt = "Nothing was saved, because there is no checkpoint."
    if is_interrupted(model.trainer):  # and stopped cleanly
        raise terminal.stopped(ExitCode.INTERRUPTED)
    if not model.trainer.is_global_zero:
        return

    place = _save(model, out, overwrite=options.get("overwrite", False), save_cells=options.get("save_cells", False))
    if "checkpoint_dir" not in options:
        remove(checkpoints)
    if place != out:
        msg = f"Something else was written to {out} during the training, and is kept. This model is in {place}."
        raise Stop(msg, ExitCode.FAILED)
    terminal.say("Written:")
    terminal.result(out)


def _save(model: Any, out: Path, *, overwrite: bool, save_cells: bool) -> Path:
    """Save a model, and return where: under another name if another training has taken this one meanwhile."""
    for place in (out, *(out.with_name(f"{out.name}-{number}") for number in range(2, MOST_NAMES))):
        with suppress(FileExistsError, click.UsageError):
            if overwrite:
                check_replaced(place)
            with write_atomically(place, overwrite=overwrite) as beside:
                model.save(beside, save_anndata=save_cells)
            return place
    msg = f"{out} and {MOST_NAMES - 2} names like it are taken."
    raise FileExistsError(msg)


def _new(
    package: Any, options: Mapping[str, Any], *, stay_in_files: bool, has_modalities: bool
) -> tuple[Any, dict[str, Any]]:
    """Return a new model, and the ``datamodule`` of cells that stay in files."""
    paths, name = options["cells"], options.get("model", MODELS[0])
    model_class = getattr(package.model, "MULTISCLDM" if name == "SCLDM" and has_modalities else name)
    architecture = given(options, "size") | options.get("architecture", {})
    setup = _setup_arguments(options, has_modalities)
    if not stay_in_files:
        cells = read_cells(paths[0])
        (model_class.setup_mudata if has_modalities else model_class.setup_anndata)(cells, **setup)
        return model_class(cells, **architecture), {}
    setup |= given(options, "window_size", "block_size") | ({"genes": "shared"} if "shared_genes" in options else {})
    files = package.data.CellFiles(list(paths), **setup)
    return model_class(registry=files.registry, **architecture), {"datamodule": files}


def _fine_tuned(package: Any, options: Mapping[str, Any], *, stay_in_files: bool, has_modalities: bool) -> Any:
    """Return a model of the new cells that starts from the reference."""
    paths = options["cells"]
    reference = package.model.load(options["reference"], adata=False, accelerator="cpu")
    name = type(reference).__name__
    if options.get("model", name) != name:
        msg = f"--model {options['model']}, but the reference is of class {name}; leave --model out."
        raise click.UsageError(msg)
    if has_modalities is not (name == "MULTISCLDM"):
        wanted = ".h5mu files" if name == "MULTISCLDM" else ".h5ad or .zarr files, not .h5mu"
        msg = f"The reference is of class {name}, which reads {wanted}."
        raise click.UsageError(msg)
    arguments = given(_setup_arguments(options, has_modalities=False), "condition_embeddings")
    cells = list(paths) if stay_in_files else read_cells_of(reference, paths[0])
    return type(reference).load_query_data(cells, reference, **given(options, "trainable"), **arguments)


def _check_options(options: Mapping[str, Any], *, stay_in_files: bool, has_modalities: bool) -> None:
    """Raise for options that exclude each other, before any long work."""
    of_trainer = {name: f"--{name.replace('_', '-')}" for name in (*TRAIN_OPTIONS, "checkpoint_dir")}
    of_trainer["plan_kwargs"] = "--recipe, or --autoencoder and --prior"
    others, own, model = ["recipe"], "--autoencoder and --prior", options.get("model", MODELS[0])
    if model in ("SCRDIT", "WBDIT"):
        others, own = ["autoencoder", "prior"], "--recipe"
    msg = ""
    if has_modalities and stay_in_files:
        msg = "Several modalities are read into memory: give one .h5mu file, without --backed."
    elif "reference" in options and (unused := [name for name in OF_REFERENCE if name in options]):
        shown = {"architecture": "set"}.get(unused[0], unused[0]).replace("_", "-")
        msg = f"--reference and --{shown} exclude each other: a fine-tuned model has it from its reference."
    elif "trainable" in options and "reference" not in options:
        msg = "--trainable needs --reference."
    elif stay_in_files and options.get("save_cells"):
        msg = "--save-cells needs cells in memory, but several files, or --backed, leave them in their files."
    elif not stay_in_files and (unused := [name for name in WINDOW_OPTIONS if name in options]):
        msg = f"--{unused[0].replace('_', '-')} needs cells that stay in files: several files, or --backed."
    elif not has_modalities and ("modality" in options or isinstance(options.get("layer"), dict)):
        msg = "--modality, and --layer with a modality, need an .h5mu file."
    elif has_modalities and model in ("SCRDIT", "WBDIT"):
        msg = f"{model} reads one modality, not .h5mu; use MULTISCLDM for several."
    elif not has_modalities and model == "MULTISCLDM":
        msg = "MULTISCLDM reads .h5mu files; use SCLDM for one modality."
    elif "reference" not in options and (unused := [name for name in others if name in options]):
        msg = f"--{unused[0]} is not for {model}, which has {own}."
    elif has_modalities and "values" in options:
        msg = "--values is for .h5ad and .zarr files; modalities of .h5mu must hold counts."
    elif "callbacks" in options.get("trainer", {}):
        msg = "--trainer callbacks needs objects of Python, which the command line cannot give."
    elif twice := [name for name in options.get("trainer", {}) if name in of_trainer]:
        msg = f"Use {of_trainer[twice[0]]} instead of --trainer {twice[0]}."
    if msg:
        raise click.UsageError(msg)


def _setup_arguments(options: Mapping[str, Any], has_modalities: bool) -> dict[str, Any]:
    """Return the arguments of ``setup_anndata``, ``setup_mudata`` or of the classes for files."""
    names = {
        "layer": "layers" if has_modalities else "layer",
        "values": "values",
        "modality": "modalities",
        "condition": "condition_keys",
        "continuous_condition": "continuous_condition_keys",
        "set_condition": "set_condition_keys",
        "control": "control_values",
        "condition_embedding": "condition_embeddings",
        "unlabeled_category": "unlabeled_category",
    }
    found = given(options, *names).items()
    arguments: dict[str, Any] = {names[name]: list(v) if isinstance(v, tuple) else v for name, v in found}
    if "set_condition_keys" in arguments:
        arguments["set_condition_keys"] = {key: mark or "+" for key, mark in arguments["set_condition_keys"].items()}
    for key, table in arguments.get("condition_embeddings", {}).items():
        if Path(table).suffix in TABLES:
            names_as_text = {"index_col": 0, "dtype": {0: str}, "keep_default_na": False}
            arguments["condition_embeddings"] |= {key: read_table(Path(table), **names_as_text)}
    return arguments
