"""The plots of a report, with a sentence on how to read each."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scgen_diffusion import pl
from scgen_diffusion.metrics import expression_of

from ._page import Section, picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True)
class Shown:
    """What the plots are drawn from.

    Attributes
    ----------
    real, synthetic
        Cells to draw, with their label in the same column.
    table
        What :func:`~scgen_diffusion.metrics.evaluate` returned.
    label
        Column of `obs`, None without labels.
    layer
        Layer with the counts.
    model
        Trained model, None without.
    """

    real: AnnData
    synthetic: AnnData
    table: pd.DataFrame
    label: str | None
    layer: str | None
    model: Any | None

    @cached_property
    def has_counts(self) -> bool:
        """Whether both kinds of cells came as counts, so that they have library sizes."""
        # generated cells have their counts in `X` where they lack the layer of the real ones
        return all(
            expression_of(cells, layer=self.layer if self.layer in cells.layers else None).library_sizes is not None
            for cells in (self.real, self.synthetic)
        )

    @property
    def has_markers(self) -> bool:
        """Whether real cells have labels that can be told from others: one with two cells or more, beside two other cells."""
        if self.label is None:
            return False
        sizes = self.real.obs[self.label].value_counts()
        return bool(((sizes > 1) & (sizes.sum() - sizes > 1)).any())


@dataclass(frozen=True)
class Plot:
    """A plot, its caption, its section, and when it can be drawn."""

    section: str
    caption: str
    draw: Callable[[Shown], Any]
    possible: Callable[[Shown], bool] = field(default=lambda _: True)
    otherwise: str = ""


SECTIONS = {
    "Cells": "Each dot is a cell. Good synthetic cells fill the regions of real cells, all of them, and nothing between them.",
    "Labels": "Whether every kind of cell is as good as the others; a small kind can be poor while the whole looks well.",
    "Genes": "Each dot is a gene. On the diagonal, synthetic cells have what real cells have.",
    "Training": "Losses that still fall ask for more training; a validation loss that rises while the training loss falls is overfitting.",
}


def _has_label(shown: Shown) -> bool:
    return shown.label is not None


PLOTS = (
    Plot(
        "Cells",
        "Real and synthetic cells in an embedding made from the real ones.",
        lambda shown: pl.umap(shown.real, shown.synthetic, color=shown.label, layer=shown.layer, show=False),
    ),
    Plot(
        "Cells",
        "Total counts per cell.",
        lambda shown: pl.library_size(shown.real, shown.synthetic, layer=shown.layer, show=False),
        lambda shown: shown.has_counts,
        "library sizes, for the cells came log-normalised",
    ),
    Plot(
        "Labels",
        "Figures per label, beside the floor.",
        lambda shown: pl.scores(shown.table, show=False),
        _has_label,
        "figures per label, for `groupby` was not given",
    ),
    Plot(
        "Labels",
        "Marker genes of the real cells, real beside synthetic.",
        lambda shown: pl.marker_dotplot(
            shown.real, shown.synthetic, groupby=shown.label, layer=shown.layer, show=False
        ),
        lambda shown: shown.has_markers,
        "marker genes, for there are no two labels to compare",
    ),
    Plot(
        "Genes",
        "Variance against mean of log-normalised expression.",
        lambda shown: pl.mean_variance(shown.real, shown.synthetic, layer=shown.layer, show=False),
    ),
    Plot(
        "Genes",
        "Share of cells in which a gene is not seen.",
        lambda shown: pl.zero_fraction(shown.real, shown.synthetic, layer=shown.layer, show=False),
    ),
    Plot(
        "Genes",
        "Correlations of the most variable genes, in the order of a clustering of the real ones.",
        lambda shown: pl.gene_correlation(
            shown.real, shown.synthetic, groupby=shown.label, layer=shown.layer, show=False
        ),
    ),
    Plot(
        "Training",
        "Loss during training.",
        lambda shown: pl.training_history(shown.model, show=False),
        lambda shown: shown.model is not None,
        "training history, for `model` was not given",
    ),
)


def draw_sections(shown: Shown) -> tuple[list[Section], list[str]]:
    """Draw what can be drawn; return the sections, and what was left out and why."""
    sections = [Section(title, text, [*_pictures(title, shown)]) for title, text in SECTIONS.items()]
    skipped = [plot.otherwise for plot in PLOTS if not plot.possible(shown)]
    return [section for section in sections if section.pictures], skipped


def _pictures(section: str, shown: Shown) -> Iterator:
    for plot in PLOTS:
        if plot.section == section and plot.possible(shown):
            yield picture(plot.draw(shown), plot.caption)
