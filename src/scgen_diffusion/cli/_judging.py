"""``evaluate`` and ``report``: from files of cells to a table or a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import list_first
from scgen_diffusion._files import write_atomically

from ._options import FILE, NEW, Keyed, command, existing_file, flag, option, pick
from ._tables import check_place, read_cells, read_table
from ._terminal import NOT_GOOD_ENOUGH, Stop

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    import pandas as pd

    from ._terminal import Terminal

COUNTS = "counts"  # layer that `evaluate` reads by default
LEVELS = {"warning": ("warning",), "note": ("warning", "note")}  # that fail
SETS = [
    click.Argument(["real_test"], type=FILE, metavar="REAL"),
    click.Argument(["synthetic"], type=FILE),
    option("--train -t", "Real cells that the model was trained on; several files stay on disk.", FILE, multiple=True),
    option("--groupby -g", "Column of obs with the label; several are joined.", multiple=True),
    option("--layer -l", "Layer with the values of the real cells.", Keyed("[MODALITY=]NAME")),
    option("--values", "Kind of the values, as in train; default: counts.", click.Choice(["counts", "log1p"])),
    flag("--backed", "Leave values in their files (.h5ad; of --train, .zarr, too), and read them part by part."),
    flag("--shared-genes", "Compare the genes that all sets of cells have."),
    option("--max-cells", "Largest number of cells compared on each side.", int),
    option("--seed", "Seed of all random draws.", int),
    flag("--overwrite", "Replace an existing file."),
]


@command(
    "evaluate",
    "Compare synthetic with real cells.",
    *SETS,
    option("--control", "Real unperturbed cells, to judge predictions of perturbations.", FILE),
    option("--perturbation-key -p", "Column of obs with the perturbation."),
    option("--other others", "Predictions of another method.", Keyed("NAME=FILE", existing_file)),
    option("--metric metrics", "Compute only this metric. Repeatable.", multiple=True),
    option("--n-repeats", "Repeats for the score of real cells; 0 for none.", int),
    option("--n-bootstrap", "Half-samples for intervals; 0 for none.", int),
    option("--fail-on", "Exit code 3 on warnings, or on warnings and notes.", click.Choice(list(LEVELS))),
    option("--out -o", "File for the table (.csv); default: stdout.", NEW),
)
def evaluate(terminal: Terminal, *, out: Path | None = None, fail_on: str = "", **options: Any) -> None:
    """Compare synthetic cells with held-out real cells (.h5ad, .zarr; .h5mu for several modalities).

    With --control, compare predicted perturbed cells with real ones, simple baselines and other methods.

    scgen-diffusion evaluate held_out.h5ad synthetic.h5ad --train train.h5ad --groupby cell_type --out table.csv
    """
    overwrite = options.pop("overwrite", False)
    if out is not None:
        check_place(out, ".csv", overwrite=overwrite)
    package = terminal.libraries()
    table = package.metrics.evaluate(**read_sets(terminal, options))
    if out is None:
        terminal.result(table.to_csv(index=False).rstrip("\n"))
    else:
        with write_atomically(out) as beside:
            table.to_csv(beside, index=False)
        terminal.result(out)
    if "control" not in options:
        judge(terminal, package, table, LEVELS.get(fail_on, ()))


def judge(terminal: Terminal, package: ModuleType, table: pd.DataFrame, fatal: Sequence[str]) -> None:
    """Write the summary of an evaluation, and stop if its levels are fatal."""
    levels: set[str] = set()
    parts = {"": table} if "modality" not in table else {f"{name}: ": part for name, part in table.groupby("modality")}
    for name, part in parts.items():
        summary = package.report.summary(part)
        terminal.say(f"{name}{summary if terminal.verbose else summary.headline}")
        levels |= {*summary.table["level"]}
    failed = [f"there are {level}s" for level in fatal if level in levels]
    if fatal and levels <= {"not judged"}:
        failed = ["nothing could be judged"]
    if failed:
        msg = f"Not good enough: {'; '.join(failed)}."
        raise Stop(msg, NOT_GOOD_ENOUGH)


@command(
    "report",
    "Write an HTML report of synthetic cells.",
    *SETS,
    option("--table", "Table of evaluate for these cells, to save time.", FILE),
    option("--model", "The model, to show its training: a folder, or the name of a pretrained model."),
    option("--title", "Title of the page."),
    option("--out -o", "File to write (.html).", NEW, required=True),
)
def report(terminal: Terminal, out: Path, **options: Any) -> None:
    """Write an HTML page that compares synthetic with real cells: summary, metrics and plots.

    scgen-diffusion report held_out.h5ad synthetic.h5ad --train train.h5ad --groupby cell_type --out report.html
    """
    check_place(out, ".html", overwrite=options.pop("overwrite", False))
    package = terminal.libraries()
    if "table" in options:
        # labels such as "NA" and "" are text; only figures that `evaluate` left empty are missing
        empty = dict.fromkeys(package.metrics.FIGURES, [""])
        options["table"] = read_table(options["table"], keep_default_na=False, na_values=empty)
        package.report.summary(options["table"])  # raises for other tables, before the cells are read
    if "model" in options:
        options["model"] = package.model.load(options["model"], adata=False)
    terminal.result(package.report.write(path=out, **read_sets(terminal, options)))


def read_sets(terminal: Terminal, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``evaluate``: the options, with the cells of each file."""
    found = dict(options)
    values, backed, shared = (found.pop(name, None) for name in ("values", "backed", "shared_genes"))
    paths = found.pop("others", {}) | pick(found, "real_test", "synthetic", "control")
    others, train = [*options.get("others", {})], found.pop("train", [])
    terminal.say(f"Reading {list_first([*paths.values(), *train])}")
    layer, in_files = found.get("layer"), bool(train) and bool(backed or len(train) > 1)
    if train and not in_files:
        paths["train"] = train[0]
    sets = {name: read_cells(path, backed=bool(backed)) for name, path in paths.items()}
    if values == "log1p":
        sets = {name: mark_logarithms(name, cells, found.get("layer")) for name, cells in sets.items()}
        found.pop("layer", None)  # it is in X now
    if in_files:
        sets["train"] = open_files(train, layer, values)
    if shared:
        real, genes = sets["real_test"], sets["real_test"].var_names
        for cells in sets.values():
            genes = genes[genes.isin(cells.var.index)]
        terminal.say(f"{len(genes)} of the {real.n_vars} genes of the real cells are in all sets of cells.")
        sets["real_test"] = real[:, real.var_names.isin(genes)]
    if others:
        found["others"] = pick(sets, *others)
    return found | sets


def open_files(paths: Sequence[Path], layer: str | None, values: Any) -> Any:
    """Open several files with the layer that ``evaluate`` reads."""
    from scgen_diffusion.data import ComparedFiles, open_anndata_files

    if layer is None and values != "log1p" and COUNTS in open_anndata_files(paths[0])[0].keys("layers"):
        layer = COUNTS
    return ComparedFiles(paths, layer=layer, genes="shared", values=values or "counts")


def mark_logarithms(name: str, cells: Any, layer: str | None) -> Any:
    """Return cells with the logarithms of a layer in X, marked; generated cells have them there already."""
    from anndata import AnnData

    if layer is not None and (layer in cells.layers or name in ("real_test", "train", "control")):
        cells = AnnData(cells.layers[layer], obs=cells.obs, var=cells.var)
    cells.layers.pop(COUNTS, None)  # which would be read instead of X
    cells.uns.setdefault("log1p", {})
    return cells
