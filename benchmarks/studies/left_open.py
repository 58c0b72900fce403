"""What did the papers of scRDiT and WBDiT leave open? Zero values, numbers of genes, sampling steps, white-box blocks.

    python -m benchmarks.studies.left_open                                       # all that is missing
    python -m benchmarks.studies.left_open --questions zeros --seeds 0           # a part

- *zeros*: -5, -10, -20 or nothing in place of exact zeros, with the papers' head; beside them ours, which needs none.
- *genes*: 1,000, 2,000 or 3,000 variable genes are learned; the same 1,000 are judged.
- *sampling*: DDPM with 1,000 steps, DDIM with 2 to 20 times fewer and `eta` from 0 to 1, and our solver.
- *blocks*: white-box against ordinary blocks of one width and depth, with the coding rate of the tokens by layer.

Networks have their default size and training: the papers' own need a GPU, and so does the U-Net. Adds
to ``results/left_open.csv`` and writes ``docs/_static/left_open.png``.
"""

from __future__ import annotations

import json
import time
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.quality.methods import held_out_conditions, train_model
from benchmarks.quality.splits import judge, load_split
from benchmarks.runner import options, run, start
from benchmarks.tables import ROOT
from scgen_diffusion.diffusion import DDIMSampler
from scgen_diffusion.interpret import layer_statistics

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.quality.methods import Variant
    from benchmarks.quality.splits import Split

DATASETS = ("pbmc3k", "paul15", "kang_ifnb")
N_GENES, N_JUDGED = 2_000, 1_000
N_MEASURED = 200  # cells whose tokens are measured
FIGURES = ("auc_boosting", "auc_genes", "precision", "recall")
ZEROS, PARAMETERS = "share of zeros", "million parameters"
TRAINING, SAMPLING = "minutes of training", "seconds of sampling"
RATE = "coding rate after layer"
DDPM_STEPS, DDIM_STEPS, ETAS = 1_000, (500, 200, 100, 50), (0.0, 1.0)
#: Figures of each question besides those of all.
SHOWN = {"zeros": (ZEROS,), "genes": (TRAINING,), "sampling": (SAMPLING,), "blocks": (TRAINING, PARAMETERS)}

DEFAULT: Variant = {"class": "SCRDIT"}
REGRESSION = {"head": "regression"}
#: By question and answer: the model, options of `generate`, and the number of genes.
ANSWERS: dict[str, dict[str, tuple[Variant, dict[str, Any], int]]] = {
    "zeros": {
        **{f"{v}": ({**DEFAULT, "model": {**REGRESSION, "zero_value": v}}, {}, N_GENES) for v in (-5, -10, -20)},
        "nothing": ({**DEFAULT, "model": REGRESSION}, {}, N_GENES),
        "spike and slab": (DEFAULT, {}, N_GENES),
    },
    "genes": {f"{n:,}": (DEFAULT, {}, n) for n in (1_000, N_GENES, 3_000)},
    "sampling": {
        f"DDPM, {DDPM_STEPS:,}": (DEFAULT, {"sampler": "ddpm", "n_steps": DDPM_STEPS}, N_GENES),
        **{
            f"DDIM, {n}, eta {eta:g}": (DEFAULT, {"sampler": DDIMSampler(eta=eta), "n_steps": n}, N_GENES)
            for n, eta in product(DDIM_STEPS, ETAS)
        },
        "DPM-Solver, 12": (DEFAULT, {}, N_GENES),
    },
    "blocks": {"ordinary": (DEFAULT, {}, N_GENES), "white-box": ({"class": "WBDIT"}, {}, N_GENES)},
}


@lru_cache(maxsize=1)
def trained(dataset: str, seed: int, n_genes: int, variant: str) -> tuple[Split, Any, float]:
    """Return split, trained model and minutes; answers that differ only in sampling share them. `variant` is JSON."""
    split, started = load_split(dataset, seed, n_genes=n_genes), time.process_time()
    model = train_model(split, json.loads(variant), seed)
    return split, model, (time.process_time() - started) / 60


def measure(question: str, answer: str, dataset: str, seed: int) -> pd.DataFrame:
    """Judge the cells of an answer, beside real ones."""
    variant, how, n_genes = ANSWERS[question][answer]
    split, model, minutes = trained(dataset, seed, n_genes, json.dumps(variant))
    asked, started = {"condition": held_out_conditions(split), "seed": seed, **how}, time.process_time()
    counts, seconds = model.generate(**asked, counts=True), time.process_time() - started
    judged = load_split(dataset, seed, n_genes=N_JUDGED) if question == "genes" else split
    table = judge(judged, counts[:, judged.train.var_names].X, seed, metrics=[*FIGURES, "within_label_correlation"])
    rows = table[["metric", "value", "real"]].to_dict("records")
    if question == "zeros":
        value, real = (1 - (x != 0).mean() for x in (model.generate(**asked).X, split.held_out.layers["counts"]))
        rows.append({"metric": ZEROS, "value": value, "real": real})
    size = sum(p.numel() for p in model.module.network.parameters()) / 1e6
    costs = {TRAINING: minutes, SAMPLING: seconds, PARAMETERS: size}
    if answer == "white-box":
        measured = layer_statistics(model, indices=range(N_MEASURED), seed=seed)
        rates = measured[measured["head"] == "all"].groupby(["layer", "statistic"])["value"].mean().unstack()
        shares = rates["subspace_coding_rate_after"] / rates["subspace_coding_rate_before"]
        costs |= {f"{RATE} {layer}": share for layer, share in shares.items()}
    return pd.DataFrame([*rows, *({"metric": name, "value": value} for name, value in costs.items())])


def draw_picture(table: pd.DataFrame, path: Path) -> None:
    """Draw quality against time of sampling, and the coding rates of white-box tokens by layer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    means = table[table["question"] == "sampling"].pivot_table(index="answer", columns="metric", values="value")
    for name in ("DDPM", *(f"eta {eta:g}" for eta in ETAS), "DPM-Solver"):
        own = means[means.index.str.contains(name)].sort_values(SAMPLING)
        left.plot(own[SAMPLING], own["auc_genes"], marker="o", label=name.replace("eta", "DDIM, eta"))
    left.set(xscale="log", xlabel="seconds of sampling", ylabel="AUC, genes")
    left.legend(frameon=False)
    rates = table[table["metric"].str.startswith(RATE)].groupby(["metric", "dataset"])["value"].mean().unstack()
    for dataset, of_layers in rates.items():
        right.plot(range(len(of_layers)), of_layers, marker="o", label=dataset)
    right.axhline(1, color="0.5", ls="--")
    right.set(xlabel="layer", ylabel="coding rate after attention / before", xticks=range(len(rates)))
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = options(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--questions", nargs="+", choices=ANSWERS, default=list(ANSWERS))
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    chosen = start(parser)
    cases = [
        {"question": question, "answer": answer, "dataset": dataset, "seed": seed}
        for dataset, seed, question in product(chosen.datasets, chosen.seeds, chosen.questions)
        for answer in ANSWERS[question]
    ]
    # one training serves all answers that differ only in sampling
    cases.sort(
        key=lambda case: (case["dataset"], case["seed"], *map(str, ANSWERS[case["question"]][case["answer"]][::2]))
    )
    table = run(chosen.results / "left_open.csv", cases, measure)
    if {"sampling", "blocks"} <= set(table["question"]):
        draw_picture(table, ROOT / "docs" / "_static" / "left_open.png")


if __name__ == "__main__":
    main()
