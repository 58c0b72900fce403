"""``scgen-diffusion evaluate``, ``evaluate-perturbation`` and ``report``: from files of cells to a table or a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import known_names, list_first
from scgen_diffusion._files import write_atomically

from ._command import Keyed, Model, columns, command, existing, flag, given, new, option
from ._files import MUDATA, check_place, read_cells, read_table
from ._terminal import ExitCode, Stop, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from anndata import AnnData

    from scgen_diffusion.data import CellFiles

COUNTS = "counts"  # layer that `evaluate` reads by default
LEVELS = {"warning": ("warning",), "note": ("warning", "note")}

CELLS, JUDGING, OUTPUT = "Cells", "Judging", "Output"
ARGUMENTS = [click.Argument(["real"], type=existing()), click.Argument(["synthetic"], type=existing())]
TRAIN = option(
    "--train -t",
    "Real cells that the model was trained on. Several files are read part by part.",
    existing(),
    multiple=True,
)
GROUPBY = columns("--groupby -g", "Column of obs with the label; several are joined.")
BACKED = flag("--backed", "Leave values in their files, and read them part by part (.h5ad, .zarr).")
VALUES = option("--values", "Kind of the values, as in train; default: counts.", click.Choice(["counts", "log1p"]))
SHARED_GENES = flag("--shared-genes", "Compare the genes that all sets of cells have.")
SEED = option("--seed", "Seed of all random draws.", click.IntRange(min=0))
OVERWRITE = flag("--overwrite", "Replace an existing file.")
METRIC = option("--metric", "Compute only this metric. Repeatable.", metavar="NAME", multiple=True)
OF_JUDGING = [
    option("--max-cells", "Largest number of cells compared on each side; default: 2000.", int),
    option("--n-floor", "Repeats for the score of real cells; 0 for none; default: 5.", int),
    SEED,
]
OF_OUTPUT = [option("--out -o", "File for the table; default: stdout.", new(dir_okay=False), "FILE.csv"), OVERWRITE]


@command(
    "evaluate",
    ARGUMENTS,
    {
        CELLS: [
            TRAIN,
            GROUPBY,
            option("--layer -l", "Layer with the values of the real cells.", Keyed("[MODALITY=]NAME")),
            VALUES,
            BACKED,
            SHARED_GENES,
        ],
        JUDGING: [
            METRIC,
            *OF_JUDGING,
            option("--n-bootstrap", "Half-samples for intervals, 5 or more; 0 for none; default: 10.", int),
            option("--fail-on", "Exit code 3 on warnings, or on warnings and notes.", click.Choice(list(LEVELS))),
        ],
        OUTPUT: OF_OUTPUT,
    },
    short_help="Compare synthetic with real cells.",
)
def evaluate(terminal: Terminal, options: dict[str, Any]) -> None:
    """Compare synthetic cells with held-out real cells (.h5ad, .zarr; .h5mu for several modalities).

    scgen-diffusion evaluate held_out.h5ad synthetic.h5ad --train train.h5ad --groupby cell_type --out table.csv
    """
    needed = {"n_floor": "the scores of real cells; give --n-floor 1", "n_bootstrap": "intervals; give --n-bootstrap 5"}
    for name, what in needed.items() if "fail_on" in options else ():
        if options.get(name) == 0:
            msg = f"--fail-on needs {what} or more."
            raise click.UsageError(msg)
    package, table = _evaluated(terminal, options)
    levels, is_judged = set(), False
    parts = {"": table} if "modality" not in table else {f"{name}: ": part for name, part in table.groupby("modality")}
    for name, part in parts.items():
        summary = package.report.summary(part)
        terminal.say(f"{name}{summary if terminal.verbose else summary.headline}")
        levels |= set(summary.table["level"])
        is_judged |= summary.is_judged
    fatal = LEVELS.get(options.get("fail_on", ""), ())
    failed = [f"the summary has {level}s" for level in fatal if level in levels]
    if fatal and not is_judged:
        failed.append("no figure can be judged")
    _write(terminal, table, options)
    if failed:
        msg = f"Not good enough: {'; '.join(failed)}."
        raise Stop(msg, ExitCode.NOT_GOOD_ENOUGH)


@command(
    "evaluate-perturbation",
    ARGUMENTS,
    {
        CELLS: [
            option("--control", "Real unperturbed cells.", existing(), required=True),
            option("--perturbation-key -p", "Column of obs with the perturbation.", metavar="COLUMN", required=True),
            option("--train -t", "Real cells that the model was trained on, for baselines.", existing()),
            option("--other", "Predictions of another method, for a separate column.", Keyed("NAME=FILE", Path)),
            columns("--groupby -g", "Column of obs with groups, such as the cell type; several are joined."),
            columns("--match", "Column of obs, such as the donor, within which changes are taken. Repeatable."),
            option("--separator", "Separator between the parts of a combination.", metavar="TEXT"),
            option("--layer -l", "Layer with the values.", metavar="NAME"),
            VALUES,
            SHARED_GENES,
        ],
        JUDGING: [METRIC, *OF_JUDGING],
        OUTPUT: OF_OUTPUT,
    },
    short_help="Evaluate predicted perturbations.",
)
def evaluate_perturbation(terminal: Terminal, options: dict[str, Any]) -> None:
    """Compare predicted perturbed cells with real ones, simple baselines and other methods.

    scgen-diffusion evaluate-perturbation real.h5ad predicted.h5ad --control control.h5ad -p perturbation -o table.csv
    """
    _, table = _evaluated(terminal, options)
    figures = list(table.select_dtypes("number").columns)  # of the prediction, the baselines and other methods
    shown = [name for name in figures if name == "value" or table[name].notna().any()]
    means = table.groupby("metric", sort=False)[shown].mean().reset_index()
    terminal.say(means.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    by_metric = table.groupby("metric", sort=False)[shown]
    is_partial = (by_metric.count() > 0) & by_metric.count().lt(by_metric.size(), axis=0)
    if partial := [name for name in shown if is_partial[name].any()]:
        terminal.say(f"For some perturbations there are no figures of {', '.join(partial)}: their means skip these.")
    if absent := [name for name in options.get("other", {}) if name not in shown]:
        terminal.say(f"There are no figures of {', '.join(absent)}: no perturbation has two or more of its cells.")
    _write(terminal, table, options)


@command(
    "report",
    ARGUMENTS,
    {
        CELLS: [
            TRAIN,
            GROUPBY,
            option("--layer -l", "Layer with the values of the real cells.", metavar="NAME"),
            VALUES,
            BACKED,
            SHARED_GENES,
        ],
        "Page": [
            option("--table", "Table of evaluate for these cells, to save time.", existing(dir_okay=False)),
            option("--model", "The model, to show its training: a folder, or the name of a pretrained model.", Model()),
            option("--title", "Title of the page.", metavar="TEXT"),
            option("--max-cells", "Most cells compared and drawn on each side; default: 2000.", int),
            SEED,
            option("--out -o", "File to write.", new(dir_okay=False), "FILE.html", required=True),
            OVERWRITE,
        ],
    },
    short_help="Write an HTML report of synthetic cells.",
)
def report(terminal: Terminal, options: dict[str, Any]) -> None:
    """Write an HTML page that compares synthetic with real cells: summary, metrics and plots.

    scgen-diffusion report held_out.h5ad synthetic.h5ad --train train.h5ad --groupby cell_type --out report.html
    """
    files = given(options, "real", "synthetic", "train")
    _check_output(options, [*_paths(files), *given(options, "table", "model").values()], ".html")
    if any(path.suffix == MUDATA for path in _paths(files)):
        msg = "A report is of one modality, in .h5ad or .zarr files; `evaluate` takes .h5mu files."
        raise click.UsageError(msg)
    package = terminal.libraries()
    arguments = given(options, "groupby", "title", "max_cells", "seed") | _layer(options)
    if "table" in options:
        # labels such as "NA" and "" are text; only figures that `evaluate` left empty are missing
        empty = dict.fromkeys(package.metrics.FIGURES, [""])
        arguments["table"] = read_table(options["table"], keep_default_na=False, na_values=empty)
        package.report.summary(arguments["table"])  # raises for other tables, before the cells are read
    if "model" in options:
        arguments["model"] = package.model.load(options["model"], adata=False)
    cells = _read(terminal, files, options)
    if "shared_genes" in options:
        _share_genes(terminal, cells)
    terminal.say("Comparing and plotting")
    terminal.result(
        package.report.write(cells.pop("real"), cells.pop("synthetic"), options["out"], **cells, **arguments)
    )


def _evaluated(terminal: Terminal, options: Mapping[str, Any]) -> tuple[Any, pd.DataFrame]:
    """Return the package, and the table of ``metrics.evaluate``."""
    files, others = given(options, "real", "synthetic", "train", "control"), options.get("other", {})
    _check_output(options, [*others.values(), *_paths(files)], ".csv")
    if missing := [path for path in others.values() if not path.exists()]:
        msg = f"--other: there is no file {missing[0]}."
        raise click.UsageError(msg)
    has_modalities = {path.suffix == MUDATA for path in _paths(files)}
    if len(has_modalities) > 1:
        msg = "Either all files must be .h5mu, or none."
        raise click.UsageError(msg)
    if has_modalities == {True} and "shared_genes" in options:
        msg = "--shared-genes is for .h5ad and .zarr files; all .h5mu files must have the same features."
        raise click.UsageError(msg)
    if "layer" in options and isinstance(options["layer"], Mapping) is not (True in has_modalities):
        msg = "--layer takes MODALITY=NAME for .h5mu files, and NAME for other files."
        raise click.UsageError(msg)
    if has_modalities == {True} and "values" in options:
        msg = "--values is for .h5ad and .zarr files; modalities of .h5mu must hold counts."
        raise click.UsageError(msg)
    package = terminal.libraries()
    cells = _read(terminal, files, options)
    other_cells = _read(terminal, others, options) if others else {}
    if "shared_genes" in options:
        _share_genes(terminal, cells, other_cells.values())
    arguments = cells | ({"others": other_cells} if other_cells else {}) | _layer(options)
    names = ("groupby", "perturbation_key", "separator", "max_cells", "n_floor", "n_bootstrap", "seed")
    for name, value in given(options, *names, "metric", "match").items():
        argument = {"metric": "metrics", "match": "match_keys"}.get(name, name)
        arguments[argument] = list(value) if isinstance(value, tuple) else value
    return package, package.metrics.evaluate(arguments.pop("real"), arguments.pop("synthetic"), **arguments)


def _check_output(options: Mapping[str, Any], inputs: Sequence[Path], suffix: str) -> None:
    if "out" in options:
        overwrite = options.get("overwrite", False)
        check_place(options["out"], overwrite=overwrite, suffixes=[suffix], inputs=inputs)


def _paths(files: Mapping[str, Path | tuple[Path, ...]]) -> list[Path]:
    """Return the paths of all files; ``--train`` may give several."""
    return [path for paths in files.values() for path in (paths if isinstance(paths, tuple) else [paths])]


def _read(
    terminal: Terminal, files: Mapping[str, Path | tuple[Path, ...]], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Read each set of cells; those in several files stay there."""
    terminal.say(f"Reading {list_first(_paths(files))}")
    is_backed, cells = options.get("backed", False), {}
    for name, path in files.items():
        paths = path if isinstance(path, tuple) else (path,)
        cells[name] = _open_together(paths, options) if len(paths) > 1 else read_cells(paths[0], backed=is_backed)
        if options.get("values") == "log1p" and len(paths) == 1:
            is_real = name in ("real", "train", "control")
            cells[name] = _as_logarithms(cells[name], options.get("layer"), str(paths[0]), is_real=is_real)
    return cells


