"""One HTML file that judges and shows synthetic cells."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scgen_diffusion import pl
from scgen_diffusion._arguments import as_list, check_count, list_first
from scgen_diffusion._files import write_atomically
from scgen_diffusion._version import VERSION
from scgen_diffusion.data import (
    JOIN,
    PROVENANCE_KEY,
    CellFiles,
    check_is_anndata,
    join_labels,
    make_indexable,
    obs_column,
)
from scgen_diffusion.metrics import (
    ALL,
    DESCRIPTIONS,
    FIGURES,
    IDEALS,
    MIN_CELLS_PER_GROUP,
    MIN_CELLS_TESTED,
    evaluate,
    expression_of,
    gene_differences,
    notes_of_record,
)

from ._verdict import verdict, worst

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

SUFFIX = ".html"
DPI = 110
SMALLEST = 0.6  # to which a page may shrink a picture, with letters of 6.4 pixels; wider ones are scrolled
BETTER = {"lower": "Lower is better.", "higher": "Higher is better.", "floor": "Best where real cells are."}
WIDTH, MARGIN = 220.0, 8.0  # pixels of a row's picture
NONE = "–"
OTHER_TOPIC = "Other metrics"  # those that the table has of its own
N_GENES = 10  # that differ most
MOST_LABELS = 40  # in a picture; with hundreds, as of perturbations, it would have a hundred million pixels
MIN_GENES_CORRELATED = 3
SECTIONS = {
    "Cells": "Good synthetic cells fill the regions of real cells, all of them, and nothing between them.",
    "Labels": (
        "Whether each label is as good as the others. A rare label can be poor although all cells together look good."
    ),
    "Genes": "How genes vary, one by one and together.",
    "Training": (
        "Losses that still fall ask for more training; a validation loss that rises while the training loss falls is "
        "overfitting."
    ),
}


def write(
    real_test: AnnData,
    synthetic: AnnData,
    path: str | os.PathLike[str],
    *,
    train: AnnData | CellFiles | None = None,
    groupby: str | Sequence[str] | None = None,
    layer: str | None = None,
    table: pd.DataFrame | None = None,
    model: Any | None = None,
    title: str = "Synthetic cells beside real cells",
    max_cells: int = 2_000,
    seed: int = 0,
) -> Path:
    """Write one HTML file that judges and shows synthetic cells; it needs no network and no other file.

    It holds a verdict in plain language with warnings (memorised, type dropped, wrong zeros ...), every figure of
    :func:`~scgen_diffusion.metrics.evaluate` beside its floor, and the plots of :mod:`scgen_diffusion.pl`.

    Parameters
    ----------
    real_test
        Real cells that no model has seen.
    synthetic
        Cells to judge, from whatever tool, with the same genes.
    path
        The file to write; an existing one is replaced, and only by a whole one.
    train
        Real cells that the generator was trained on, also as :class:`~scgen_diffusion.data.CellFiles`. Without them
        nothing can be said about memorisation.
    groupby
        Column of `obs`, or several, with the labels that the cells have or were asked to have.
    layer
        Layer with the counts, in all that are given.
    table
        What :func:`~scgen_diffusion.metrics.evaluate` returned for these cells and this ``groupby``, if it was called
        already.
    model
        Trained model, whose training history is shown.
    title
        Heading of the page.
    max_cells
        Cells of each kind that are compared and drawn; a seeded draw where there are more.
    seed
        Decides all random draws.

    Returns
    -------
    The path of the file.

    Raises
    ------
    KeyError
        If a layer or a column of ``groupby`` is missing.
    TypeError
        If ``real_test`` or ``synthetic`` is no AnnData, or ``path`` is no name.
    ValueError
        If ``path`` does not end in ``.html``, ``table`` has labels that the cells lack, and what
        :func:`~scgen_diffusion.metrics.evaluate` raises.
    FileNotFoundError, IsADirectoryError
        If there is no folder for the file, or ``path`` is a folder.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> cells = scgd.datasets.pbmc68k_reduced()
    >>> path = scgd.report.write(
    ...     cells[:200], cells[200:400], "report.html", train=cells[400:]
    ... )  # doctest: +SKIP
    """
    path = _checked_path(path)
    sets = {"real_test": real_test, "synthetic": synthetic}
    for name, cells in sets.items():
        check_is_anndata(cells, name, " A report of one modality takes `mdata[modality]`.")
    check_count("max_cells", max_cells, MIN_CELLS_PER_GROUP)  # `evaluate` does not see it if a table is given
    source = "a table that was given"
    if table is None:
        table = evaluate(
            real_test, synthetic, train=train, groupby=groupby, layer=layer, max_cells=max_cells, seed=seed
        )
        source = f"at most {max_cells:,} cells on either side"
    keys = as_list(groupby)
    for name, cells in sets.items():
        for key in keys:
            obs_column(cells, key, name)  # raises if there is none
    labels = list(dict.fromkeys(join_labels(real_test.obs, keys).tolist())) if keys else []
    judged = verdict(_with_notes(table, labels, synthetic))
    if keys:
        _check_labels(table, {*labels, *join_labels(synthetic.obs, keys)}, labels, keys)
    label = JOIN.join(keys) or None
    rng = np.random.default_rng(seed)
    real, drawn = (_for_plots(cells, keys, max_cells, rng) for cells in sets.values())
    shown = table.assign(group=table["group"].map(_escape_dollars))
    pictures, skipped = draw(real, drawn, shown, label=_escape_dollars(label), layer=layer, model=model, seed=seed)

    seen = "training cells not given"
    if train is not None:
        seen = f"{train.n_cells if isinstance(train, CellFiles) else train.n_obs:,} training cells"
    settings = _record_of(synthetic) | {
        "labels": label or "none",
        "layer": layer or "counts, else X",
        "scores from": source,
        "cells drawn at most": f"{max_cells:,}",
        "seed": str(seed),
        "written by": f"scgen-diffusion {VERSION}",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    template = files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        title=title,
        subtitle=(
            f"{synthetic.n_obs:,} synthetic cells, {real_test.n_obs:,} real cells held out, {seen}; "
            f"{real_test.n_vars:,} genes"
        ),
        version=VERSION,
        verdict=judged,
        verdict_level=worst(["ok", *(finding.level for finding in judged.findings)]),
        headline=judged.headline,
        others=judged.summary.removeprefix(judged.headline).lstrip(),
        topics=_topics(table[table["group"] == ALL]),
        labels=[] if label is None else _labels(real_test, synthetic, keys, table, has_train=train is not None),
        genes=_genes(real, drawn, keys, layer),
        width=WIDTH,
        sections=[
            {"title": section, "anchor": section.lower(), "text": SECTIONS[section], "pictures": own}
            for section, own in pictures.items()
        ],
        settings=settings,
        skipped=skipped,
        has_groups=label is not None,
    )
    with write_atomically(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


def _checked_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a report; raise unless a file can be written there."""
    if not isinstance(path, str | os.PathLike):
        msg = (
            f"`path` must be the name of a file, but is {type(path).__name__}. "
            "The order is write(real_test, synthetic, path), such as write(held_out, synthetic, 'report.html')."
        )
        raise TypeError(msg)
    path = Path(path).expanduser()
    if path.suffix.lower() != SUFFIX:
        msg = f"`path` must end in {SUFFIX!r}, but found {str(path)!r}."
        raise ValueError(msg)
    if path.is_dir():
        msg = f"`path` {str(path)!r} is a folder; name the file to write."
        raise IsADirectoryError(msg)
    if not path.parent.is_dir():
        msg = f"There is no folder {str(path.parent)!r} for the report; make it first."
        raise FileNotFoundError(msg)
    return path


