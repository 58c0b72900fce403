"""Several processes train one model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys
import anndata, numpy as np, pandas as pd, scvi, torch
from scgen_diffusion import model as models

torch.set_num_threads(1)
scvi.settings.seed = 0
rng = np.random.default_rng(0)
counts = rng.poisson(3.0, (96, 12)).astype(np.float32)
obs = pd.DataFrame({"kind": pd.Categorical(rng.choice(["a", "b"], 96))}, index=[str(cell) for cell in range(96)])
adata = anndata.AnnData(counts, obs=obs)
cls = getattr(models, sys.argv[2])
cls.setup_anndata(adata, condition_keys=["kind"])
model = cls(adata, **json.loads(sys.argv[3]))
model.train(2, batch_size=16, accelerator="cpu", devices=2, strategy="ddp", enable_progress_bar=False)
rank = int(os.environ.get("LOCAL_RANK", 0))
weights = {name: float(w.double().sum()) for name, w in model.module.named_parameters()}
report = {"weights": weights, "counts": float(model.generate(5, seed=0).X.sum())}
with open(f"{sys.argv[1]}/rank_{rank}.json", "w") as file:
    json.dump(report, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SCLDM", "SCRDIT"])
def test_two_processes_train_one_model_and_agree_on_it(tiny, tiny_gene_space, tmp_path, model):
    options = tiny if model == "SCLDM" else tiny_gene_space
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path), model, json.dumps(options)],
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
