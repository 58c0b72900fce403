"""From findings, figures and pictures to one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Self

import jinja2
import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

    from scgen_diffusion.metrics import Verdict

TEMPLATE = "page.html.j2"
DPI = 110
LEVELS = ("warning", "note", "ok")  # gravest first
BETTER = {"lower": "lower", "higher": "higher", "floor": "like the floor"}
WIDTH, MARGIN = 220.0, 8.0  # pixels
NONE = "–"


@dataclass(frozen=True)
class Picture:
    """A drawn plot: its base64 PNG and a caption."""

    png: str
    caption: str


@dataclass(frozen=True)
class Section:
    """Some pictures under a title, with a sentence on how to read them."""

    title: str
    text: str
    pictures: Sequence[Picture]

    @property
    def anchor(self) -> str:
        """Name of the section in links."""
        return self.title.lower().replace(" ", "-")


def picture(axes: Axes | Sequence[Axes], caption: str) -> Picture:
    """Take the figure that the axes belong to, and close it."""
    figure = (axes if hasattr(axes, "figure") else axes[0]).figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return Picture(base64.b64encode(buffer.getvalue()).decode("ascii"), caption)


def render(
    *,
    title: str,
    subtitle: str,
    verdict: Verdict,
    table: pd.DataFrame,
    sections: Sequence[Section],
    settings: Mapping[str, str],
    skipped: Sequence[str],
    has_groups: bool,
) -> str:
    """Return the page."""
    template = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    found = {finding.level for finding in verdict.findings}
    return environment.from_string(template).render(
        title=title,
        subtitle=subtitle,
        version=version("scgen-diffusion"),
        verdict=verdict,
        verdict_level=next((level for level in LEVELS if level in found), "ok"),
        rows=[_row(row) for _, row in table[table["group"] == "all"].iterrows()],
        width=WIDTH,
        sections=sections,
        settings=settings,
        skipped=skipped,
        has_groups=has_groups,
    )


def write(page: str, path: Path) -> None:
    """Write the page beside its goal and rename it, so that no reader meets half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _row(row: pd.Series) -> dict[str, object]:
    figures = {name: written(float(row[name])) for name in ("value", "floor", "shuffled")}
    low, high = float(row["low"]), float(row["high"])
    return figures | {
        "metric": str(row["metric"]).replace("_", " "),
        "interval": f"{written(low)} to {written(high)}" if np.isfinite([low, high]).all() else NONE,
        "better": BETTER[row["better"]],
        "scale": Scale.of(row),
    }


@dataclass(frozen=True)
class Scale:
    """Horizontal positions, in pixels, of one row of the table of figures; None for what is not known.

    Attributes
    ----------
    value, floor, shuffled
        Of the synthetic cells, of real cells, and of real cells with their genes shuffled.
    low, high
        Ends of the interval of the value.
    """

    value: float | None
    floor: float | None
    shuffled: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, row: pd.Series) -> Self:
        """Place all figures of a row on a common axis that just holds them."""
        figures = row[["value", "floor", "shuffled", "low", "high"]].astype(float)
        finite = figures[np.isfinite(figures)]
        start, span = (finite.min(), np.ptp(finite)) if len(finite) else (0.0, 0.0)
        inner = WIDTH - 2 * MARGIN

        def place(figure: float) -> float | None:
            if not np.isfinite(figure):
                return None
            return round(MARGIN + inner * ((figure - start) / span if span > 0 else 0.5), 1)

        return cls(*(place(figure) for figure in figures))


def written(figure: float) -> str:
    """Write a figure with three significant digits; a dash where there is none."""
    if not np.isfinite(figure):
        return NONE
    if figure == 0:
        return "0"
    magnitude = abs(figure)
    if magnitude >= 1000:
        return f"{figure:,.0f}"
    return f"{figure:.2e}" if magnitude < 1e-4 else f"{figure:.3g}"