def _layer(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``layer`` of counts; logarithms are moved to X, where ``evaluate`` looks for them."""
    return {} if options.get("values") == "log1p" else given(options, "layer")


def _as_logarithms(cells: AnnData, layer: str | None, where: str, *, is_real: bool) -> AnnData:
    """Return cells whose X holds the logarithms of a layer; generated cells may lack it, and may hold counts instead.

    Raises
    ------
    click.UsageError
        If real cells lack the layer, or hold counts.
    """
    from anndata import AnnData

    from scgen_diffusion.data import are_whole_numbers, layer_names

    if layer is not None and layer in cells.layers:
        cells = AnnData(cells.layers[layer], obs=cells.obs, var=cells.var, uns=dict(cells.uns))
    elif layer is not None and is_real:
        msg = f"{where} has no layer {layer!r}. {known_names(layer, layer_names(cells))}"
        raise click.UsageError(msg)
    elif COUNTS in cells.layers:
        del cells.layers[COUNTS]  # which would be read instead of X
    if not are_whole_numbers(cells.X):
        cells.uns.setdefault("log1p", {})
    elif is_real:
        msg = f"{where} holds whole numbers only, like counts, not log-normalised values; leave out --values log1p."
        raise click.UsageError(msg)
    else:
        cells.uns.pop("log1p", None)
    return cells


def _share_genes(terminal: Terminal, cells: dict[str, Any], more: Iterable[Any] = ()) -> None:
    """Cut the real cells to the genes of all sets; of the others, ``evaluate`` takes the same genes."""
    real, genes = cells["real"], cells["real"].var_names
    for other in (*cells.values(), *more):
        genes = genes[genes.isin(other.var.index)]
    terminal.say(f"{len(genes)} of the {real.n_vars} genes of the real cells are in all sets of cells.")
    if 0 < len(genes) < real.n_vars:  # without any, `evaluate` says how the names differ
        cells["real"] = real[:, real.var_names.isin(genes)]


def _open_together(paths: Sequence[Path], options: Mapping[str, Any]) -> CellFiles:
    """Open several files with the layer that ``evaluate`` reads.

    Raises
    ------
    click.UsageError
        For several modalities.
    """
    from scgen_diffusion.data import ComparedFiles, open_anndata_files

    if any(path.suffix == MUDATA for path in paths):
        msg = f"There can be only one .h5mu file of each set of cells, but found {list_first(paths)}."
        raise click.UsageError(msg)
    first = open_anndata_files(paths[0])[0]
    if (values := options.get("values", "counts")) == "log1p":
        return ComparedFiles(paths, layer=options.get("layer"), genes="shared", values=values)
    layer = options.get("layer", COUNTS if COUNTS in first.layers else None)
    return ComparedFiles(paths, layer=layer, genes="shared")


def _write(terminal: Terminal, table: pd.DataFrame, options: Mapping[str, Any]) -> None:
    """Write a table to a file if one is named, else to stdout."""
    if "out" in options:
        with write_atomically(options["out"]) as beside:
            table.to_csv(beside, index=False)
        terminal.say("Table:")
        terminal.result(options["out"])
    else:
        terminal.result(table.to_csv(index=False).rstrip("\n"))
