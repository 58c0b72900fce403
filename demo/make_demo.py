"""Train a model on real cells, generate as many as were held out, and judge them: ``make demo MODEL=SCLDM``."""

from __future__ import annotations

import argparse
import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scvi
from sklearn.model_selection import train_test_split

import scgen_diffusion as scgd

if TYPE_CHECKING:
    from anndata import AnnData

FOLDER = Path(__file__).resolve().parent
MODELS = ("SCLDM", "SCMDM", "SCRDIT", "WBDIT")
KEY = "cell_type"
HELD_OUT_SHARE = 0.2
SEED = 0

say = partial(print, flush=True)  # in order with the bars, which go to stderr


def split(adata: AnnData) -> tuple[AnnData, AnnData]:
    """Hold a fifth of the cells of every type out."""
    rows = np.arange(adata.n_obs)
    train, held_out = train_test_split(rows, test_size=HELD_OUT_SHARE, stratify=adata.obs[KEY], random_state=SEED)
    return adata[np.sort(train)].copy(), adata[np.sort(held_out)].copy()


def train(cells: AnnData, name: str) -> Any:
    """Train with default settings."""
    model_class = getattr(scgd.model, name)
    model_class.setup_anndata(cells, layer="counts", condition_keys=[KEY])
    model = model_class(cells)
    model.train()
    return model


def generate(model: Any, **request: Any) -> AnnData:
    """Generate counts, which SCRDIT and WBDIT give when asked."""
    if isinstance(model, scgd.model.SCRDIT | scgd.model.WBDIT):
        request["counts"] = True
    return model.generate(seed=SEED, **request)


def main() -> None:
    """Run the demonstration and say where its results are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="SCLDM", help="default: %(default)s")
    name = parser.parse_args().model
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # which says that the seed is set
    start = time.perf_counter()
    scvi.settings.seed = SEED

    training, held_out = split(scgd.datasets.pbmc68k_reduced())
    say(f"Training {name} on {training.n_obs} cells; {held_out.n_obs} are held out.")
    model = train(training, name)
    say(f"Generating {held_out.n_obs} cells with the labels of those held out.")
    synthetic = generate(model, condition=held_out.obs[[KEY]])
    synthetic.write_h5ad(FOLDER / "synthetic.h5ad")

    say("Comparing them with the held-out cells.")
    table = scgd.metrics.evaluate(held_out, synthetic, train=training, groupby=KEY, seed=SEED)
    table.to_csv(FOLDER / "quality.csv", index=False)
    report = scgd.report.write(
        held_out, synthetic, FOLDER / "report.html", train=training, groupby=KEY, table=table, model=model
    )
    many = generate(model, n_cells=training.n_obs)
    scgd.pl.umap(training, many, color=KEY, seed=SEED, show=False, save=FOLDER / "umap.png")

    say(f"\n{scgd.report.summary(table).headline}")
    say(f"Open {report.as_uri()} in a browser: all figures and pictures.")
    say("Beside it: umap.png (picture), quality.csv (figures), synthetic.h5ad (cells).")
    say(f"Done in {(time.perf_counter() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
