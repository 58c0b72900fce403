"""Whether two commits make the same cells: the digest of what each call returns after a short training, beside its
seconds.

    python -m benchmarks.record                     # this tree: digests, scores and seconds
    python -m benchmarks.record --against COMMIT    # beside those of another commit on the same machine

Equal digests mean that all stored scores of cells hold for both commits. Different machines round differently, so
digests are compared on one machine only. In ``results/record.csv``, `since` is the day on which a digest was new: tables
mark the rows of a model that are older.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from mudata import MuData


def digest(cells: Any) -> str:
    """Return a digest of the values of an AnnData, MuData, table or array."""
    parts = list(cells.mod.values()) if hasattr(cells, "mod") else [cells]
    content = hashlib.sha256()
    for part in parts:
        values = getattr(part, "X", part)
        values = values.toarray() if sp.issparse(values) else np.asarray(values)
        content.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return content.hexdigest()[:12]


def cells_of_blood() -> tuple[AnnData, AnnData]:
    """Return 700 real cells with a second key, drug, of which no effect is known, and held-out cells."""
    import scgen_diffusion as scgd

    cells = scgd.datasets.pbmc68k_reduced()
    cells.obs["drug"] = pd.Categorical(np.where(np.arange(cells.n_obs) % 3 == 0, "A", "control"))
    is_held_out = np.arange(cells.n_obs) % 4 == 3
    return cells[~is_held_out].copy(), cells[is_held_out].copy()


def with_proteins(cells: AnnData) -> MuData:
    """Return the cells as MuData, with the sums of twenty groups of genes as a second modality."""
    import anndata as ad
    import mudata

    counts = cells.layers["counts"].toarray() if sp.issparse(cells.layers["counts"]) else cells.layers["counts"]
    rna = ad.AnnData(sp.csr_matrix(counts), obs=cells.obs[[]].copy(), var=cells.var[[]].copy())
    sums = np.add.reduceat(counts[:, : counts.shape[1] // 20 * 20], np.arange(20) * (counts.shape[1] // 20), axis=1)
    prot = ad.AnnData(
        sp.csr_matrix(sums), obs=cells.obs[[]].copy(), var=pd.DataFrame(index=[f"protein {i}" for i in range(20)])
    )
    mdata = mudata.MuData({"rna": rna, "prot": prot})
    mdata.obs["cell_type"] = cells.obs["cell_type"].to_numpy()
    return mdata


def measure() -> pd.DataFrame:
    """Train each model for a few epochs, and record what its calls return."""
    import anndata
    import scanpy as sc
    import scvi
    import torch

    import scgen_diffusion as scgd

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # so short a training is a test
    scvi.settings.seed = 0
    rows = []

    def record(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        rows.append(
            {"call": name, "digest": "" if result is None else digest(result), "seconds": time.perf_counter() - start}
        )
        return result

    train, held_out = cells_of_blood()
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    keys = {"condition_keys": ["cell_type", "drug"], "control_values": {"drug": "control"}}
    scgd.model.SCLDM.setup_anndata(train, layer="counts", **keys)
    model = scgd.model.SCLDM(train)
    record("SCLDM.train", lambda: model.train(max_epochs=6, **quiet))
    synthetic = record("SCLDM.generate", lambda: model.generate(525, seed=1))
    record(
        "SCLDM.generate guided",
        lambda: model.generate(200, {"cell_type": "CD34+"}, guidance_scale=2.0, library_size=900, seed=2),
    )
    controls = train[train.obs["drug"] == "control"].copy()
    record("SCLDM.predict_perturbation", lambda: model.predict_perturbation(controls, {"drug": "A"}, seed=3))
    record("SCLDM.get_latent_representation", lambda: model.get_latent_representation(held_out))
    record("SCLDM.get_reconstruction", lambda: model.get_reconstruction(held_out))
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        loaded = scgd.model.load(f"{folder}/model")
        record("SCLDM.generate, loaded", lambda: loaded.generate(525, seed=1))
        path = Path(folder, "cells.h5ad")
        record("SCLDM.generate_to", lambda: anndata.read_h5ad(loaded.generate_to(path, 525, seed=1)))
    new = held_out.copy()
    new.obs["cell_type"] = new.obs["cell_type"].cat.rename_categories({"CD34+": "new type"})
    query = scgd.model.SCLDM.load_query_data(new, model)
    record("SCLDM.train, fine-tuning", lambda: query.train(max_epochs=3, **quiet))
    record("SCLDM.generate, new type", lambda: query.generate(100, {"cell_type": "new type"}, seed=1))
    scvi.settings.seed = 0  # each class starts anew: how many random numbers the calls before took does not matter
    mdata = with_proteins(train)
    scgd.model.MULTISCLDM.setup_mudata(mdata, condition_keys=["cell_type"])
    multi = scgd.model.MULTISCLDM(mdata)
    record("MULTISCLDM.train", lambda: multi.train(max_epochs=4, **quiet))
    record("MULTISCLDM.generate", lambda: multi.generate(200, seed=1))
    for cls in (scgd.model.SCMDM, scgd.model.SCRDIT, scgd.model.WBDIT):
        for values, layer in {"counts": "counts", "log1p": None}.items():
            if cls is scgd.model.SCMDM and values == "log1p":
                continue
            cells = train.copy()
            if values == "log1p":
                cells.X = cells.layers["counts"].astype(np.float32)
                sc.pp.normalize_total(cells, target_sum=1e4)
                sc.pp.log1p(cells)
            cls.setup_anndata(cells, layer=layer, condition_keys=["cell_type"], values=values)
            scvi.settings.seed = 0
            one = cls(cells)
            record(f"{cls.__name__}.train, {values}", lambda one=one: one.train(max_epochs=4, **quiet))
            record(f"{cls.__name__}.generate, {values}", lambda one=one: one.generate(200, seed=1))
    for name in ("pbmc3k", "kang_ifnb", "pbmc10k_citeseq"):
        shipped = scgd.model.load(name, accelerator="cpu")
        record(f"{name}.generate", lambda shipped=shipped: shipped.generate(300, seed=1))
    start = time.perf_counter()
    table = scgd.metrics.evaluate(held_out, synthetic, train=train, groupby="cell_type", seed=0)
    seconds = time.perf_counter() - start
    scores = table[table["group"] == "all"] if "group" in table else table
    for metric, value in zip(scores["metric"], scores["value"], strict=True):
        rows.append({"call": f"evaluate: {metric}", "digest": f"{value:.6g}", "seconds": seconds})
    return pd.DataFrame(rows)


def with_days(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add since which day each digest is as it is, by the stored table that this one replaces."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    if not path.exists():
        return table.assign(since=today)
    stored = pd.read_csv(path, dtype={"digest": str}, keep_default_na=False).set_index("call").reindex(table["call"])
    is_same = stored["digest"].to_numpy() == table["digest"].to_numpy()
    return table.assign(since=np.where(is_same, stored["since"], today))


def measure_commit(commit: str) -> pd.DataFrame:
    """Run this file on the package of another commit."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["git", "worktree", "add", "--detach", f"{folder}/tree", commit], check=True, capture_output=True
        )
        try:
            environment = {**os.environ, "PYTHONPATH": f"{folder}/tree/src"}
            subprocess.run([sys.executable, __file__, "--out", f"{folder}/rows.csv"], check=True, env=environment)
            return pd.read_csv(f"{folder}/rows.csv", dtype={"digest": str})
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", f"{folder}/tree"], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a commit to compare with")
    parser.add_argument("--out", help="a file for the table")
    options = parser.parse_args()
    table = measure()
    if options.against:
        other = measure_commit(options.against).set_index("call")
        table = table.join(other, on="call", rsuffix=f" of {options.against}")
    print(table.to_string(index=False, float_format="{:.2f}".format))
    if options.out:
        with_days(table, Path(options.out)).to_csv(options.out, index=False)
