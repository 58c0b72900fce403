"""``evaluate`` and ``report``: from files of cells to a table or a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import list_first
from scgen_diffusion._files import write_atomically

from ._options import FILE, NEW, Keyed, command, flag, option, pick
from ._tables import check_place, read_cells, read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ._terminal import Terminal

COUNTS = "counts"  # layer that `evaluate` reads by default
SETS = [
    click.Argument(["real_test"], type=FILE, metavar="REAL"),
    click.Argument(["synthetic"], type=FILE),
    option("--train -t", "Real cells that the model was trained on; several files stay on disk.", FILE, multiple=True),
    option("--groupby -g", "Column of obs with the label; several are joined.", multiple=True),
    option("--layer -l", "Layer with the values of the real cells.", Keyed("[MODALITY=]NAME")),
    flag("--backed", "Leave values in their files (.h5ad; of --train, .zarr, too), and read them part by part."),
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
    option("--metric metrics", "Compute only this metric. Repeatable.", multiple=True),
    option("--n-repeats", "Repeats for the score of real cells; 0 for none.", int),
    option("--n-bootstrap", "Half-samples for intervals; 0 for none.", int),
    option("--out -o", "File for the table (.csv); default: stdout.", NEW),
)
def evaluate(terminal: Terminal, *, out: Path | None = None, overwrite: bool = False, **options: Any) -> None:
    """Compare synthetic cells with held-out real cells (.h5ad, .zarr; .h5mu for several modalities).

    With --control, compare predicted perturbed cells with real ones, simple baselines and other methods.

    scgen-diffusion evaluate held_out.h5ad synthetic.h5ad --train train.h5ad --groupby cell_type --out table.csv
    """
    if out is not None:
        check_place(out, ".csv", overwrite=overwrite)
    package = terminal.libraries()
    table = package.metrics.evaluate(**read_sets(terminal, options))
    if out is None:
        click.echo(table.to_csv(index=False).rstrip("\n"))
    else:
        with write_atomically(out) as beside:
            table.to_csv(beside, index=False)
        click.echo(out)
    if "control" not in options:
        for name, part in table.groupby("modality") if "modality" in table else [("Summary", table)]:
            summary = package.report.summary(part)
            terminal.say(f"{name}: {summary if terminal.verbose else summary.headline}")


@command(
    "report",
    "Write an HTML report of synthetic cells.",
    *SETS,
    option("--table", "Table of evaluate for these cells, to save time.", FILE),
    option("--model", "The model, to show its training: a folder, or the name of a pretrained model."),
    option("--title", "Title of the page."),
    option("--out -o", "File to write (.html).", NEW, required=True),
)
def report(terminal: Terminal, out: Path, *, overwrite: bool = False, **options: Any) -> None:
    """Write an HTML page that compares synthetic with real cells: summary, metrics and plots.

    scgen-diffusion report held_out.h5ad synthetic.h5ad --train train.h5ad --groupby cell_type --out report.html
    """
    check_place(out, ".html", overwrite=overwrite)
    package = terminal.libraries()
    if "table" in options:
        options["table"] = read_table(options["table"])
    if "model" in options:
        options["model"] = package.model.load(options["model"], adata=False)
    click.echo(package.report.write(path=out, **read_sets(terminal, options)))


def read_sets(terminal: Terminal, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``evaluate``: the options, with the cells of each file."""
    found = dict(options)
    backed, train = found.pop("backed", False), found.pop("train", [])
    paths = pick(found, "real_test", "synthetic", "control")
    terminal.say(f"Reading {list_first([*paths.values(), *train])}")
    if len(train) == 1 and not backed:
        paths["train"] = train[0]
    sets = {name: read_cells(path, backed=backed) for name, path in paths.items()}
    if train and "train" not in sets:
        sets["train"] = open_files(train, found.get("layer"))
    return found | sets


def open_files(paths: Sequence[Path], layer: str | None) -> Any:
    """Open several files with the layer that ``evaluate`` reads."""
    from scgen_diffusion.data import ComparedFiles, open_anndata_files

    has_counts = COUNTS in open_anndata_files(paths[0])[0].keys("layers")
    return ComparedFiles(paths, layer=COUNTS if has_counts and layer is None else layer, genes="shared")
