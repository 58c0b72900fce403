"""The report: judge, draw, write."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scgen_diffusion.data import JOIN, PROVENANCE_KEY, join_labels
from scgen_diffusion.metrics import evaluate, verdict

from ._page import render, write
from ._sections import Shown, draw_sections

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

SUFFIX = ".html"


def report(
    real_test: AnnData,
    synthetic: AnnData,
    path: str | os.PathLike[str],
    *,
    train: AnnData | None = None,
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
        Real cells that the generator was trained on. Without them nothing can be said about memorisation.
    groupby
        Column of `obs`, or several, with the labels that the cells have or were asked to have.
    layer
        Layer with the counts, in all that are given.
    table
        What :func:`~scgen_diffusion.metrics.evaluate` returned for these cells, if it was called already.
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
    TypeError
        If a set is no AnnData.
    ValueError
        If ``path`` does not end in ``.html``, and what :func:`~scgen_diffusion.metrics.evaluate` raises.
    FileNotFoundError
        If there is no folder for the file.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> cells = scgd.datasets.pbmc68k_reduced()
    >>> path = scgd.report(cells[:200], cells[200:400], "report.html", train=cells[400:])  # doctest: +SKIP
    """
    path = _checked_path(path)
    for name, cells in {"real_test": real_test, "synthetic": synthetic}.items():
        if not isinstance(cells, AnnData):
            msg = f"`{name}` must be an AnnData, but is {type(cells).__name__}; a report of one modality takes `mdata[modality]`."
            raise TypeError(msg)
    if table is None:
        table = evaluate(
            real_test, synthetic, train=train, groupby=groupby, layer=layer, max_cells=max_cells, seed=seed
        )
    judged = verdict(table)
    rng = np.random.default_rng(seed)
    real, drawn = (_for_plots(cells, groupby, max_cells, rng) for cells in (real_test, synthetic))
    label = None if groupby is None else _label_name(groupby)
    sections, skipped = draw_sections(Shown(real, drawn, table, label, layer, model))
    page = render(
        title=title,
        subtitle=_subtitle(real_test, synthetic, train),
        verdict=judged,
        table=table,
        sections=sections,
        settings=_settings(synthetic, label, layer, max_cells, seed),
        skipped=skipped,
        has_groups=label is not None,
    )
    write(page, path)
    return path


def _checked_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
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


def _for_plots(
    cells: AnnData, groupby: str | Sequence[str] | None, max_cells: int, rng: np.random.Generator
) -> AnnData:
    """Return some of the cells, several labels joined to one."""
    cells = cells[np.sort(rng.permutation(cells.n_obs)[:max_cells])]
    cells = cells.to_memory() if cells.isbacked else cells.copy()
    if groupby is not None and not isinstance(groupby, str):
        cells.obs[_label_name(groupby)] = pd.Categorical(join_labels(cells.obs, groupby))
    return cells


def _label_name(groupby: str | Sequence[str]) -> str:
    return groupby if isinstance(groupby, str) else JOIN.join(groupby)


def _subtitle(real_test: AnnData, synthetic: AnnData, train: AnnData | None) -> str:
    seen = "training cells not given" if train is None else f"{train.n_obs:,} training cells"
    return f"{synthetic.n_obs:,} synthetic cells, {real_test.n_obs:,} real cells held out, {seen}; {real_test.n_vars:,} genes"


def _settings(synthetic: AnnData, label: str | None, layer: str | None, max_cells: int, seed: int) -> dict[str, str]:
    """Say how the cells were made, as far as they say it themselves, and how they were judged."""
    made = {f"cells: {name}": str(value) for name, value in synthetic.uns.get(PROVENANCE_KEY, {}).items()}
    return made | {
        "judged by": f"scgen-diffusion {version('scgen-diffusion')}",
        "labels": label or "none",
        "layer": layer or "counts, else X",
        "cells compared at most": f"{max_cells:,}",
        "seed": str(seed),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
