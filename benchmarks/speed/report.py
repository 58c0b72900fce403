"""Write figures of speed as tables of the guide."""

from __future__ import annotations

from itertools import product

import pandas as pd

from benchmarks.tables import markdown_table
from scgen_diffusion.train import DIFFUSION_RECIPES, RECIPES

#: The names of steps in the tables, and the published steps that they are compared with.
STEP_NAMES: dict[tuple[str, str], tuple[str, tuple[str, str] | None]] = {}
for _stage, _what in {
    "autoencoder_step": "autoencoder training",
    "prior_step": "prior training",
    "generate": "generation",
}.items():
    STEP_NAMES["package", _stage] = (f"SCLDM, {_what}", ("published", _stage))
    STEP_NAMES["package-published-sizes", _stage] = (f"SCLDM, published size, {_what}", ("published", _stage))
for _name in ("SCRDIT", "WBDIT"):
    _published = f"published-{_name.lower()}"
    for _size, _suffix in {"": "", "-published-size": ", published size"}.items():
        _training = (f"{_name}{_suffix}, training", (_published, "training_step"))
        STEP_NAMES[f"{_name}{_size}", "training_step"] = _training
    STEP_NAMES[_name, "generate"] = (f"{_name}, generation", (_published, "generate_ddim"))
CALL_NAMES = {
    "autoencoder_epochs": "`train_autoencoder`, an epoch",
    "prior_epochs": "`train_prior`, an epoch",
    "perturbation_flow_epochs": "`train_perturbation_flow`, an epoch",
    "training_epochs": "`train`, an epoch",
    "generate_anndata": "`generate`, into an AnnData",
    "latent_representation": "`get_latent_representation`",
}
#: Stages of the table of lengths: system, call and recipe.
STAGES = {
    **{
        f"SCLDM, {stage.replace('_', ' ')}": ("calls-SCLDM", f"{stage}_epochs", RECIPES["default"][stage])
        for stage in ("autoencoder", "prior", "perturbation_flow")
    },
    "SCMDM": ("calls-SCMDM", "training_epochs", DIFFUSION_RECIPES["SCMDM"]["default"]),
}
TRAINING_CELLS = (500, 2_000, 8_000, 32_000, 200_000, 1_000_000)