def _with_notes(table: pd.DataFrame, labels: Sequence[str], synthetic: AnnData) -> pd.DataFrame:
    """Note in a table from a file what it lost: labels with too few cells to compare, and what the cells record."""
    if not isinstance(table, pd.DataFrame) or "n_cells" in table.attrs:
        return table
    table = table.copy()
    table.attrs |= notes_of_record(synthetic) | table.attrs
    if {*labels} & {*table.get("group", ())}:
        none = dict.fromkeys(labels, 0)
        table.attrs["n_cells"] = dict.fromkeys(table["modality"], none) if "modality" in table else none
    return table


def _check_labels(table: pd.DataFrame, known: set[str], real: list[str], keys: Sequence[str]) -> None:
    """Raise if a table has figures of a label that no cell has."""
    if other := {*table["group"].dropna().astype(str)} - {ALL, *known}:
        msg = (
            f"`table` is of other cells or of another `groupby`: it has figures of the label {min(other)!r}, but the "
            f"labels of {' and '.join(keys)} are {list_first(real)}."
        )
        raise ValueError(msg)


def _record_of(synthetic: AnnData) -> dict[str, str]:
    """Return what cells say of how they were made, as text; the cells may be from whatever tool."""
    record = synthetic.uns.get(PROVENANCE_KEY, {})
    record = record if isinstance(record, Mapping) else {"origin": record}
    return {f"cells: {name}": _as_text(value) for name, value in record.items()}


