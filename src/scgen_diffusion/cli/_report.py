"""``scgen-diffusion report``: one HTML file that judges and shows synthetic cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ._cells import read_cells
from ._command import Option, command, existing, new, python_options
from ._evaluate import BACKED, CELLS, GROUPBY, TRAIN
from ._outputs import check_new
from ._setup import read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._terminal import Terminal

PAGE = "Page"


@command(
    "report",
    click.Argument(["real"], type=existing()),
    click.Argument(["synthetic"], type=existing()),
    TRAIN,
    GROUPBY,
    Option(
        ["--layer", "-l"],
        section=CELLS,
        metavar="NAME",
        help="Layer with the counts of the real cells.",
    ),
    BACKED,
    Option(
        ["--table"],
        section=PAGE,
        type=existing(dir_okay=False),
        help="What evaluate wrote for these cells, so that nothing is computed twice.",
    ),
    Option(
        ["--model"], section=PAGE, type=existing(file_okay=False), help="Folder of the model, whose training is shown."
    ),
    Option(["--title"], section=PAGE, metavar="TEXT", help="Heading."),
    Option(
        ["--max-cells"], section=PAGE, type=int, metavar="N", help="Cells of each kind that are compared and drawn."
    ),
    Option(["--seed"], section=PAGE, type=click.IntRange(min=0), help="Decides all draws."),
    Option(
        ["--out", "-o"],
        section=PAGE,
        type=new(dir_okay=False),
        required=True,
        metavar="FILE.html",
        help="The file to write.",
    ),
    Option(["--overwrite"], section=PAGE, is_flag=True, default=None, help="Replace the file if it is there."),
    short_help="Write an HTML report of synthetic cells.",
)
def report(terminal: Terminal, options: dict[str, Any]) -> None:
    """Write one HTML file with the verdict, all figures and plots of synthetic cells beside real ones.

    scgen-diffusion report held_out.h5ad synthetic.h5ad --train train.h5ad --groupby cell_type --out report.html
    """
    files = python_options(options, "real", "synthetic", "train")
    check_new(options["out"], overwrite=options.get("overwrite", False), suffixes=[".html"], inputs=files.values())
    package = terminal.libraries()
    terminal.say(f"Reading {', '.join(map(str, files.values()))}")
    cells = {name: read_cells(path, backed=options.get("backed", False)) for name, path in files.items()}
    arguments = python_options(options, "layer", "title", "max_cells", "seed") | _arguments(package, options)
    terminal.say("Judging and drawing")
    real, synthetic = cells.pop("real"), cells.pop("synthetic")
    terminal.result(package.report(real, synthetic, options["out"], **cells, **arguments))


def _arguments(package: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "groupby" in options:
        given = options["groupby"]
        found["groupby"] = given[0] if len(given) == 1 else list(given)
    if "table" in options:
        found["table"] = read_table(options["table"])
    if "model" in options:
        found["model"] = package.model.load(options["model"], adata=False)
    return found
