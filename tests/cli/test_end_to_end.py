"""A run as on a cluster: fresh processes, one of them killed."""

import os
import signal
import subprocess
import sys
import time

import anndata

CONFIG = """\
[train]
cells = ["cells.h5ad"]
out = "model"
condition = ["cell_type"]
max_epochs = {{ autoencoder = 60, prior = 1 }}
batch_size = 32
accelerator = "cpu"

[train.architecture]
{architecture}

[generate]
model = "model"
out = "new.h5ad"
n_cells = 160

[generate.condition]
cell_type = "NK"
"""


def start(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "scgen_diffusion", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_the_same_command_resumes_a_killed_run(call, make_cells, tiny, tmp_path, monkeypatch):
    make_cells(160).write_h5ad(tmp_path / "cells.h5ad")
    architecture = "\n".join(f"{name} = {value}" for name, value in tiny.items())
    (tmp_path / "run.toml").write_text(CONFIG.format(architecture=architecture))
    train = ("train", "--config", "run.toml")

    process = start(tmp_path, *train)
    wait_for(tmp_path / ".model.checkpoints" / "autoencoder.ckpt", process)
    process.kill()
    assert process.wait() == -signal.SIGKILL  # 137 in a shell
    assert not (tmp_path / "model").exists()

    process = start(tmp_path, *train)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "model\n"), err
    assert "Resuming the autoencoder after epoch" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "model", "run.toml"]

    monkeypatch.chdir(tmp_path)
    assert call(*train)[0] == 2  # it is there
    code, out, err = call("generate", "--config", "run.toml")
    assert (code, out) == (0, "new.h5ad\n"), err
    assert set(anndata.read_h5ad("new.h5ad").obs["cell_type"]) == {"NK"}
    make_cells(160, seed=5).write_h5ad("held_out.h5ad")
    quick = ["--metric", "gene_mean_error", "--n-floor", "1", "--n-bootstrap", "0"]
    assert (
        call("evaluate", "held_out.h5ad", "new.h5ad", *quick, "-o", "table.csv", "--max", "gene_mean_error=0")[0] == 3
    )
    monkeypatch.setattr("scgen_diffusion.report._write.draw", lambda *_, **__: ({}, []))  # has tests of its own
    code, out, err = call("report", "held_out.h5ad", "new.h5ad", "--table", "table.csv", "-o", "report.html")
    assert (code, out) == (0, "report.html\n"), err