def _as_text(value: Any) -> str:
    """Return an entry of ``uns`` as text; of tables, the verdict on each combination, or the number of rows."""
    if not isinstance(value, pd.DataFrame):
        return str(value)
    if "verdict" not in value:
        return f"a table of {len(value):,} rows"
    return "; ".join(f"{row['combination']}: {row['verdict']}, as {row['reason']}" for _, row in value.iterrows())


def _for_plots(cells: AnnData, keys: Sequence[str], max_cells: int, rng: np.random.Generator) -> AnnData:
    """Return some of the cells, several labels joined to one."""
    cells = make_indexable(cells)[np.sort(rng.permutation(cells.n_obs)[:max_cells])]
    cells = cells.to_memory() if cells.isbacked else cells.copy()
    if keys:
        label = JOIN.join(keys)
        if len(keys) > 1:
            cells.obs[label] = pd.Categorical(join_labels(cells.obs, keys))
        cells.obs[_escape_dollars(label)] = cells.obs[label].map(_escape_dollars)
    cells.var_names = cells.var_names.map(_escape_dollars)
    return cells


def _escape_dollars(name: Any) -> Any:
    """Return a name of the data as it is drawn: without this, text between two `$` would be a formula."""
    return name.replace("$", r"\$") if isinstance(name, str) else name


