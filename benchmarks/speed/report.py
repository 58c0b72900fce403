"""Write figures of speed as tables of the guide and the README."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.tables import markdown_table, read_table, write_block

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: The names of steps in the tables, and the published steps that they are compared with.
STEP_NAMES: dict[tuple[str, str], tuple[str, tuple[str, str] | None]] = {
    ("package", "autoencoder_step"): ("SCLDM, training of the autoencoder", ("published", "autoencoder_step")),
    ("package", "prior_step"): ("SCLDM, training of the prior", ("published", "prior_step")),
    ("package", "perturbation_flow_step"): ("SCLDM, training of the perturbation flow", None),
    ("package", "generate"): ("SCLDM, generation", ("published", "generate")),
}
for _stage, _what in (
    ("autoencoder_step", "training of the autoencoder"),
    ("prior_step", "training of the prior"),
    ("generate", "generation"),
):
    STEP_NAMES["package-published-sizes", _stage] = (f"SCLDM, published size, {_what}", ("published", _stage))
for _name in ("SCRDIT", "WBDIT"):
    _published = f"published-{_name.lower()}"
    STEP_NAMES[_name, "training_step"] = (f"{_name}, training", (_published, "training_step"))
    STEP_NAMES[f"{_name}-published-size", "training_step"] = (
        f"{_name}, published size, training",
        (_published, "training_step"),
    )
    STEP_NAMES[_name, "generate"] = (f"{_name}, generation", (_published, "generate_ddim"))
CALL_NAMES = {
    "importing": "`import scgen_diffusion.model`, a fresh process",
    "autoencoder_epochs": "`train_autoencoder`, an epoch",
    "prior_epochs": "`train_prior`, an epoch",
    "perturbation_flow_epochs": "`train_perturbation_flow`, an epoch",
    "training_epochs": "`train`, an epoch",
    "generate_anndata": "`generate`, into an AnnData",
    "latent_representation": "`get_latent_representation`",
}


def write(results: Path, root: Path) -> None:
    """Write the marked places of the pages."""
    for (page, name), text in page_blocks(read_table(results / "speed.csv")).items():
        write_block(root / page, name, text)


def page_blocks(stored: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    shown = latest(stored)
    figures, where = Figures(shown), describe(shown)
    beside = f"{published_table(figures)}\n\n{where}"
    return {
        ("docs/user_guide/speed.md", "speed: steps"): f"{step_table(figures)}\n\n{where}",
        ("docs/user_guide/speed.md", "speed: calls"): call_table(figures),
        ("README.md", "speed"): beside,
    }


#: Rows of the table on GPUs; steps of training are those of `GPU_BATCH` cells.
GPU_ROWS = (
    *(("package", "autoencoder_step"), ("package", "prior_step")),
    *(("calls-SCLDM", "generate_anndata"), ("calls-SCLDM", "latent_representation")),
    *((system, stage) for system in ("SCRDIT", "WBDIT") for stage in ("training_step", "generate")),
    *((system, "training_step") for system in ("SCRDIT-published-size", "WBDIT-published-size")),
)
GPU_BATCH = 128


def gpu_blocks(stored: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the table of GPUs for its page: the one measured most in several ways, others, and one core of a CPU."""
    rows = stored[(stored["batch"] == GPU_BATCH) | ~stored["stage"].str.endswith("step")]
    usual = np.where(rows["system"].str.endswith("published-size"), "bf16", "float32")
    rows = rows.assign(precision=rows["precision"].where(rows["precision"] != usual, "usual"))
    described = ["system", "stage", "processor", "replay", "compile", "precision"]
    speed = rows.drop_duplicates(described, keep="last").set_index(described)["cells_per_second"]
    gpu, *others = stored.loc[stored["device"] == "cuda", "processor"].value_counts().index
    cpu = stored.loc[stored["device"] == "cpu", "processor"].iloc[-1]
    ways = {
        gpu: (gpu, True, False, "usual"),
        "TF32": (gpu, True, False, "tf32"),
        "compiled": (gpu, True, True, "usual"),
        "not replayed": (gpu, False, False, "usual"),
        **{other: (other, True, False, "usual") for other in others},
        f"one core of {cpu}": (cpu, True, False, "usual"),
    }
    lines = []
    for key in GPU_ROWS:
        name = STEP_NAMES[key][0] if key in STEP_NAMES else f"{key[0].removeprefix('calls-')}, {CALL_NAMES[key[1]]}"
        found = [speed.get((*key, *way)) for way in ways.values()]
        lines.append([name, *("" if each is None else _number(each) for each in found)])
    return {("docs/how_to/gpu.md", "speed_gpu"): markdown_table(["cells/s", *ways], lines)}


