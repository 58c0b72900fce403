"""``scgen-diffusion train``: from files with cells to a folder with a model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ._cells import about, are_paired, read_cells
from ._checkpoints import checkpoint_dir
from ._command import Option, command, existing, new, python_options
from ._config import resolved_config
from ._outputs import COMMAND_FILE, check_new, check_replaced, remove, whole
from ._setup import check_single_modality, conditions_of, set_up
from ._values import Keyed, scalar, toml_value, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._terminal import Terminal

MODELS = ("SCLDM", "SCRDIT", "WBDIT")
CELLS, MODEL, TRAINING, OUTPUT = "Cells", "Model", "Training", "Output"
OF_WINDOWS = ("shared_genes", "window_size", "block_size")


def read_devices(value: Any) -> int | list[int] | str:
    """Take a number of devices, a list of their numbers, or a name."""
    written = str(value)
    if written.lstrip("-").isdecimal():
        return int(written)
    parts = [part for part in written.strip("[] ").split(",") if part.strip()]
    return [int(part) for part in parts] if parts and all(p.strip().isdecimal() for p in parts) else written


OF_CELLS = [
    Option(
        ["--layer", "-l"],
        section=CELLS,
        type=Keyed(key="MODALITY", value="NAME", alone=True),
        help="Layer that holds the values; X by default.",
    ),
    Option(
        ["--condition", "-c"],
        section=CELLS,
        multiple=True,
        metavar="COLUMN",
        help="Column of obs with classes to generate by. As often as needed.",
    ),
    Option(
        ["--continuous-condition"],
        section=CELLS,
        multiple=True,
        metavar="COLUMN",
        help="Column of numbers to generate by: dose, time, age.",
    ),
    Option(
        ["--set-condition"],
        section=CELLS,
        type=Keyed(key="COLUMN", value="SEPARATOR", bare=True),
        help='Column of sets such as "A+B", such as combined perturbations; the separator is + if none is given.',
    ),
    Option(
        ["--control"],
        section=CELLS,
        type=Keyed(scalar, key="COLUMN"),
        help="What is written for unperturbed cells in a column.",
    ),
    Option(
        ["--condition-embedding"],
        section=CELLS,
        type=Keyed(key="COLUMN", value="TABLE"),
        help="Known vectors of the values of a column: a .csv or .tsv file, its first column the values, or an entry of uns.",
    ),
    Option(
        ["--values"],
        section=CELLS,
        type=click.Choice(["counts", "log1p"]),
        help="What the layer holds; counts by default.",
    ),
    Option(
        ["--modality"],
        section=CELLS,
        type=Keyed(key="NAME", value="LIKELIHOOD", bare=True),
        help="Modality of .h5mu to train on, and what explains its values; all by default.",
    ),
    Option(
        ["--backed"],
        section=CELLS,
        is_flag=True,
        default=None,
        help="Read the cells from the files window by window, for what does not fit in memory; always so for several files.",
    ),
    Option(
        ["--shared-genes"],
        section=CELLS,
        is_flag=True,
        default=None,
        help="Of several files take the genes that all have.",
    ),
    Option(
        ["--window-size"],
        section=CELLS,
        type=int,
        metavar="N",
        help="Cells in memory together, if they are read from files.",
    ),
    Option(["--block-size"], section=CELLS, type=int, metavar="N", help="Neighbouring cells that are read together."),
]
OF_MODEL = [
    Option(
        ["--model", "-m"],
        section=MODEL,
        type=click.Choice(MODELS),
        default=MODELS[0],
        show_default=True,
        help="Class of the model.",
    ),
    Option(
        ["--size"],
        section=MODEL,
        type=click.Choice(["default", "published"]),
        help="Architecture: ours, or the paper's.",
    ),
    Option(
        ["--set", "architecture"],
        section=MODEL,
        type=Keyed(toml_value),
        help="One part or size of the architecture, such as n_latent=16.",
    ),
]
OF_TRAINING = [
    Option(
        ["--max-epochs", "-e"],
        section=TRAINING,
        type=Keyed(whole_number, key="STAGE", value="N", alone=True),
        help="Epochs of all stages, or of one (autoencoder, prior, transport); from the number of cells by default.",
    ),
    Option(["--batch-size"], section=TRAINING, type=int, metavar="N", help="Cells per step."),
    Option(["--train-size"], section=TRAINING, type=float, metavar="SHARE", help="Share of cells to train on."),
    Option(["--validation-size"], section=TRAINING, type=float, metavar="SHARE", help="Share of cells to validate on."),
    Option(
        ["--early-stopping"],
        section=TRAINING,
        is_flag=True,
        default=None,
        help="Stop a stage when its validation loss falls no more.",
    ),
    Option(
        ["--early-stopping-patience"], section=TRAINING, type=int, metavar="N", help="Validations to wait for that."
    ),
    Option(["--check-val-every-n-epoch"], section=TRAINING, type=int, metavar="N", help="Epochs between validations."),
    Option(
        ["--seed"],
        section=TRAINING,
        type=click.IntRange(0, 2**32 - 1),
        metavar="N",
        default=0,
        show_default=True,
        help="Decides the split and all random draws.",
    ),
    Option(["--compile"], section=TRAINING, is_flag=True, default=None, help="Compile the networks (torch.compile)."),
    Option(["--accelerator"], section=TRAINING, metavar="NAME", help="auto, cpu, gpu ... of Lightning."),
    Option(["--devices"], section=TRAINING, metavar="N|I,J", help="How many devices, or which."),
    Option(["--num-nodes"], section=TRAINING, type=int, metavar="N", help="Machines of a distributed run."),
    Option(["--strategy"], section=TRAINING, metavar="NAME", help="ddp for several devices."),
    Option(["--precision"], section=TRAINING, metavar="NAME", help="32-true, bf16-mixed ..."),
    Option(
        ["--autoencoder"],
        section=TRAINING,
        type=Keyed(toml_value),
        help="Change of the autoencoder's recipe (SCLDM), such as learning_rate=1e-3.",
    ),
    Option(["--prior"], section=TRAINING, type=Keyed(toml_value), help="Change of the prior's recipe (SCLDM)."),
    Option(["--recipe"], section=TRAINING, type=Keyed(toml_value), help="Change of the recipe (SCRDIT, WBDIT)."),
    Option(["--trainer"], section=TRAINING, type=Keyed(toml_value), help="Further option of Lightning's trainer."),
]
OF_OUTPUT = [
    Option(["--out", "-o"], section=OUTPUT, type=new(file_okay=False), required=True, help="Folder of the model."),
    Option(
        ["--overwrite"],
        section=OUTPUT,
        is_flag=True,
        default=None,
        help="Replace the model if one is there; no other folder.",
    ),
    Option(
        ["--save-cells"], section=OUTPUT, is_flag=True, default=None, help="Save the training cells with the model."
    ),
    Option(
        ["--checkpoint-dir"],
        section=OUTPUT,
        type=new(file_okay=False),
        help="Folder of checkpoints, from which the same command goes on. Default: a hidden one beside the model, removed at the end.",
    ),
    Option(["--no-checkpoints"], section=OUTPUT, is_flag=True, default=None, help="Keep none."),
    Option(
        ["--restart"], section=OUTPUT, is_flag=True, default=None, help="Begin anew, whatever checkpoints there are."
    ),
]
EPILOG = "After Ctrl-C or SIGTERM (exit code 130 or 143) or a crash the same command goes on from the last checkpoint."


@command(
    "train",
    click.Argument(["cells"], nargs=-1, required=True, type=existing()),
    *OF_CELLS,
    *OF_MODEL,
    *OF_TRAINING,
    *OF_OUTPUT,
    short_help="Train a model on files of cells.",
    epilog=EPILOG,
    excluding=[("checkpoint_dir", "no_checkpoints")],
)
def train(terminal: Terminal, options: dict[str, Any]) -> None:
    """Train a model on the cells of one or several files (.h5ad, .zarr, .h5mu), and write it into a folder.

    scgen-diffusion train cells.h5ad --layer counts --condition cell_type --out my_model
    """
    out = options["out"]
    _check_out(options)
    checkpoints = checkpoint_dir(options)
    package = terminal.libraries()
    check_replaced(package, out)
    _seed(options["seed"])
    model_class = getattr(package.model, options["model"])
    terminal.say(f"Reading {', '.join(map(str, options['cells']))}")
    model, cells = (
        _model_of_files(package, model_class, options) if _reads_windows(options) else _model(model_class, options)
    )
    _summarise(terminal, model)
    started = time.monotonic()
    if checkpoints is not None:
        terminal.on_interrupt = f"The checkpoints are in {checkpoints}; the same command goes on from there."
    model.train(**_arguments_of_train(terminal, options), **cells, checkpoint_dir=checkpoints)
    if terminal.signals.received:  # the stage ended in order, and the others were left out
        raise terminal.interrupted()
    if _is_first_process():
        _check_out(options)  # hours may have passed
        check_replaced(package, out)
        _save(model, options)
        if checkpoints is not None and "checkpoint_dir" not in options:
            remove(checkpoints)
        terminal.say(f"Trained in {_duration(time.monotonic() - started)}. Written:")
        terminal.result(out)


def _check_out(options: Mapping[str, Any]) -> None:
    inputs = [*options["cells"], *python_options(options, "checkpoint_dir").values()]
    check_new(options["out"], overwrite=options.get("overwrite", False), inputs=inputs)


def _seed(seed: int) -> None:
    from scvi import settings

    settings.seed = seed


def _reads_windows(options: Mapping[str, Any]) -> bool:
    """Tell whether cells stay in their files."""
    several = len(options["cells"]) > 1
    windows = several or options.get("backed", False)
    if windows and any(map(are_paired, options["cells"])):
        msg = "Several modalities (.h5mu) are read into memory, and from one file."
        raise click.UsageError(msg)
    if windows and options.get("save_cells"):
        msg = "--save-cells is for cells in memory; those of several files, or with --backed, stay where they are."
        raise click.UsageError(msg)
    given = [name for name in OF_WINDOWS if name in options]
    if given and not windows:
        msg = f"--{given[0].replace('_', '-')} is for cells that stay in their files: several files, or --backed."
        raise click.UsageError(msg)
    return windows


def _model(model_class: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a model of cells in memory, and what its training is told of them: nothing."""
    path = options["cells"][0]
    cells = read_cells(path)
    with about(path):
        set_up(model_class, cells, options)
    return model_class(cells, **_architecture(options)), {}