def page_blocks(stored: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    shown = latest(stored)
    page = "docs/user_guide/speed.md"
    return {
        (page, "speed: lengths"): length_table(shown),
        (page, "speed: calls"): f"{call_table(shown)}\n\n{describe(shown)}",
        (page, "speed: equal size"): published_table(stored, is_equal=True),
        (page, "speed: default"): published_table(stored, is_equal=False),
    }


#: Rows of the table on GPUs; steps of training are those of `GPU_BATCH` cells.
GPU_ROWS = (
    *(("package", "autoencoder_step"), ("package", "prior_step")),
    *(("calls-SCLDM", "generate_anndata"), ("calls-SCLDM", "latent_representation")),
)
GPU_BATCH = 128


def gpu_blocks(stored: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the table of GPUs for its page: the one measured most, others, and one core of a CPU."""
    rows = stored[(stored["batch"] == GPU_BATCH) | ~stored["stage"].str.endswith("step")]
    rows = rows[rows["replay"] & (rows["precision"] == "float32")]
    described = ["system", "stage", "processor", "compile"]
    speed = rows.drop_duplicates(described, keep="last").set_index(described)["cells_per_second"]
    gpu, *others = stored.loc[stored["device"] == "cuda", "processor"].value_counts().index
    cpu = stored.loc[stored["device"] == "cpu", "processor"].iloc[-1]
    ways = {gpu: (gpu, False), "compiled": (gpu, True)}
    ways |= {**{other: (other, False) for other in others}, f"one core of {cpu}": (cpu, False)}
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


def runs_of(stored: pd.DataFrame, system: str, stage: str) -> pd.DataFrame:
    """Return the rows of a stage on CPUs by run: machine, threads, day, commit and cells per call."""
    rows = stored[(stored["device"] == "cpu") & (stored["system"] == system) & (stored["stage"] == stage)]
    run = ["processor", "threads", "date", "commit", "batch"]
    return rows.assign(commit=rows["commit"].str.rstrip("+")).drop_duplicates(run, keep="last").set_index(run)


def published_table(stored: pd.DataFrame, *, is_equal: bool) -> str:
    """Write how many times as fast as published the steps are, over all runs that measured both.

    `is_equal`: those of networks of the published size, or those of default ones.
    """
    lines = []
    for (system, stage), (name, published) in STEP_NAMES.items():
        ours = runs_of(stored, system, stage)
        if published is None or ours.empty or system.endswith(("published-sizes", "published-size")) != is_equal:
            continue
        ours = ours[ours["how"] == ours["how"].iloc[-1]]  # today's sampler and steps
        both = ours.join(runs_of(stored, *published), rsuffix=", published", how="inner")
        if both.empty:
            continue
        times = both["cells_per_second"] / both["cells_per_second, published"]
        low, high = (_number(float(f"{limit:.2g}")) for limit in (times.min(), times.max()))
        is_extrapolated = both["how, published"].str.contains("extrapolated").any()
        sizes = [f"{both[column].max() / 1e6:.1f}" for column in ("parameters", "parameters, published")]
        runs = f"{len(both)} on {both.index.get_level_values('processor').nunique()}"
        ranged = (low if low == high else f"{low} to {high}") + (" *" if is_extrapolated else "")
        lines.append([name.replace(", published size", ""), *(sizes[:1] if is_equal else sizes), ranged, runs])
    header = ["million parameters"] if is_equal else ["million parameters", "published"]
    return markdown_table(["", *header, "times as fast", "runs on machines"], lines)


def call_table(rows: pd.DataFrame) -> str:
    """Write calls of users."""
    latest = {(row["system"], row["stage"]): row for row in rows.to_dict("records")}
    lines = []
    for system, stage in product((f"calls-{name}" for name in ("SCLDM", "SCMDM", "SCRDIT", "WBDIT")), CALL_NAMES):
        if row := latest.get((system, stage)):
            has_cells = pd.notna(row["cells_per_second"])
            cells = [f"{row['batch']:,.0f}" if has_cells else "", f"{row['seconds']:.2g}"]
            speed = _number(row["cells_per_second"]) if has_cells else ""
            lines.append([f"{system.removeprefix('calls-')}, {CALL_NAMES[stage]}", *cells, speed])
    return markdown_table(["", "cells", "seconds", "cells/s"], lines)


def length_table(rows: pd.DataFrame) -> str:
    """Write the most epochs by default, and the minutes that they take, by number of training cells."""
    calls = {(row["system"], row["stage"]): row for row in rows.to_dict("records")}
    lines = []
    for n_cells in TRAINING_CELLS:
        lines.append([f"{n_cells:,}"])
        for system, stage, recipe in STAGES.values():
            call, n_epochs = calls[system, stage], recipe.max_epochs(n_cells)
            n_times = n_epochs * recipe.steps_per_epoch(n_cells) / recipe.steps_per_epoch(call["batch"])
            minutes = call["seconds"] * n_times / 60
            lines[-1].append(f"{n_epochs:,} ({minutes:.{0 if minutes >= 10 else 1}f})")
    return markdown_table(["training cells", *STAGES], lines)


def describe(rows: pd.DataFrame) -> str:
    """Describe the machine, the versions and the setting of the figures."""
    last = rows.iloc[-1]
    return (
        f"{last['processor']}, {last['threads']:.0f} threads, {last['genes']:,.0f} genes of which "
        f"{last['expressed']:,.0f} are expressed, float32; {last['versions'].partition(', scgen-diffusion')[0]}; "
        f"commit {last['commit']}, {last['date']}."
    )


def _number(value: float | None) -> str:
    if value is None or pd.isna(value):
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
