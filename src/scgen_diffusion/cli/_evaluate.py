"""``scgen-diffusion evaluate`` and ``evaluate-perturbation``: from files with cells to a table."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ._cells import are_paired, read_cells
from ._command import Option, command, existing, new, python_options
from ._config import closest_names
from ._outputs import check_new, whole
from ._terminal import ExitCode, Stop, Terminal
from ._values import Keyed, number

if TYPE_CHECKING:
    import pandas as pd

CELLS, JUDGING, THRESHOLDS, OUTPUT = "Cells", "Judging", "Thresholds (exit code 3)", "Output"
CROSS_METRICS = ("cross_correlation_similarity", "cross_correlation_error")  # of several modalities
LEVELS = {"warning": ("warning",), "note": ("warning", "note")}

TRAIN = Option(["--train", "-t"], section=CELLS, type=existing(), help="Real cells that the model was trained on.")
GROUPBY = Option(
    ["--groupby", "-g"],
    section=CELLS,
    multiple=True,
    metavar="COLUMN",
    help="Column of obs with the label; several are joined.",
)
LAYER = Option(
    ["--layer", "-l"],
    section=CELLS,
    type=Keyed(key="MODALITY", value="NAME", alone=True),
    help="Layer with the counts of the real cells.",
)
BACKED = Option(
    ["--backed"],
    section=CELLS,
    is_flag=True,
    default=None,
    help="Leave the values of .h5ad in the files; only what is compared is read.",
)
OF_JUDGING = [
    Option(
        ["--max-cells"], section=JUDGING, type=int, metavar="N", help="Cells of each side that are compared at most."
    ),
    Option(["--n-floor"], section=JUDGING, type=int, metavar="N", help="Draws for what real cells score; 0 for none."),
    Option(["--seed"], section=JUDGING, type=click.IntRange(min=0), help="Decides all draws."),
]
OF_THRESHOLDS = [
    Option(
        ["--max"],
        section=THRESHOLDS,
        type=Keyed(number, key="METRIC", value="NUMBER"),
        help="Largest value of a metric that is good enough.",
    ),
    Option(
        ["--min"],
        section=THRESHOLDS,
        type=Keyed(number, key="METRIC", value="NUMBER"),
        help="Smallest value of a metric that is good enough.",
    ),
]
OF_OUTPUT = [
    Option(
        ["--out", "-o"],
        section=OUTPUT,
        type=new(dir_okay=False),
        metavar="FILE.csv",
        help="Where the table goes; stdout by default.",
    ),
    Option(["--overwrite"], section=OUTPUT, is_flag=True, default=None, help="Replace the file if it is there."),
]


@command(
    "evaluate",
    click.Argument(["real"], type=existing()),
    click.Argument(["synthetic"], type=existing()),
    TRAIN,
    GROUPBY,
    LAYER,
    BACKED,
    Option(["--metric"], section=JUDGING, multiple=True, metavar="NAME", help="Only this metric, as often as needed."),
    *OF_JUDGING,
    Option(["--n-bootstrap"], section=JUDGING, type=int, metavar="N", help="Half-samples for intervals; 0 for none."),
    Option(
        ["--fail-on"],
        section=THRESHOLDS,
        type=click.Choice(list(LEVELS)),
        help="Fail if the verdict has warnings, or warnings or notes.",
    ),
    *OF_THRESHOLDS,
    *OF_OUTPUT,
    short_help="Judge synthetic cells beside real ones.",
)
def evaluate(terminal: Terminal, options: dict[str, Any]) -> None:
    """Judge synthetic cells beside real ones that no model has seen (.h5ad, .zarr; .h5mu for several modalities).

    scgen-diffusion evaluate held_out.h5ad synthetic.h5ad --train train.h5ad --groupby cell_type --out table.csv
    """
    _check_output(options)
    package = terminal.libraries()
    _check_metrics(package, options)
    files = python_options(options, "real", "synthetic", "train")
    function = package.metrics.evaluate_modalities if _all_paired(files) else package.metrics.evaluate
    cells = _read(terminal, files, backed=options.get("backed", False))
    arguments = python_options(options, "max_cells", "n_floor", "n_bootstrap", "seed") | _layers(options, files)
    for option, argument in (("groupby", "groupby"), ("metric", "metrics")):
        if option in options:
            arguments[argument] = list(options[option])
    table = function(cells["real"], cells["synthetic"], train=cells.get("train"), **arguments)
    levels = _tell_verdict(terminal, package, table)
    _write(terminal, table, options)
    failed = [f"the verdict has {level}s" for level in LEVELS.get(options.get("fail_on", ""), ()) if level in levels]
    _judge(failed + exceeded(table, options.get("max", {}), options.get("min", {})))


@command(
    "evaluate-perturbation",
    click.Argument(["real"], type=existing()),
    click.Argument(["synthetic"], type=existing()),
    Option(["--control"], section=CELLS, type=existing(), required=True, help="Real unperturbed cells."),
    Option(
        ["--perturbation-key", "-p"],
        section=CELLS,
        metavar="COLUMN",
        required=True,
        help="Column of obs with the perturbation.",
    ),
    Option(
        ["--train", "-t"],
        section=CELLS,
        type=existing(),
        help="Real cells that the model was trained on, for baselines.",
    ),
    Option(
        ["--other"],
        section=CELLS,
        type=Keyed(key="NAME", value="FILE"),
        help="Cells that another method predicts; a column of its own.",
    ),
    Option(
        ["--groupby", "-g"],
        section=CELLS,
        metavar="COLUMN",
        help="Column such as the cell type.",
    ),
    Option(["--separator"], section=CELLS, metavar="TEXT", help="What stands between the parts of a combination."),
    Option(
        ["--layer", "-l"], section=CELLS, metavar="NAME", help="Layer with the counts."
    ),
    Option(
        ["--n-top"], section=JUDGING, type=int, multiple=True, metavar="N", help="How many genes are the most changed."
    ),
    Option(["--ranking"], section=JUDGING, metavar="NAME", help="By what genes are ranked."),
    *OF_JUDGING,
    *OF_THRESHOLDS,
    *OF_OUTPUT,
    short_help="Judge predicted perturbations.",
)
def evaluate_perturbation(terminal: Terminal, options: dict[str, Any]) -> None:
    """Judge predicted cells of perturbations beside real ones, simple baselines and other methods.

    Thresholds hold for the mean over perturbations.

    scgen-diffusion evaluate-perturbation real.h5ad predicted.h5ad --control control.h5ad -p perturbation -o table.csv
    """
    _check_output(options)
    package = terminal.libraries()
    files = python_options(options, "real", "synthetic", "control", "train")
    cells = _read(terminal, files)
    arguments = python_options(
        options, "perturbation_key", "groupby", "separator", "layer", "ranking", "max_cells", "n_floor", "seed"
    )
    if "n_top" in options:
        arguments["n_top"] = list(options["n_top"])
    if "other" in options:
        from pathlib import Path

        arguments["others"] = _read(terminal, {name: Path(path) for name, path in options["other"].items()})
    real, predicted = cells.pop("real"), cells.pop("synthetic")
    table = package.metrics.evaluate_perturbation(real, predicted, **cells, **arguments)
    means = table.groupby("metric", sort=False)["value"].mean().reset_index().assign(group="all")
    terminal.say(means[["metric", "value"]].to_string(index=False, float_format="{:.4g}".format))
    _write(terminal, table, options)
    _judge(exceeded(means, options.get("max", {}), options.get("min", {})))


def exceeded(table: pd.DataFrame, largest: Mapping[str, float], smallest: Mapping[str, float]) -> list[str]:
    """Name the metrics, of all cells, whose values are beyond the limits, or are no numbers.

    Raises
    ------
    click.UsageError
        For a metric that the table does not have.
    """
    rows = table[table["group"] == "all"]
    found = []
    for limits, word, is_beyond in ((largest, "above", float.__gt__), (smallest, "below", float.__lt__)):
        for metric, limit in limits.items():
            values = rows.loc[rows["metric"] == metric, "value"].astype(float)
            if values.empty:
                msg = f"There is no metric {metric!r} in the table. {closest_names(metric, list(dict.fromkeys(rows['metric'])))}"
                raise click.UsageError(msg)
            beyond = [value for value in values if math.isnan(value) or is_beyond(value, float(limit))]
            found += [f"{metric} is {value:.4g}, {word} {limit:g}" for value in beyond]
    return found


def _check_output(options: Mapping[str, Any]) -> None:
    if "out" in options:
        inputs = python_options(options, "real", "synthetic", "train", "control").values()
        check_new(options["out"], overwrite=options.get("overwrite", False), suffixes=[".csv"], inputs=inputs)


def _check_metrics(package: Any, options: Mapping[str, Any]) -> None:
    """Raise for a threshold that no metric has, before minutes of work."""
    known = [*package.metrics.CATALOGUE, *CROSS_METRICS]
    for metric in [*options.get("max", {}), *options.get("min", {})]:
        if metric not in known:
            msg = f"There is no metric {metric!r}. {closest_names(metric, known)}"
            raise click.UsageError(msg)


def _read(terminal: Terminal, files: Mapping[str, Any], *, backed: bool = False) -> dict[str, Any]:
    terminal.say(f"Reading {', '.join(map(str, files.values()))}")
    return {name: read_cells(path, backed=backed) for name, path in files.items()}


def _all_paired(files: Mapping[str, Any]) -> bool:
    paired = [are_paired(path) for path in files.values()]
    if any(paired) and not all(paired):
        msg = "Either all files are .h5mu, or none is."
        raise click.UsageError(msg)
    return all(paired)


def _layers(options: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    layer = options.get("layer")
    if layer is None:
        return {}
    if isinstance(layer, Mapping) != _all_paired(files):
        msg = "--layer takes MODALITY=NAME for .h5mu, and NAME for other files."
        raise click.UsageError(msg)
    return {"layers" if isinstance(layer, Mapping) else "layer": layer}


def _write(terminal: Terminal, table: pd.DataFrame, options: Mapping[str, Any]) -> None:
    if "out" not in options:
        written = io.StringIO()
        table.to_csv(written, index=False)
        terminal.result(written.getvalue().rstrip("\n"))
        return
    with whole(options["out"]) as beside:
        table.to_csv(beside, index=False)
    terminal.result(options["out"])


def _tell_verdict(terminal: Terminal, package: Any, table: pd.DataFrame) -> set[str]:
    """Say the verdict, of each modality if there are several, and return the levels of its findings."""
    levels = set()
    parts = {"": table} if "modality" not in table else {f"{name}: ": part for name, part in table.groupby("modality")}
    for name, part in parts.items():
        verdict = package.metrics.verdict(part)
        terminal.say_wrapped(f"{name}{verdict.summary}")
        for finding in verdict.findings:
            terminal.say_wrapped(f"{finding.topic}: {finding.message}", label=f"[{finding.level}]")
        levels |= {finding.level for finding in verdict.findings}
    return levels


def _judge(failed: list[str]) -> None:
    if failed:
        msg = f"Not good enough: {'; '.join(failed)}."
        raise Stop(msg, ExitCode.BELOW_THRESHOLD)
