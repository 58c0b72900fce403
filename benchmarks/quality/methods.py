"""Methods that draw cells: models, variants of them, and baselines. Each draws a cell for every held-out cell.

It uses only models and data sets of the package, as users call them, so that older versions can draw too.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

from benchmarks.quality.baselines import BASELINES, draw_mixture, draw_per_label
from benchmarks.quality.splits import LABEL, Split, join_labels, load_split, to_dense
from benchmarks.rivals.worker import peak_memory_gib
from benchmarks.tables import describe_source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

MODELS = ("SCLDM", "SCMDM", "SCRDIT", "WBDIT")
COSTS_KEY = "costs"
PARTS = ("class", "train", "generate", "draw", "genes")
IDEAL_PRIOR, MIXTURE = "ideal-prior", "mixture"

#: Class and arguments of a model: ``{"class": ..., "model": {...}, "train": {...}, "generate": {...}, "draw": ...,
#: "genes": ...}``. ``"draw"`` may be ``"ideal-prior"`` (decoded latents of training cells) or ``"mixture"`` (those of a
#: Gaussian mixture per label). With ``"genes": "all"``, the model learns and draws the whole panel; the split's genes
#: are judged.
Variant = dict[str, Any]

VARIANTS: dict[str, Variant] = {name: {"class": name} for name in MODELS}
VARIANTS["SCMDM-white_box"] = {"class": "SCMDM", "model": {"backbone": "white_box"}}
VARIANTS[f"SCLDM-{IDEAL_PRIOR}"] = {"class": "SCLDM", "draw": IDEAL_PRIOR}
VARIANTS[f"SCLDM-{MIXTURE}"] = {"class": "SCLDM", "draw": MIXTURE}
VARIANTS["SCLDM-plain"] = {"class": "SCLDM", "model": {"outliers": False, "condition_effects": False}}
VARIANTS["SCLDM-whole-panel"] = {"class": "SCLDM", "genes": "all"}
KNOWN = f"{', '.join([*VARIANTS, *BASELINES])}, or NAME=JSON for other arguments of a model"


def choose_methods(texts: Sequence[str]) -> dict[str, Variant | None]:
    """Return the variant of each method, None for a baseline.

    ``name={"class": ..., ...}`` is a model with other arguments; unknown keys become arguments of the class.

    Raises
    ------
    ValueError
        If a method or a class is unknown.
    """
    chosen: dict[str, Variant | None] = {}
    for text in texts:
        name, is_own, value = text.partition("=")
        if is_own:
            given = {"class": "SCLDM"} | json.loads(value)
            variant = {part: given.pop(part) for part in PARTS if part in given}
            chosen[name] = variant | {"model": given.pop("model", {}) | given}
        elif name in VARIANTS or name in BASELINES:
            chosen[name] = VARIANTS.get(name)
        else:
            msg = f"`methods` has {name!r}. Known: {KNOWN}."
            raise ValueError(msg)
        if chosen[name] is not None and chosen[name]["class"] not in MODELS:
            msg = f"The `class` of {name!r} must be one of {list(MODELS)}, but found {chosen[name]['class']!r}."
            raise ValueError(msg)
    return chosen


def train_model(split: Split, variant: Variant, seed: int) -> Any:
    """Return the model of a variant, trained on the split's training cells."""
    import scvi

    from scgen_diffusion import model as models

    scvi.settings.seed = seed
    chosen, adata = getattr(models, variant["class"]), split.train.copy()
    chosen.setup_anndata(adata, layer="counts", condition_keys=list(split.condition_keys))
    model = chosen(adata, **variant.get("model", {}))
    model.train(**variant.get("train", {}))
    return model


def held_out_conditions(split: Split) -> pd.DataFrame:
    """Return the conditions of the held-out cells, one row per cell."""
    obs = split.held_out.obs[list(split.condition_keys)].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    return obs