def draw(
    real: AnnData,
    synthetic: AnnData,
    table: pd.DataFrame,
    *,
    label: str | None,
    layer: str | None,
    model: Any | None,
    seed: int = 0,
) -> tuple[dict[str, list[dict[str, str]]], list[str]]:
    """Draw what can be drawn: the pictures of each section, and what was left out and why."""
    pictures: dict[str, list[dict[str, str]]] = {}
    skipped = []
    options = {"layer": layer, "seed": seed, "show": False}

    def add(section: str, axes: Axes | Sequence[Axes], caption: str) -> None:
        pictures.setdefault(section, []).append({**_as_png(axes), "caption": caption})

    keys = [] if label is None else [label]
    sizes, of_synthetic = (pd.Series(join_labels(cells.obs, keys)).value_counts() for cells in (real, synthetic))
    labels, only = list(dict.fromkeys([*sizes.index, *of_synthetic.index])), ""
    shown = labels[:MOST_LABELS]
    if len(labels) > MOST_LABELS:
        only = f" Only the {MOST_LABELS} labels with most real cells are drawn; the table lists all."
    axes = pl.umap(real, synthetic, color=None if only else label, **options)
    add("Cells", axes, "One UMAP of real and synthetic cells. Cells unlike any real cell lie apart from the real ones.")
    sets = {"real_test": real, "synthetic": synthetic}
    both = [expression_of(cells, layer=layer, name=name) for name, cells in sets.items()]
    if all(expression.library_sizes is not None for expression in both):
        add("Cells", pl.library_size(real, synthetic, **options), "Total counts per cell.")
    else:
        skipped.append("total counts, because the cells are log-normalised")

    if label is None:
        skipped.append("scores of each label, because `groupby` was not given")
    else:
        pictures["Labels"] = []
    of_labels = table[table["group"].isin(shown)] if only else table[table["group"] != ALL]
    if label is not None and len(of_labels):
        of_all = table[(table["group"] == ALL) & table["metric"].isin(of_labels["metric"])]
        axes = pl.scores(pd.concat([of_all, of_labels]), show=False)
        add("Labels", axes, f"Scores of all cells, and of the labels that have any.{only}")
    drawn = [real, synthetic]
    if only:
        drawn = [cells[np.isin(join_labels(cells.obs, [label]), shown)] for cells in drawn]
    if not drawn[1].n_obs:
        skipped.append("marker genes, because no synthetic cell has one of the labels with most real cells")
    elif ((sizes > 1) & (sizes.sum() - sizes > 1)).any():
        axes = pl.marker_dotplot(*drawn, groupby=label, **options)
        add("Labels", axes, f"Marker genes of the real cells, real beside synthetic.{only}")
    else:
        skipped.append("marker genes, because there are no two labels to compare")

    axes = pl.mean_variance(real, synthetic, **options)
    add("Genes", axes, "Variance against mean of log-normalised expression. Each dot is a gene.")
    caption = "Share of cells in which a gene is not seen. Each dot is a gene; on the diagonal, it is the same."
    add("Genes", pl.zero_fraction(real, synthetic, **options), caption)
    if real.n_vars < MIN_GENES_CORRELATED:
        skipped.append("correlations of genes, because there are fewer than three genes")
    else:
        axes = pl.gene_correlation(real, synthetic, groupby=label, **options)
        caption = "Correlations of the genes that vary most in real cells, in the order of a clustering of these. "
        add("Genes", axes, f"{caption}Their scores above are of the most expressed genes instead.")

    if model is None:
        skipped.append("the losses of training, because `model` was not given")
    elif not getattr(model, "history", None):
        skipped.append("the losses of training, because `model` has no training history")
    else:
        add("Training", pl.training_history(model, show=False), "Loss during training.")
    return pictures, skipped


def _as_png(axes: Axes | Sequence[Axes]) -> dict[str, str]:
    """Close a figure, and return its picture in the letters of base64 and the least width to show it."""
    figure = (axes if hasattr(axes, "figure") else axes[0]).figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    png = buffer.getvalue()
    min_width = round(SMALLEST * int.from_bytes(png[16:20], "big"))  # where a PNG file has its width
    return {"png": base64.b64encode(png).decode("ascii"), "min_width": str(min_width)}


