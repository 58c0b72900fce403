"""One HTML file that judges and shows synthetic cells."""

from __future__ import annotations

import base64
import io
import re
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scgen_diffusion import pl
from scgen_diffusion._arguments import as_list, check_count
from scgen_diffusion._files import write_atomically
from scgen_diffusion._version import VERSION
from scgen_diffusion.data import (
    JOIN,
    PROVENANCE_KEY,
    CellFiles,
    check_is_anndata,
    join_labels,
    make_indexable,
)
from scgen_diffusion.metrics import (
    ALL,
    CATALOGUE,
    MIN_CELLS_PER_GROUP,
    evaluate,
    expression_of,
    gene_differences,
)

from ._summary import summary

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

SUFFIX = ".html"
DPI = 110
SMALLEST = 0.6  # share of its width to which a page shrinks a picture (letters of 6.4 pixels); below it, one scrolls
N_GENES = 10  # that differ most
MOST_LABELS = 40  # shown in pictures; with hundreds, one would have a hundred million pixels
WORSE = "Worse than real cells"
BETTER = {"lower": "↓", "higher": "↑", "real": "="}
SECTIONS = {
    "Labels": "A rare label can be poor although all cells together look good.",
    "Genes": "How genes vary, one by one and together.",
    "Training": "Where the validation loss rises while the training loss falls, the model overfits.",
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

    It shows the :func:`summary`, a UMAP, the metrics of :func:`~scgen_diffusion.metrics.evaluate` that are worse than
    those of real cells, with the others folded by family, every label, and plots of :mod:`scgen_diffusion.pl`.

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
        If ``real_test`` or ``synthetic`` is no AnnData.
    ValueError
        If ``path`` does not end in ``.html``, ``table`` has labels that the cells lack, and what
        :func:`~scgen_diffusion.metrics.evaluate` raises.
    FileNotFoundError
        If there is no folder for the file.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> cells = scgd.datasets.pbmc68k_reduced()
    >>> path = scgd.report.write(
    ...     cells[:200], cells[200:400], "report.html", train=cells[400:]
    ... )  # doctest: +SKIP
    """
    path = _check_path(path)
    sets = {"real_test": real_test, "synthetic": synthetic}
    for name, cells in sets.items():
        check_is_anndata(cells, name, " A report of one modality takes `mdata[modality]`.")
    check_count("max_cells", max_cells, MIN_CELLS_PER_GROUP)  # `evaluate` does not see it if a table is given
    if table is None:
        table = evaluate(
            real_test, synthetic, train=train, groupby=groupby, layer=layer, max_cells=max_cells, seed=seed
        )
    judged, keys = summary(table), as_list(groupby)
    labels = {label for cells in sets.values() for label in join_labels(cells.obs, keys)}
    if keys and (other := {*table["group"].astype(str)} - {ALL, *labels}):
        msg = f"`table` is of other cells or of another `groupby`: no cell has the label {min(other)!r}."
        raise ValueError(msg)

    rng = np.random.default_rng(seed)
    real, drawn = (_for_plots(cells, keys, max_cells, rng) for cells in sets.values())
    label = JOIN.join(keys) if keys else None
    with plt.rc_context({"text.parse_math": False}):  # names may have "$"
        pictures = draw(real, drawn, label=label, layer=layer, model=model, seed=seed)
    n_train = getattr(train, "n_cells", None) or getattr(train, "n_obs", None)  # of files, or of an AnnData
    seen = "training cells not given" if n_train is None else f"{n_train:,} training cells"
    record = synthetic.uns.get(PROVENANCE_KEY, {})
    settings = {f"cells: {name}": _as_text(value) for name, value in record.items()} | {
        "labels": label or "none",
        "seed": str(seed),
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC} by scgen-diffusion {VERSION}",
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["written"] = written
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        subtitle=f"{synthetic.n_obs:,} synthetic cells, {real_test.n_obs:,} real cells held out, {seen}; "
        f"{real_test.n_vars:,} genes",
        version=VERSION,
        headline=judged.headline,
        level=next((level for level in ("warning", "note", "ok") if judged.of_level(level)), "note"),
        scores=_scores(judged.table, table),
        labels=_labels({"real": real_test, "synthetic": synthetic}, keys, table, judged.table) if keys else [],
        genes=_genes(real, drawn, label, layer),
        sections=SECTIONS,
        pictures=pictures,
        settings=settings,
    )
    with write_atomically(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


def _check_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a report; raise, before any work, if no file can be written there."""
    path = Path(path).expanduser()
    if path.suffix.lower() != SUFFIX:
        msg = f"`path` must end in {SUFFIX!r}, but found {str(path)!r}."
        raise ValueError(msg)
    if not path.parent.is_dir():
        msg = f"`path`: there is no folder {str(path.parent)!r}; make it first."
        raise FileNotFoundError(msg)
    return path


def _as_text(value: Any) -> str:
    return f"a table of {len(value):,} rows" if isinstance(value, pd.DataFrame) else str(value)


def _for_plots(cells: AnnData, keys: Sequence[str], max_cells: int, rng: np.random.Generator) -> AnnData:
    """Return some of the cells, with several labels joined to one."""
    cells = make_indexable(cells)[np.sort(rng.permutation(cells.n_obs)[:max_cells])]
    cells = cells.to_memory() if cells.isbacked else cells.copy()
    if len(keys) > 1:
        cells.obs[JOIN.join(keys)] = pd.Categorical(join_labels(cells.obs, keys))
    return cells


def draw(
    real: AnnData, synthetic: AnnData, *, label: str | None, layer: str | None, model: Any | None, seed: int
) -> dict[str, list[dict[str, str]]]:
    """Draw what these cells allow: the pictures of each section."""
    pictures: dict[str, list[dict[str, str]]] = {}
    options = {"layer": layer, "show": False}

    def add(section: str, axes: Axes | Sequence[Axes], caption: str) -> None:
        pictures.setdefault(section, []).append({**_as_png(axes), "caption": caption})

    if label is not None and len({*real.obs[label], *synthetic.obs[label]}) > MOST_LABELS:
        label = None
    axes = pl.umap(real, synthetic, color=label, seed=seed, **options)
    add("Cells", axes, "One UMAP of real and synthetic cells. Cells unlike any real cell lie apart from the real ones.")
    if label is not None and 1 < real.obs[label].value_counts().max() < real.n_obs - 1:
        axes = pl.marker_dotplot(real, synthetic, groupby=label, **options)
        add("Labels", axes, "Rows of a label should look alike: marker genes of the real cells, real above synthetic.")

    sets = {"real_test": real, "synthetic": synthetic}
    if all(expression_of(cells, layer=layer, name=name).library_sizes is not None for name, cells in sets.items()):
        add("Genes", pl.library_size(real, synthetic, **options), "The total counts of both should be spread alike.")
    axes = pl.mean_variance(real, synthetic, **options)
    add("Genes", axes, "Each dot is a gene; the lines, running medians, should lie on each other.")
    caption = "Share of cells in which a gene is not seen; on the diagonal, it is the same."
    add("Genes", pl.zero_fraction(real, synthetic, **options), caption)
    axes = pl.gene_correlation(real, synthetic, groupby=label, **options)
    add("Genes", axes, "Both should show the same blocks. Genes that vary most in real cells, ordered by clustering.")

    if getattr(model, "history", None):
        add("Training", pl.training_history(model, show=False), "Each stage has a panel.")
    return pictures


def _as_png(axes: Axes | Sequence[Axes]) -> dict[str, str]:
    """Close a figure, and return its picture in the letters of base64 and the least width to show it."""
    figure = (axes if hasattr(axes, "figure") else axes[0]).figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    png = buffer.getvalue()
    min_width = round(SMALLEST * int.from_bytes(png[16:20], "big"))  # where a PNG file has its width
    return {"png": base64.b64encode(png).decode("ascii"), "min_width": str(min_width)}


def _scores(judged: pd.DataFrame, table: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """List the rows of a summary that are off, and then the others by family, with what each metric measures."""
    families: dict[str, list[dict[str, Any]]] = {WORSE: []}
    for row in judged.merge(table[["metric", "group", "low", "high", "shuffled"]], "left").to_dict("records"):
        metric = CATALOGUE.get(row["metric"]) if row["group"] == ALL else None
        row["better"] = BETTER[metric.better] if metric else ""
        row["text"] = re.sub(r" \(``\w+``\)|``", "", metric.text) if metric else ""
        family = WORSE if row["level"] in ("warning", "note") else metric.topic if metric else "Other"
        families.setdefault(family, []).append(row)
    return families


def _labels(
    sides: Mapping[str, AnnData], keys: Sequence[str], table: pd.DataFrame, judged: pd.DataFrame
) -> list[dict[str, Any]]:
    """List every label with its cells, precision, recall and what is off."""
    labels = {side: pd.Series(join_labels(cells.obs, keys)) for side, cells in sides.items()}
    sizes = pd.DataFrame({side: own.value_counts() for side, own in labels.items()}).fillna(0).astype(int)
    shown = pd.MultiIndex.from_product([["value", "real"], ["precision", "recall"]])
    figures = table.pivot(index="group", columns="metric", values=["value", "real"]).reindex(columns=shown)
    figures.columns = ["precision", "recall", "precision_of_real", "recall_of_real"]
    rows = sizes.join(figures).rename_axis("name").reset_index().to_dict("records")
    for row in rows:
        off = judged[judged["group"] == row["name"]].groupby("level", sort=False)["metric"].agg(", ".join)
        row["levels"] = off.to_dict() or {"ok" if row["precision"] >= 0 else "too few cells": ""}
    return rows


def _genes(real: AnnData, synthetic: AnnData, label: str | None, layer: str | None) -> list[dict[str, Any]]:
    """List the genes that differ most within labels, or in all cells without labels; none of few cells."""
    try:
        return gene_differences(real, synthetic, groupby=label, layer=layer).head(N_GENES).to_dict("records")
    except ValueError:  # no label has enough cells
        return []


def written(figure: float) -> str:
    """Write a figure with three significant digits; a dash where there is none."""
    if not np.isfinite(figure):
        return "–"
    return f"{figure:,.0f}" if abs(figure) >= 999.5 else f"{figure:.3g}"
