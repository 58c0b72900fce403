"""``train``, ``generate``, ``predict`` and ``info``: the calls of a model, on files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import list_first
from scgen_diffusion._files import remove, write_atomically

from ._options import FILE, NEW, Keyed, command, flag, option, pick, setting, value
from ._tables import CELLS, MUDATA, check_place, of_model, read_cells, read_table, select_rows

if TYPE_CHECKING:
    from pathlib import Path

    from ._terminal import Terminal

SETUP = [
    option("--layer -l", "Layer with the values; default: X.", Keyed("[MODALITY=]NAME")),
    option("--values", "Kind of the values; default: counts.", click.Choice(["counts", "log1p"])),
    option("--condition -c condition_keys", "Column of obs to condition on. Repeatable.", multiple=True),
    option("--continuous-condition continuous_condition_keys", "Column or array of numbers.", multiple=True),
    option("--set-condition set_condition_keys", "Column of sets such as A+B.", Keyed("COLUMN[=SEPARATOR]")),
    option("--control control_values", "Value of unperturbed cells in a column.", Keyed(read=value)),
    option("--condition-embedding condition_embeddings", "Table of a column's vectors.", Keyed(read=FILE)),
    option("--unlabeled-category", "Value of cells without a label, which train too; so do missing ones."),
    option("--modality modalities", "Modality of .h5mu, and its likelihood.", Keyed("NAME[=LIKELIHOOD]")),
    option("--shared-genes genes", "Use the genes that all files have.", is_flag=True, flag_value="shared"),
]
SEED = option("--seed", "Seed of all random draws.", int, default=0)
OF_PROCESSES = ("devices", "num_nodes", "strategy")
DEVICES = [
    option("--accelerator", "Accelerator of Lightning: auto, cpu, gpu ..."),
    option("--devices", "Number of devices, or their indices: [0,1].", value),
    option("--num-nodes", "Number of machines.", int),
    option("--strategy", "Strategy of Lightning: ddp for several devices."),
]


@command(
    "train",
    "Train a model on files of cells.",
    click.Argument(["cells"], nargs=-1, required=True, type=FILE),
    option("--out -o", "Folder of the model.", NEW, required=True),
    flag("--overwrite", "Replace an existing model."),
    *SETUP,
    flag("--backed", "Read cells from the file during training; several files always are."),
    option("--model -m", "Class; default: SCLDM.", click.Choice(["SCLDM", "MULTISCLDM", "SCRDIT", "WBDIT", "SCMDM"])),
    option("--set architecture", "Option of the architecture: n_latent=16, size=published.", Keyed(read=setting)),
    option("--reference", "Model to fine-tune, a folder or a name, which gives all of the above."),
    option("--trainable", "What fine-tuning changes; default: new_conditions."),
    option("--max-epochs -e", "Epochs of all stages, or of one, such as prior=20.", Keyed("[STAGE=]N", value)),
    option("--batch-size", "Cells per step, of all processes together.", int),
    option("--recipe", "Training option, such as prior.learning_rate=1e-3.", Keyed(read=setting)),
    option("--trainer", "Other argument of train in Python: early_stopping=true.", Keyed(read=setting)),
    *DEVICES,
    SEED,
)
def train(
    terminal: Terminal, cells: list[Path], out: Path, seed: int, *, overwrite: bool = False, **options: Any
) -> None:
    """Train a model on the cells of one or several files (.h5ad, .zarr, .h5mu), and save it to a folder.

    After Ctrl-C, SIGTERM or a crash, run the same command again to resume.

    scgen-diffusion train cells.h5ad --layer counts --condition cell_type --out my_model
    """
    check_place(out, overwrite=overwrite)
    package = terminal.libraries()
    from scvi import settings

    options |= options.pop("trainer", {})
    terminal.quiet |= not is_first_process(options)
    settings.seed = seed
    terminal.say(f"Reading {list_first(cells)}")
    model = build(package, cells, options)
    terminal.say(str(model).partition("\n  trained:")[0])

    folder = out.absolute().with_name(f".{out.name}.checkpoints")
    terminal.on_interrupt = f"The checkpoints are in {folder}; run the same command again to resume."
    model.train(checkpoint_dir=folder, **options)
    if model.trainer.interrupted:
        raise terminal.stopped()
    if not model.trainer.is_global_zero:
        return
    model.save(out, overwrite=overwrite)
    remove(folder)
    click.echo(out)


def build(package: Any, paths: list[Path], options: dict[str, Any]) -> Any:
    """Return a model of the cells, new or fine-tuned, and leave only the arguments of ``train`` in the options."""
    setup, architecture = pick(options, *(str(one.name) for one in SETUP)), options.pop("architecture", {})
    name, reference = options.pop("model", ""), options.pop("reference", None)
    in_files, has_modalities = options.pop("backed", False) or len(paths) > 1, paths[0].suffix == MUDATA
    if "set_condition_keys" in setup:
        setup["set_condition_keys"] = {key: mark or "+" for key, mark in setup["set_condition_keys"].items()}
    for key, table in setup.get("condition_embeddings", {}).items():
        names_as_text = {"index_col": 0, "dtype": {0: str}, "keep_default_na": False}
        setup["condition_embeddings"] |= {key: read_table(table, **names_as_text)}
    for key, each in options.pop("recipe", {}).items():
        stage, _, option_name = key.rpartition(".")
        plan = options.setdefault("plan_kwargs", {})
        (plan.setdefault(stage, {}) if stage else plan)[option_name] = each

    if reference is not None:
        setup |= pick(options, "trainable") | architecture
        model = package.model.load(reference, adata=False, accelerator="cpu")
        cells = paths if in_files else of_model(model, read_cells(paths[0]))
        return type(model).load_query_data(cells, model, **setup)

    model_class = getattr(package.model, name or ("MULTISCLDM" if has_modalities else "SCLDM"))
    if in_files:
        options["datamodule"] = package.data.CellFiles(paths, **setup)
        return model_class(registry=options["datamodule"].registry, **architecture)
    setup.pop("genes", None)  # one file has all its genes
    if has_modalities and "layer" in setup:
        setup["layers"] = setup.pop("layer")
    cells = read_cells(paths[0])
    getattr(model_class, "setup_mudata", model_class.setup_anndata)(cells, **setup)
    return model_class(cells, **architecture)


def is_first_process(options: dict[str, Any]) -> bool:
    """Return whether this is the first of the processes that work together, which tells the user."""
    from scgen_diffusion.train import RunOptions

    asked = {name: options[name] for name in ("accelerator", *OF_PROCESSES) if name in options}
    return RunOptions.of(**asked).is_first_process()


REQUEST = [
    option("--condition-table", "A .csv or .tsv file with a row per cell, or cells, to have new ones like them.", FILE),
    option("--library-size", "Total counts.", Keyed("[MODALITY=]N", value)),
    flag("--counts", "Return integer counts, also from SCRDIT and WBDIT."),
    option("--guidance-scale -g", "Strength of the condition; default: 1.", Keyed("[KEY=]NUMBER", value)),
    option("--sampler", "Sampler: euler, midpoint, ddim, dpm_solver ..."),
    option("--n-steps", "Steps of the sampler.", int),
    option("--batch-size", "Cells at a time. It does not change the cells.", int),
    option("--shard-size", "Cells per part of the output; after an interruption, finished parts are kept.", int),
    SEED,
    *DEVICES,
    flag("--overwrite", "Replace cells of another request."),
]


@command(
    "generate",
    "Generate cells to a file.",
    click.Argument(["model"]),
    click.Argument(["out"], type=NEW),
    option("--n-cells -n", "Number of cells; not needed with a table.", int),
    option("--condition -c", "Condition; several values get equal shares; repeat one for more.", Keyed(repeats=True)),
    *REQUEST,
)
def generate(terminal: Terminal, model: str, out: Path, **options: Any) -> None:
    """Generate cells with a model, and write them into a file (.zarr, .h5ad; .h5mu for several modalities).

    After Ctrl-C, SIGTERM or a crash, run the same command again to resume.

    MODEL is a folder, or the name of a pretrained model: pbmc3k, kang_ifnb or pbmc10k_citeseq.

    scgen-diffusion generate pbmc3k cells.h5ad --n-cells 1000 --condition cell_type=B
    """
    loaded = load(terminal, model, out, options)
    write(terminal, loaded, out, "generate", read_request(loaded, options))


@command(
    "predict",
    "Predict cells under another condition.",
    click.Argument(["model"]),
    click.Argument(["cells"], nargs=-1, required=True, type=FILE),
    click.Argument(["out"], type=NEW),
    option("--condition -c", "New condition of all cells. Keys left out keep each cell's own value.", Keyed()),
    option("--where -w", "Use only cells with this value, or one of several.", Keyed("COLUMN=VALUE", repeats=True)),
    flag("--backed", "Read cells from the file part by part; several files always are."),
    option("--method", "Method: perturbation_flow or inversion."),
    *REQUEST,
)
def predict(terminal: Terminal, model: str, cells: list[Path], out: Path, **options: Any) -> None:
    """Predict how given cells (.h5ad, .zarr, .h5mu) would look under another condition, and write them into a file.

    After Ctrl-C, SIGTERM or a crash, run the same command again to resume.

    MODEL is a folder, or the name of a pretrained model: pbmc3k, kang_ifnb or pbmc10k_citeseq.

    scgen-diffusion predict my_model cells.h5ad predicted.h5ad --where condition=control -c condition=stimulated
    """
    loaded = load(terminal, model, out, options)
    terminal.say(f"Reading {list_first(cells)}")
    where, backed = options.pop("where", None), options.pop("backed", False)
    options["adata_control"] = read_selected(loaded, cells, where, in_files=backed or len(cells) > 1)
    write(terminal, loaded, out, "predict_perturbation", read_request(loaded, options))


def load(terminal: Terminal, model: str, out: Path, options: dict[str, Any]) -> Any:
    """Load the model whose cells are to be written."""
    check_place(out, ".zarr", ".h5ad", MUDATA)
    loaded = terminal.libraries().model.load(model, adata=False, accelerator=options.get("accelerator", "auto"))
    if loaded.modalities:  # of one modality, `generate_to` checks, and goes on with the same request
        check_place(out, MUDATA, overwrite="overwrite" in options)
    return loaded


def read_selected(model: Any, paths: list[Path], where: dict[str, Any] | None, *, in_files: bool) -> Any:
    """Read one file, leave several where they are, or read the cells that have the values of ``where``."""
    import anndata

    from scgen_diffusion.data import CellFiles

    if where is None:
        return CellFiles.like(model.registry, paths) if in_files else of_model(model, read_cells(paths[0]))
    parts = []
    for path in paths:
        cells = read_cells(path, backed=True)
        parts.append(cells[select_rows(cells.obs, where)])
    if model.modalities:
        return parts[0].copy()
    return of_model(model, anndata.concat([part.to_memory() for part in parts], merge="first"))


def read_request(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with conditions, which are text, as values of the model's keys."""
    from scgen_diffusion.data import as_label

    keys = {key.name: key for key in model.conditions.by_key}

    def read(name: str, text: str) -> Any:
        """Read numbers of a key of numbers, and the class with this text; the model refuses others."""
        if name not in keys or keys[name].is_numeric:
            return [value(part) for part in text.strip("[] ").split(",")] if "," in text else value(text)
        known = {as_label(each): each for each in getattr(keys[name], "values", ())}
        return known.get(text, known.get(as_label(value(text)), text))  # 1.0 is 1

    def read_all(name: str, texts: str | list[str]) -> Any:
        return read(name, texts) if isinstance(texts, str) else [read(name, text) for text in texts]

    table = options.pop("condition_table", None)
    if table is not None and "condition" in options:
        msg = "--condition and --condition-table exclude each other."
        raise click.UsageError(msg)
    if table is not None and table.suffix not in CELLS:
        texts = read_table(table, dtype=str, keep_default_na=False)
        options["condition"] = type(texts)({name: read_all(name, [*texts[name]]) for name in texts}, dtype=object)
    elif table is not None:
        options["condition"] = read_cells(table, backed=True)
    elif "condition" in options:
        options["condition"] = {name: read_all(name, texts) for name, texts in options["condition"].items()}
    return options


def write(terminal: Terminal, model: Any, out: Path, call: str, asked: dict[str, Any]) -> None:
    """Write the cells of a call into a file, part by part; of several modalities, at once."""
    terminal.on_interrupt = "Run the same command again to resume."
    is_first = is_first_process(asked)
    if model.modalities:
        pick(asked, "shard_size", "overwrite", "accelerator", *OF_PROCESSES)
        with write_atomically(out) as beside:
            getattr(model, call)(**asked).write_h5mu(beside)
    else:
        getattr(model, f"{call}_to")(out, **asked)
    if is_first:
        click.echo(out)


@command("info", "Describe a model.", click.Argument(["model"]))
def info(terminal: Terminal, model: str) -> None:
    """Show what a model is: class, genes, conditions and their values, and training.

    MODEL is a folder, or the name of a pretrained model: pbmc3k, kang_ifnb or pbmc10k_citeseq.
    """
    loaded = terminal.libraries().model.load(model, adata=False, accelerator="cpu")
    click.echo(str(loaded))
    for key in loaded.conditions.by_key:
        click.echo(f"  values of {key.name}: {list_first(key.labels, 20)}")
