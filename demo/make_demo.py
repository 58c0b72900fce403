"""Train a model on real cells, generate as many as were held out, and judge them: ``make demo MODEL=SCLDM``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import anndata as ad  # noqa: E402 (the judge is found beside the package)
import matplotlib.pyplot as plt  # noqa: E402
import scanpy as sc  # noqa: E402
import scvi  # noqa: E402
from judge import Judge, judgement_table  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from splits import Split, load, split_cells  # noqa: E402

import scgen_diffusion as sgd  # noqa: E402

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

DATASET = "pbmc68k_reduced"
KEYS = ("cell_type",)
FOLDER = ROOT / "demo"
SEED = 0

logger = logging.getLogger("demo")


MODELS = ("SCLDM", "SCRDIT", "WBDIT")


def train(split: Split, name: str) -> Any:
    """Train with default settings."""
    model_class = getattr(sgd.model, name)
    model_class.setup_anndata(split.train, layer="counts", condition_keys=KEYS)
    model = model_class(split.train)
    model.train()
    return model


def generate(model: Any, *request: Any, **options: Any) -> ad.AnnData:
    """Generate counts, which SCLDM always gives and the others when asked."""
    if not isinstance(model, sgd.model.SCLDM):
        options["counts"] = True
    return model.generate(*request, seed=SEED, **options)


def judge(split: Split, synthetic: ad.AnnData, method: str) -> pd.DataFrame:
    """Compare with the held-out cells, beside what real cells score."""
    judge = Judge(
        split.train.layers["counts"], split.train_labels, split.held_out.layers["counts"], split.held_out_labels
    )
    values = judge.measure(synthetic.X, synthetic.obs["cell_type"])
    return judgement_table(values, judge.floor(), dataset=DATASET, seed=SEED, method=method)


def embed(real: ad.AnnData, synthetic: ad.AnnData) -> ad.AnnData:
    """Embed both kinds of cells together, in principal components of the real ones.

    UMAP is fitted to both: cells that it only projects end up in rings around those that it was fitted to, real ones too.
    """
    for cells in (real, synthetic):
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
    pca = PCA(30, random_state=SEED).fit(real.X.toarray())
    for cells in (real, synthetic):
        cells.obsm["X_pca"] = pca.transform(cells.X.toarray())
    both = ad.concat({"real": real, "synthetic": synthetic}, label="source", index_unique="-")
    sc.pp.neighbors(both, use_rep="X_pca", random_state=SEED)
    sc.tl.umap(both, random_state=SEED)
    return both


def draw(cells: ad.AnnData, path: Path) -> None:
    """Draw real beside synthetic cells, coloured by label, and both together, coloured by source."""
    labels = cells.obs["cell_type"].cat.categories
    colours = dict(zip(labels, sc.pl.palettes.default_20, strict=False))
    limits = {"xlim": _limits(cells.obsm["X_umap"][:, 0]), "ylim": _limits(cells.obsm["X_umap"][:, 1])}
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.6))
    for ax, source in zip(axes, ("real", "synthetic"), strict=False):
        points = cells[cells.obs["source"] == source]
        for label in labels:
            x, y = points.obsm["X_umap"][points.obs["cell_type"] == label].T
            ax.scatter(x, y, s=12, c=colours[label], label=label, linewidths=0)
        ax.set(title=f"{points.n_obs} {source} cells", **limits)
    axes[1].legend(loc="upper center", bbox_to_anchor=(-0.1, -0.08), ncol=5, frameon=False, markerscale=2)
    for source, colour, size in (("real", "0.75", 14), ("synthetic", "tab:red", 8)):
        x, y = cells.obsm["X_umap"][cells.obs["source"] == source].T
        axes[2].scatter(x, y, s=size, c=colour, label=source, linewidths=0)
    axes[2].set(title="both", **limits)
    axes[2].legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncol=2, frameon=False, markerscale=2)
    for ax in axes:
        ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _limits(values: NDArray) -> tuple[float, float]:
    margin = 0.05 * (values.max() - values.min())
    return values.min() - margin, values.max() + margin


def main() -> None:
    """Run the demonstration and say where its results are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="SCLDM", help="default: %(default)s")
    name = parser.parse_args().model
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
    start = time.perf_counter()
    scvi.settings.seed = SEED

    split = split_cells(load(DATASET), KEYS, seed=SEED, held_out_share=0.2)
    logger.info("Training %s on %d cells, %d held out ...", name, split.train.n_obs, split.held_out.n_obs)
    model = train(split, name)
    synthetic = generate(model, condition=split.held_out.obs[list(KEYS)], show_progress=True)
    synthetic.write_h5ad(FOLDER / "synthetic.h5ad")

    logger.info("Judging the cells ...")
    table = judge(split, synthetic, name)
    table.to_csv(FOLDER / "quality.csv", index=False)
    many = generate(model, split.train.n_obs)
    real = ad.AnnData(split.train.layers["counts"].copy(), obs=split.train.obs[list(KEYS)], var=split.train.var[[]])
    draw(embed(real, many), FOLDER / "umap.png")

    columns = ["metric", "value", "floor", "goal", "met"]
    logger.info("\n%s\n", table[columns].to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    for name, what in (("synthetic.h5ad", "cells"), ("umap.png", "picture"), ("quality.csv", "figures")):
        logger.info("%-8s %s", what, FOLDER / name)
    logger.info("Done in %.1f minutes.", (time.perf_counter() - start) / 60)


if __name__ == "__main__":
    main()
