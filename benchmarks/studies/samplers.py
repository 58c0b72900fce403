"""How many steps does a sampler need? One trained model, every sampler and number of steps, figures beside their floor.

    python -m benchmarks.studies.samplers --dataset pbmc3k

Writes ``results/samplers.csv`` and ``results/samplers.md``.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.quality.drawing import held_out_conditions, train_model
from benchmarks.quality.judge import Judge
from benchmarks.quality.splits import CONDITION_KEYS, Split, load, log_normalise, split_cells
from benchmarks.tables import describe_machine, markdown_table, store_rows, today, write_text
from scgen_diffusion.diffusion import FLOW_SAMPLERS, Generators, ResolvedGuidance
from scgen_diffusion.metrics import classifier_auc, precision_recall_density_coverage, squared_mmd, wasserstein_2

logger = logging.getLogger("benchmarks.samplers")

RESULTS = Path(__file__).parent / "results"
STEPS = {"euler": (5, 10, 25, 50, 100), "midpoint": (3, 5, 10, 25), "heun": (3, 5, 10, 25), "dopri5": (None,)}
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "heun": 2}
REFERENCE_STEPS = 200
FIGURES = ("auc_pcs", "precision", "recall", "w2", "mmd2")


def measure(judge: Judge, counts: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Return the figures that need principal components only."""
    drawn = judge.pca.transform(log_normalise(counts))
    neighbourhoods = precision_recall_density_coverage(held_out, drawn)
    return {
        "auc_pcs": classifier_auc(held_out, drawn),
        "precision": neighbourhoods.precision,
        "recall": neighbourhoods.recall,
        "w2": wasserstein_2(held_out, drawn),
        "mmd2": squared_mmd(held_out, drawn, squared_scale=judge.squared_scale),
    }


@torch.inference_mode()
def integration_error(model: object, codes: torch.Tensor, sampler: str, n_steps: int | None) -> tuple[float, float]:
    """Return the root mean square error of latents against very many steps, in standard deviations, and seconds taken."""
    module = model.module
    noise = Generators(0, range(len(codes))).normal(*module.latent_shape)
    guidance = ResolvedGuidance.of(module.strategy, [1.0] * len(model.conditions.keys))
    exact = module.sample_latents(
        noise, codes, guidance=guidance, sampler=FLOW_SAMPLERS["heun"], n_steps=REFERENCE_STEPS
    )
    started = time.perf_counter()
    z = module.sample_latents(noise, codes, guidance=guidance, sampler=FLOW_SAMPLERS[sampler], n_steps=n_steps)
    seconds = time.perf_counter() - started
    return float(((z - exact) / module.latent_std).square().mean().sqrt()), seconds


def study(split: Split, dataset: str, seed: int) -> pd.DataFrame:
    """Train once, and measure every sampler and number of steps."""
    model, _ = train_model(split, "SCLDM", seed)
    judge = Judge.of(split, seed)
    condition = held_out_conditions(split)
    codes = model.module.condition_tensor(model.conditions.encode(condition, None))
    floor = {"sampler": "floor", **{name: judge.floor()[name] for name in FIGURES}}
    rows = [floor]
    for sampler, many in STEPS.items():
        for n_steps in many:
            synthetic = model.generate(condition=condition, seed=seed, sampler=sampler, n_steps=n_steps)
            error, seconds = integration_error(model, codes, sampler, n_steps)
            evaluations = n_steps * EVALUATIONS_PER_STEP[sampler] if n_steps else np.nan
            row = {"sampler": sampler, "n_steps": n_steps, "evaluations": evaluations, "error": error}
            row |= {"seconds_per_1000_latents": 1000 * seconds / len(codes)}
            rows.append(row | measure(judge, synthetic.X.toarray(), judge.held_out_pcs))
            logger.info("%s", rows[-1])
    return pd.DataFrame(rows).assign(dataset=dataset, seed=seed, machine=describe_machine("cpu"), date=today())


def summarise(table: pd.DataFrame) -> str:
    """Write the table for the documentation."""
    names = ["sampler", "n_steps", "evaluations", "error", "seconds_per_1000_latents", *FIGURES]
    header = ["sampler", "steps", "evaluations", "error of latents (SD)", "s per 1 000 latents"]
    header += ["AUC in PCs", "precision", "recall", "W2", "MMD^2"]
    rows = [[_text(row[name]) for name in names] for _, row in table.iterrows()]
    first = table.iloc[0]
    caption = f"{first['dataset']}, seed {first['seed']}, {first['machine']}, {first['date']}."
    return f"{caption}\n\n{markdown_table(header, rows)}\n"


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{value:.0f}" if value == int(value) and value >= 1 else f"{value:.3g}"


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=CONDITION_KEYS, default="pbmc3k")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    split = split_cells(load(arguments.dataset), CONDITION_KEYS[arguments.dataset], seed=arguments.seed)
    table = study(split, arguments.dataset, arguments.seed)
    store_rows(RESULTS / "samplers.csv", table, keys=("dataset", "seed", "sampler", "n_steps"))
    write_text(RESULTS / "samplers.md", summarise(table))


if __name__ == "__main__":
    main()
