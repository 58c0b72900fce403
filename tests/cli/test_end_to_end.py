"""A run as on a cluster: a process of its own, killed and called again."""

import signal
import time

COMMAND = """\
import os
from scgen_diffusion.cli import run

os.chdir(sys.argv.pop(1))
run()
"""


def test_the_same_command_resumes_a_killed_run(start_apart, make_cells, tiny, tmp_path):
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