def _labels(
    real: AnnData, synthetic: AnnData, keys: Sequence[str], table: pd.DataFrame, *, has_train: bool
) -> list[dict[str, object]]:
    """List every label with its cells, and with precision and recall or the reason why they are missing."""
    labels = {"real": join_labels(real.obs, keys), "synthetic": join_labels(synthetic.obs, keys)}
    sizes = {side: pd.Series(own).value_counts() for side, own in labels.items()}
    values = table.set_index(["metric", "group"])["value"]
    columns = real.obs[list(keys)].reset_index(drop=True)  # the index may have the name of a key
    by_category = columns.astype("category").sort_values(list(keys)).index
    needed = dict.fromkeys(sizes, (MIN_CELLS_PER_GROUP, str(MIN_CELLS_PER_GROUP)))
    if not has_train:  # a random third of the real cells fits the space, another plays the synthetic cells
        needed["real"] = 4 * MIN_CELLS_PER_GROUP, f"about {3 * MIN_CELLS_PER_GROUP}"
    rows = []
    for label in dict.fromkeys([*labels["real"][by_category], *sorted(sizes["synthetic"].index)]):
        n = {side: int(counts.get(label, 0)) for side, counts in sizes.items()}
        figures = {name: values.get((name, label), np.nan) for name in ("precision", "recall")}
        few = [f"{words} {side}" for side, (least, words) in needed.items() if n[side] < least]
        reason = f"needs {' and '.join(few)} cells" if few else "not measured"
        missing = "" if np.isfinite(list(figures.values())).any() else reason
        rows.append({"name": label, **n, "missing": missing, **{name: written(v) for name, v in figures.items()}})
    return rows


def _genes(real: AnnData, synthetic: AnnData, keys: Sequence[str], layer: str | None) -> list[dict[str, str]]:
    """List the genes that differ most within labels, or in all cells if no label has enough; none of few cells."""
    if min(real.n_obs, synthetic.n_obs) < MIN_CELLS_TESTED:
        return []
    if keys:
        sizes = [pd.Series(join_labels(cells.obs, keys)).value_counts() for cells in (real, synthetic)]
        keys = keys if (pd.concat(sizes, axis=1).min(axis=1, skipna=False) >= MIN_CELLS_TESTED).any() else []
    figures = ("real", "synthetic", "real_share", "synthetic_share", "t")
    return [
        {"gene": row["gene"].replace(r"\$", "$"), "group": "" if row["group"] == ALL else row["group"]}
        | {name: written(row[name]) for name in figures}
        for _, row in gene_differences(real, synthetic, groupby=keys or None, layer=layer).head(N_GENES).iterrows()
    ]


def _topics(table: pd.DataFrame) -> dict[str, list[dict[str, object]]]:
    """Write the rows of all cells in words, by topic."""
    topics: dict[str, list[dict[str, object]]] = {}
    for _, row in table.iterrows():
        meaning = "" if row["metric"] in IDEALS else BETTER.get(row["better"], "")
        topic, title = OTHER_TOPIC, row["metric"]
        if (words := DESCRIPTIONS.get(row["metric"])) is not None:
            topic, title = words.topic, words.title[0].upper() + words.title[1:]
            meaning = f"{words.meaning} {meaning}".rstrip()
        topics.setdefault(topic, []).append({**_row(row), "title": title, "meaning": meaning})
    return topics


def _row(row: pd.Series) -> dict[str, object]:
    """Write the figures of a metric, and place them on a common axis that just holds them; None if unknown."""
    figures = row[list(FIGURES)].astype(float)
    finite = figures[np.isfinite(figures)]
    start, span = (finite.min(), np.ptp(finite)) if len(finite) else (0.0, 0.0)
    inner = WIDTH - 2 * MARGIN
    scale = {
        name: round(MARGIN + inner * ((figure - start) / span if span > 0 else 0.5), 1) if name in finite else None
        for name, figure in figures.items()
    }
    has_interval = np.isfinite(figures[["low", "high"]]).all()
    return {name: written(figures[name]) for name in ("value", "floor", "shuffled")} | {
        "metric": row["metric"],
        "interval": f"{written(figures['low'])} to {written(figures['high'])}" if has_interval else "",
        "scale": scale,
    }


def written(figure: float) -> str:
    """Write a figure with three significant digits; a dash where there is none."""
    if not np.isfinite(figure):
        return NONE
    if figure == 0:
        return "0"
    magnitude = abs(figure)
    if magnitude >= 999.5:  # it rounds to four digits
        return f"{figure:,.0f}"
    return f"{figure:.2e}" if magnitude < 1e-4 else f"{figure:.3g}"
