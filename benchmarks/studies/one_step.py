"""Can SCLDM's prior generate in one step? A student learns which latent the prior makes of which noise.

    python -m benchmarks.studies.one_step
    python -m benchmarks.studies.one_step --datasets kang_ifnb --seeds 1

SCLDM is trained by its defaults and draws latents by the default sampler. A copy of its prior is trained by flow
matching on these pairs of noise and latent, whose paths hardly cross (reflow; Liu, Gong and Liu 2023), so that one Euler
step may do. Half of its times are those of one and two steps. Both are judged with several numbers of network evaluations
a cell, from other noise. Adds to ``results/one_step.csv`` and writes ``results/one_step.md``. A quarter of an hour of one core for each training.
"""

from __future__ import annotations

import copy
import time
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from benchmarks.quality.drawing import VARIANTS, generate, train_model
from benchmarks.quality.splits import CONDITION_KEYS, heading, judge, load_split
from benchmarks.studies.held_out import REAL, run_datasets
from benchmarks.tables import markdown_table
from scgen_diffusion.diffusion import TARGETS, Generators, Guidance, diffusion_loss

if TYPE_CHECKING:
    from torch import Tensor

PRIOR, STUDENT = "prior", "student"
#: By number of network evaluations a cell.
SAMPLERS = {1: ("euler", 1), 2: ("midpoint", 1), 4: ("midpoint", 2), 6: ("midpoint", 3), 20: ("midpoint", 10)}
N_PAIRS, PAIRS_AT_A_TIME = 24_000, 500
SEED_OF_PAIRS = 1_000_000  # no drawing has their noise
N_STEPS, BATCH_SIZE, RATE, WARM_UP = 4_000, 256, 5e-4, 100
AT_STARTS = 0.5  # share of the times that are those where one or two steps begin
N_DRAWINGS = 2
FIGURES = {
    "auc_boosting": "AUC, PCs",
    "auc_genes": "AUC, genes",
    "precision": "precision",
    "recall": "recall",
    "within_label_correlation": "correlation within labels",
    "transfer_f1": "F1",
    "mmd_per_label": "MMD2 per label",
}


@torch.inference_mode()
def draw_pairs(model: Any, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return noise, the latents that the prior makes of it, and conditions, which are those of random training cells."""
    module, rng = model.module, np.random.default_rng([seed, 6])
    codes = model._registered_codes[rng.choice(model.train_indices_, N_PAIRS)]
    condition = module.condition_tensor(codes)
    sampling = model._engine.sampling(None, None, Guidance.of(1.0), model._output(None))
    noises, latents = [], []
    for start in range(0, N_PAIRS, PAIRS_AT_A_TIME):
        generators = Generators(SEED_OF_PAIRS + seed, range(start, start + PAIRS_AT_A_TIME), module.device)
        noise = module.draw_noise(generators)
        denoiser = module.denoiser(condition[start : start + PAIRS_AT_A_TIME], sampling.guidance)
        latents.append(sampling.sampler(denoiser, noise, n_steps=sampling.n_steps, generators=generators))
        noises.append(noise)
    return torch.cat(noises), torch.cat(latents), condition


def teach(model: Any, seed: int) -> None:
    """Let a student of the prior take its place."""
    module = model.module
    noise, latents, condition = (values.clone() for values in draw_pairs(model, seed))  # of no inference mode
    student = copy.deepcopy(module.averaged_prior.module).requires_grad_(True).train()
    average = torch.optim.swa_utils.AveragedModel(
        student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0)
    rate = lambda step: min(1, (step + 1) / WARM_UP) * (1 + np.cos(np.pi * step / N_STEPS)) / 2
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(N_STEPS):
        rows = torch.randint(N_PAIRS, (BATCH_SIZE,), generator=generator)
        t, starts, chosen = torch.rand(3, BATCH_SIZE, generator=generator)
        t = torch.where(chosen < AT_STARTS, (starts < 0.5) / 2, t)
        loss = diffusion_loss(
            student,
            module.path,
            TARGETS["velocity"],
            latents[rows],
            noise=noise[rows],
            t=t,
            condition=condition[rows],
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(student)
    module.averaged_prior.module.load_state_dict(average.module.state_dict())


def study(dataset: str, seed: int) -> pd.DataFrame:
    """Train SCLDM and its student, and judge cells of both."""
    split = load_split(dataset, seed)
    model = train_model(split, VARIANTS["SCLDM"], seed)
    model.module.eval()
    rows = []
    for prior in (PRIOR, STUDENT):
        started = time.process_time()
        if prior == STUDENT:
            teach(model, seed)
        minutes = (time.process_time() - started) / 60
        for (n_evaluations, (sampler, n_steps)), drawing in product(SAMPLERS.items(), range(N_DRAWINGS)):
            started = time.process_time()
            cells = generate(model, split, drawing, sampler=sampler, n_steps=n_steps)
            seconds = 1000 * (time.process_time() - started) / cells.n_obs
            table = judge(split, cells.X, seed, metrics=tuple(FIGURES)).set_index("metric")
            row = {"prior": prior, "n_evaluations": n_evaluations, "drawing": drawing}
            rows.append(row | {"seconds": seconds, "minutes": minutes} | table["value"].to_dict())
    rows.append({"prior": REAL, "n_evaluations": 0, "drawing": 0} | table["floor"].to_dict())
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> str:
    """Write a table per data set: a row per prior and number of evaluations, means over drawings and seeds."""
    parts = [
        "Cells of SCLDM's prior and of a student that learned its pairs of noise and latent, by network evaluations a "
        "cell (20: the default sampler). Means over drawings and seeds; seconds of one core for 1,000 cells, decoder "
        "included, training not. Written by `python -m benchmarks.studies.one_step`.",
        "",
    ]
    for dataset, rows in table.groupby("dataset", sort=False):
        means = rows.groupby(["prior", "n_evaluations"], sort=False)[["seconds", "minutes", *FIGURES]].mean()
        lines = [
            [
                prior,
                str(n) if n else "",
                f"{row['seconds']:.2f}" if n else "",
                *(f"{row[name]:.4f}" if name == "mmd_per_label" else f"{row[name]:.2f}" for name in FIGURES),
            ]
            for (prior, n), row in means.iterrows()
        ]
        seeds, minutes = ", ".join(map(str, sorted(rows["seed"].unique()))), means["minutes"].max()
        header = ["", "evaluations", "seconds", *FIGURES.values()]
        title = f"{heading(str(dataset))}, seeds {seeds}; the student took {minutes:.1f} minutes"
        parts += [title, "", markdown_table(header, lines), ""]
    return "\n".join(parts)


def main() -> None:
    """Run what is missing, and write the summary."""
    run_datasets(
        __doc__ or "", "one_step", study, summarise, choices=list(CONDITION_KEYS), default=["pbmc3k", "kang_ifnb"]
    )


if __name__ == "__main__":
    main()