def _model_of_files(package: Any, model_class: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a model of cells in files, and what its training is told of them."""
    check_single_modality(options)
    genes = {"genes": "shared"} if options.get("shared_genes") else {}
    windows = python_options(options, "window_size", "block_size") | genes
    cells = package.data.CellFiles(
        list(options["cells"]), **conditions_of(options), **python_options(options, "layer", "values"), **windows
    )
    return model_class(registry=cells.registry, **_architecture(options)), {"datamodule": cells}


def _architecture(options: Mapping[str, Any]) -> dict[str, Any]:
    return python_options(options, "size") | options.get("architecture", {})


def _summarise(terminal: Terminal, model: Any) -> None:
    keys = [f"{name} ({len(values)})" for name, values in model.conditions.categories.items()]
    keys += [name for name in model.conditions.keys if name not in model.conditions.categories]
    given = f"; conditions: {', '.join(keys)}" if keys else "; no conditions"
    stats = model.summary_stats
    terminal.say(f"{type(model).__name__} of {stats.n_cells:,} cells and {stats.n_vars:,} genes{given}")


def _arguments_of_train(terminal: Terminal, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Model.train``; what was not given is left to it."""
    from ._progress import callbacks

    names = (
        "max_epochs",
        "batch_size",
        "train_size",
        "validation_size",
        "early_stopping",
        "early_stopping_patience",
        "check_val_every_n_epoch",
        "compile",
        "accelerator",
        "num_nodes",
        "strategy",
        "precision",
    )
    arguments = python_options(options, *names) | options.get("trainer", {})
    by_stage = {stage: options[stage] for stage in ("autoencoder", "prior") if stage in options}
    if plan := options.get("recipe", {}) | by_stage:
        arguments["plan_kwargs"] = plan
    if "devices" in options:
        arguments["devices"] = read_devices(options["devices"])
    return {
        "enable_progress_bar": terminal.has_bars,
        "callbacks": callbacks(terminal),
        "enable_model_summary": False,
        **arguments,
    }


def _save(model: Any, options: Mapping[str, Any]) -> None:
    with whole(options["out"]) as beside:
        model.save(beside, save_anndata=options.get("save_cells", False))
        (beside / COMMAND_FILE).write_text(resolved_config(train, options), encoding="utf-8")


def _is_first_process() -> bool:
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