def draw_matching(labels: np.ndarray, requested: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random cell's index for each requested label, without replacement if there are enough cells."""
    drawn = np.empty(len(requested), dtype=np.intp)
    for label in np.unique(requested):
        rows, candidates = requested == label, np.flatnonzero(labels == label)
        drawn[rows] = rng.choice(candidates, rows.sum(), replace=rows.sum() > len(candidates))
    return drawn


def draw_counts(model: Any, split: Split, variant: Variant, seed: int) -> np.ndarray | sp.csr_matrix:
    """Draw a cell with counts for every held-out cell, with its conditions, or decode training cells.

    Raises
    ------
    ValueError
        If the cells do not have the requested genes or labels.
    """
    if variant.get("draw") == IDEAL_PRIOR:  # a perfect prior would return the latents of training cells
        rows = draw_matching(split.train_labels, split.held_out_labels, np.random.default_rng(seed))
        cells = split.train[rows].copy()
        cells.obs_names_make_unique()
        return model.get_reconstruction(cells, seed=seed).X
    if variant.get("draw") == MIXTURE:
        return draw_from_mixture(model, split, seed)
    counts = {"counts": True} if variant["class"] in ("SCRDIT", "WBDIT") else {}
    cells = model.generate(condition=held_out_conditions(split), seed=seed, **counts, **variant.get("generate", {}))
    labels = join_labels(cells.obs, split.condition_keys)
    if not cells.var_names.equals(split.train.var_names) or (labels != split.held_out_labels).any():
        msg = "The generated cells do not have the requested genes and labels in the requested order."
        raise ValueError(msg)
    return cells.X


def draw_from_mixture(model: Any, split: Split, seed: int) -> np.ndarray:
    """Decode latents and totals from a Gaussian mixture per label, instead of those of the diffusion prior."""
    from scgen_diffusion.diffusion import Generators

    rng = np.random.default_rng(seed)
    totals = to_dense(split.train.layers["counts"]).sum(axis=1)
    known = np.column_stack([model.get_latent_representation(give_mean=False, seed=seed), np.log(totals)])
    drawn = draw_per_label(draw_mixture, known, split.train_labels, split.held_out_labels, rng)
    latents, totals = torch.from_numpy(drawn[:, :-1]), torch.from_numpy(drawn[:, -1:]).exp()
    rows = draw_matching(split.train_labels, split.held_out_labels, rng)
    conditions = torch.as_tensor(np.asarray(model.adata_manager.get_from_registry("conditions"))[rows])
    with torch.inference_mode():
        decoded = model.module.decode(latents.unflatten(1, model.module.latent_shape), totals, conditions)
        return model.module.draw_cells(decoded, Generators(seed, range(len(drawn)), latents.device)).numpy()


def draw(split: Split, seed: int, method: str, variant: Variant | None) -> ad.AnnData:
    """Train a method on one thread, draw cells, and record the cost."""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    if variant is None:
        counts = BASELINES[method](split.train, split.train_labels, split.held_out_labels, seed)
        trained = time.process_time()
    else:
        model = train_model(split, variant, seed)
        trained = time.process_time()
        counts = draw_counts(model, split, variant, seed)
    obs = held_out_conditions(split).assign(**{LABEL: split.held_out_labels})
    cells = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=split.train.var[[]].copy())
    cells.uns[COSTS_KEY] = {
        "wall_minutes": (time.perf_counter() - wall) / 60,
        "cpu_minutes": (time.process_time() - cpu) / 60,
        "train_minutes": (trained - cpu) / 60,
        "peak_memory_gib": peak_memory_gib(),
        "settings": json.dumps(variant) if variant else "",
        **describe_source("torch", "scvi-tools", "scgen-diffusion"),
    }
    return cells


def write_cells(cells: ad.AnnData, path: Path) -> None:
    """Write under another name and rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    cells.write_h5ad(partial, compression="gzip")
    partial.replace(path)


def draw_one(dataset: str, seed: int, method: str, variant: Variant | None, path: Path) -> None:
    """Train a method on a split, and write its cells."""
    judged = split = load_split(dataset, seed)
    if variant and variant.get("genes") == "all":
        split = load_split(dataset, seed, n_genes=None)
    write_cells(draw(split, seed, method, variant)[:, judged.train.var_names].copy(), path)
