"""Generate blood cells with the shipped model, or train one first, and judge them: ``make demo MODEL=pbmc3k``."""

from __future__ import annotations

import argparse
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import scvi
from benchmarks.pretrained import halves
from sklearn.model_selection import train_test_split

import scgen_diffusion as scgd

FOLDER = Path(__file__).resolve().parent
DATA, OFFLINE = "pbmc3k", "pbmc68k_reduced"
MODELS = (DATA, "SCLDM", "SCMDM", "SCRDIT", "WBDIT")
KEY = "cell_type"
SEED = 0

say = partial(print, flush=True)  # in order with the bars, which go to stderr


def cells_of_blood() -> tuple[str, Any, Any]:
    """Return the name of a data set, and its cells for training and those held out: without network, a smaller set."""
    try:
        return DATA, *halves(DATA)
    except OSError as error:
        say(f"{str(error).partition(':')[0]}.\nWithout these cells, a model of the 700 that scanpy brings is trained.")
    cells = scgd.datasets.pbmc68k_reduced()
    parts = train_test_split(cells.obs_names, test_size=0.3, stratify=cells.obs[KEY], random_state=SEED)
    return OFFLINE, *(cells[names].copy() for names in parts)


def train(cells: Any, name: str) -> Any:
    """Train with default settings."""
    model_class = getattr(scgd.model, name)
    model_class.setup_anndata(cells, layer="counts", condition_keys=[KEY])
    model = model_class(cells)
    model.train()
    return model


def main() -> None:
    """Run the demonstration and say where its results are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", choices=MODELS, default=DATA, help="the shipped model, or a class; default: %(default)s"
    )
    name = parser.parse_args().model
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # which says that the seed is set
    start = time.perf_counter()
    scvi.settings.seed = SEED

    data, training, held_out = cells_of_blood()
    sizes = held_out.obs[KEY].value_counts()
    few = sizes.index[sizes < scgd.metrics.MIN_CELLS_PER_GROUP]
    say(f"{training.n_obs:,} cells for training, {held_out.n_obs:,} held out. Too rare to judge: {', '.join(few)}.")
    seen = training
    if data == DATA:  # all but two types are large enough
        held_out, seen = (cells[~cells.obs[KEY].isin(few)].copy() for cells in (held_out, training))
    if name == data:
        model = scgd.model.load(DATA, adata=False)
    else:
        model = train(training, "SCLDM" if name == DATA else name)
    options = {"seed": SEED, "counts": True}
    say(f"Generating {held_out.n_obs:,} cells with the labels of those held out.")
    synthetic = model.generate(condition=held_out.obs[[KEY]], **options)
    synthetic.write_h5ad(FOLDER / "synthetic.h5ad")

    say("Comparing them with the held-out cells.")
    table = scgd.metrics.evaluate(held_out, synthetic, train=seen, groupby=KEY, seed=SEED)
    table.to_csv(FOLDER / "quality.csv", index=False)
    report = scgd.report.write(
        held_out, synthetic, FOLDER / "report.html", train=seen, groupby=KEY, table=table, model=model
    )
    many = model.generate(condition=seen.obs[[KEY]], **options)
    axes = scgd.pl.umap(seen, many, color=KEY, seed=SEED, show=False)
    axes[0].figure.savefig(FOLDER / "umap.png", dpi=150, bbox_inches="tight")

    say(f"\n{scgd.report.summary(table).headline}")
    say(f"Open {report.as_uri()} in a browser: all figures and pictures.")
    say("Beside it: umap.png (picture), quality.csv (figures), synthetic.h5ad (cells).")
    say(f"Done in {(time.perf_counter() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
