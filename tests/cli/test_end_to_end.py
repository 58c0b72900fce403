"""A run as on a cluster: a process of its own, killed and called again."""

import signal
import time

import anndata

COMMAND = """\
import os
from scgen_diffusion.cli import run

os.chdir(sys.argv.pop(1))
run()
"""


def test_the_same_command_resumes_a_killed_run(call, start_apart, make_cells, tiny, tmp_path, monkeypatch):
    make_cells(160).write_h5ad(tmp_path / "cells.h5ad")
    sizes = [part for name, value in tiny.items() for part in ("--set", f"{name}={value}")]
    line = "train cells.h5ad -o model -c cell_type -e autoencoder=30 -e prior=1 --batch-size 32 --accelerator cpu"
    train = [*line.split(), *sizes]

    process, _, err = start_apart(COMMAND, tmp_path, *train)
    while not (tmp_path / ".model.checkpoints" / "autoencoder.ckpt").exists():
        assert process.is_alive(), err.read_text()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL  # 137 in a shell
    assert not (tmp_path / "model").exists()

    process, out, err = start_apart(COMMAND, tmp_path, *train)
    process.join()
    assert (process.exitcode, out.read_text()) == (0, "model\n"), err.read_text()
    assert "Resuming the autoencoder after epoch" in err.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "model"]

    monkeypatch.chdir(tmp_path)
    assert call(*train)[0] == 2  # it is there
    code, out, err = call("generate", "model", "new.h5ad", "-n", "160", "-c", "cell_type=NK")
    assert (code, out) == (0, "new.h5ad\n"), err
    assert set(anndata.read_h5ad("new.h5ad").obs["cell_type"]) == {"NK"}
    make_cells(160, seed=5).write_h5ad("held_out.h5ad")
    quick = ["--metric", "gene_mean_error", "--n-repeats", "1", "--n-bootstrap", "5"]
    assert call("evaluate", "held_out.h5ad", "new.h5ad", *quick, "-o", "table.csv")[0] == 0
    monkeypatch.setattr("scgen_diffusion.report._write.draw", lambda *_, **__: {})  # has tests of its own
    code, out, err = call("report", "held_out.h5ad", "new.h5ad", "--table", "table.csv", "-o", "report.html")
    assert (code, out) == (0, "report.html\n"), err
