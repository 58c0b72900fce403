"""Several processes train one model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys
import anndata, numpy as np, pandas as pd, scvi, torch
from scgen_diffusion.model import SCLDM

torch.set_num_threads(1)
scvi.settings.seed = 0
rng = np.random.default_rng(0)
counts = rng.poisson(3.0, (96, 12)).astype(np.float32)
obs = pd.DataFrame({"kind": pd.Categorical(rng.choice(["a", "b"], 96))}, index=[str(cell) for cell in range(96)])
adata = anndata.AnnData(counts, obs=obs)
SCLDM.setup_anndata(adata, condition_keys=["kind"])
model = SCLDM(adata, n_latent_tokens=2, n_latent=4, width=8, pooling_width=8, decoder_width=8, n_factors=4, prior_width=8,
              prior_n_layers=1, prior_n_heads=2)
model.train(2, batch_size=16, accelerator="cpu", devices=2, strategy="ddp", enable_progress_bar=False)
rank = int(os.environ.get("LOCAL_RANK", 0))
weights = {name: float(w.double().sum()) for name, w in model.module.named_parameters()}
report = {"weights": weights, "counts": float(model.generate(5, seed=0).X.sum())}
with open(f"{sys.argv[1]}/rank_{rank}.json", "w") as file:
    json.dump(report, file)
"""


@pytest.mark.slow
def test_two_processes_train_one_model_and_agree_on_it(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )

    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first["counts"] > 0
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-6)
