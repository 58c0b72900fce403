"""Which method draws the best cells? Models and baselines, judged on held-out cells.

    python -m benchmarks.quality                                # everything that is missing
    python -m benchmarks.quality --datasets pbmc3k --seeds 0    # a part of it
    python -m benchmarks.quality --methods SCLDM 'wide={"class": "WBDIT", "width": 256}'    # other arguments of a model
    python -m benchmarks.quality --datasets pbmc3k:300          # 300 training cells
    python -m benchmarks.quality --datasets kang_control_8donors:donor    # the cells of two donors are held out
    python -m benchmarks.quality --steps draw --folder FOLDER    # draw now, judge later with `--steps judge`

Every method trains and draws in its own process with one torch thread, so its time and peak memory are its own. Its
cells are kept in ``--folder``. They are judged by ``scgen_diffusion.metrics.evaluate``, and the figures are added to
``compare.csv`` in ``--results``. A picture goes to ``--picture``. Published
rivals are drawn by ``python -m benchmarks.rivals`` and judged here.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import pandas as pd

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.methods import COSTS_KEY, KNOWN, MODELS, choose_methods, draw_one
from benchmarks.quality.report import SETS, draw_comparison
from benchmarks.quality.splits import DATASETS, file_of, judge, load_split, parse_dataset
from benchmarks.rivals import RIVALS, is_rival
from benchmarks.runner import in_fresh_process, options, run, start

if TYPE_CHECKING:
    import argparse

RESULTS = Path(__file__).parent / "results"
METHODS = (*MODELS, *BASELINES)
COSTS = ("wall_minutes", "cpu_minutes", "peak_memory_gib")
SOURCE = ("settings", "machine", "versions", "commit", "date")
split_of = lru_cache(maxsize=1)(load_split)


def figures(dataset: str, seed: int, cells: ad.AnnData) -> pd.DataFrame:
    """Return the figures of a method's cells, including its costs."""
    spent = cells.uns[COSTS_KEY]
    costs = [{"metric": name, "group": "all", "value": float(spent[name]), "better": "lower"} for name in COSTS]
    table = pd.concat([judge(split_of(dataset, seed), cells.X, seed, n_bootstrap=0), pd.DataFrame(costs)])
    return table.assign(**{name: spent.get(name, "") for name in SOURCE})


def compare(chosen: argparse.Namespace) -> None:
    """Draw and judge what is missing, then write the tables and the picture."""
    for name, _ in map(parse_dataset, chosen.datasets):
        if "draw" in chosen.steps and not DATASETS[name].loader:
            file_of(name)  # missing files are noticed now, not hours later
    variants = choose_methods([text for text in chosen.methods if not is_rival(text)])
    names = [text.partition("=")[0] for text in chosen.methods]

    def measure(dataset: str, seed: int, method: str) -> pd.DataFrame | None:
        path = (chosen.folder / f"{dataset}-{seed}-{method}.h5ad").resolve()
        if "draw" in chosen.steps and method in variants and not path.exists():
            in_fresh_process(draw_one, dataset, seed, method, variants[method], path)
        if "judge" not in chosen.steps or not path.exists():
            return None
        return figures(dataset, seed, ad.read_h5ad(path))

    path = chosen.results / "compare.csv"
    cases = [
        {"dataset": dataset, "seed": seed, "method": method}
        for seed, dataset, method in product(chosen.seeds, chosen.datasets, names)
    ]
    table = run(path, cases, measure)
    if "judge" in chosen.steps and not table.empty:
        draw_comparison(table, chosen.picture or path.with_suffix(".png"))


def main() -> None:
    parser = options(__doc__, results=RESULTS, seeds=(0, 1, 2))
    known = f"{', '.join(DATASETS)}; with `:300`, 300 training cells; with `:donor`, held-out donors"
    parser.add_argument("--datasets", nargs="+", default=[*SETS, "osmfish_cortex"], help=known)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"{KNOWN}; {', '.join(RIVALS)}")
    parser.add_argument("--steps", nargs="+", choices=["draw", "judge"], default=["draw", "judge"])
    parser.add_argument("--picture", type=Path, help="default: compare.png next to the tables")
    compare(start(parser))


if __name__ == "__main__":
    main()