def latest(stored: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the latest processor, panel and largest number of threads."""
    rows = stored[stored["device"] == "cpu"]
    rows = rows[rows["processor"] == rows["processor"].iloc[-1]]
    return rows[(rows["threads"] == rows["threads"].max()) & (rows["genes"] == rows["genes"].iloc[-1])]


class Figures:
    """The latest figures of one machine and number of threads, by system, stage and cells per call."""

    def __init__(self, rows: pd.DataFrame) -> None:
        latest = rows.drop_duplicates(["system", "stage", "batch"], keep="last")
        self._rows = {(row["system"], row["stage"], row["batch"]): row for row in latest.to_dict("records")}

    def of(self, system: str, stage: str) -> list[dict[str, Any]]:
        """List the rows of a stage, smaller batches first."""
        found = [row for (name, what, _), row in self._rows.items() if (name, what) == (system, stage)]
        return sorted(found, key=lambda row: row["batch"])

    def get(self, system: str, stage: str, batch: int) -> dict[str, Any] | None:
        """Return one row, or None if it was not measured."""
        return self._rows.get((system, stage, batch))


def published_table(figures: Figures) -> str:
    """Write the steps that have a published counterpart, those of networks of equal size last."""
    lines = []
    for key in sorted(STEP_NAMES, key=lambda key: "published" in key[0]):
        name, published = STEP_NAMES[key]
        for row in figures.of(*key):
            if beside := published and figures.get(*published, row["batch"]):
                lines.append(_step_line(name, row, beside)[:4])
    return markdown_table(["", "cells/s", "published, cells/s", "times"], lines)


def step_table(figures: Figures) -> str:
    """Write the steps beside the published ones."""
    lines = []
    for key, (name, published) in STEP_NAMES.items():
        for row in figures.of(*key):
            beside = published and figures.get(*published, row["batch"])
            lines.append(_step_line(f"{name}, {row['batch']:.0f} cells at a time", row, beside))
    return markdown_table(["", "cells/s", "published, cells/s", "times", "GiB"], lines)


def _step_line(name: str, row: Mapping[str, Any], published: Mapping[str, Any] | None) -> list[str]:
    speed, beside = row["cells_per_second"], ["", ""]
    if published:
        beside = [_number(published["cells_per_second"]), f"**{_number(speed / published['cells_per_second'])}**"]
    return [name, _number(speed), *beside, f"{row['peak_gib']:.2f}"]


def call_table(figures: Figures) -> str:
    """Write calls of users."""
    lines = []
    for system, stage in product(("calls-SCLDM", "calls-SCRDIT", "calls-WBDIT"), CALL_NAMES):
        for row in figures.of(system, stage):
            has_cells = pd.notna(row["cells_per_second"])
            cells = [f"{row['batch']:,.0f}" if has_cells else "", f"{row['seconds']:.2g}"]
            speed = _number(row["cells_per_second"]) if has_cells else ""
            lines.append([f"{system.removeprefix('calls-')}, {CALL_NAMES[stage]}", *cells, speed])
    return markdown_table(["", "cells", "seconds", "cells/s"], lines)


def describe(rows: pd.DataFrame) -> str:
    """Describe the machine, the versions and the setting of the figures."""
    last = rows.iloc[-1]
    return (
        f"{last['processor']}, {last['threads']:.0f} threads, {last['genes']:,.0f} genes of which "
        f"{last['expressed']:,.0f} are expressed, float32; {last['versions'].partition(', scgen-diffusion')[0]}; "
        f"commit {last['commit']}, {last['date']}. This machine multiplies matrices at "
        f"{last['matrix_rate'] / 1e9:,.0f} GFLOP/s."
    )


def _number(value: float | None) -> str:
    if value is None or pd.isna(value):
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
