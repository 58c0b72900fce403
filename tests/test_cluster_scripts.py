"""The scripts for clusters run as they are: by processes of this machine, and under a Slurm that is played."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

from scgen_diffusion.model import SCLDM

SCRIPTS = Path(__file__).parents[1] / "docs" / "how_to" / "scripts"


def run_script(name, *arguments):
    sys.argv = [name, *map(str, arguments)]
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def test_processes_train_save_and_generate_by_the_scripts(make_cells, run_together, tmp_path):
    adata = make_cells()
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    model = tmp_path / "model"

    train = [tmp_path / "cells.h5ad", "--max-epochs", 1, "--batch-size", 64, "--output", model]
    assert run_together(lambda rank: run_script("train_ddp.py", *train)) == [None, None]
    request = [model, tmp_path / "synthetic.zarr", "--n-cells", 130, "--shard-size", 64, "--n-ranks", 2]
    parts = run_together(lambda rank: run_script("generate_part.py", *request, "--rank", rank))

    assert parts == [None, None]
    expected = SCLDM.load(model, adata=False).generate(130, seed=0)
    found = anndata.read_zarr(tmp_path / "synthetic.zarr")
    assert (found.X != expected.X).nnz == 0
    assert found.obs["cell_type"].tolist() == expected.obs["cell_type"].tolist()


@pytest.fixture
def play(tmp_path):
    """Run a script where commands only write down how they were called; ``python`` ends with a given code."""

    def run(script, *arguments, code=0, **variables):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (tmp_path / "log").touch()
        for name, end in (("python", f"exit {code}"), ("srun", '"$@"'), ("scontrol", "exit 0")):
            (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "{tmp_path}/log"\n{end}\n')
            (folder / name).chmod(0o755)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        environment = {**plain, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
        done = subprocess.run([shutil.which("bash"), str(SCRIPTS / script), *arguments], env=environment, check=False)
        return done.returncode, (tmp_path / "log").read_text().replace(str(SCRIPTS) + "/", "").splitlines()

    return run


JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2"}


def test_without_slurm_training_runs_here(play):
    assert play("slurm_train.sh", "c.h5ad") == (0, ["python train_ddp.py c.h5ad --accelerator cpu --devices 2"])


def test_under_slurm_all_tasks_train(play):
    code, log = play("slurm_train.sh", "c.h5ad", **JOB)

    assert code == 0
    assert log == [
        f"{command}train_ddp.py c.h5ad --accelerator gpu --devices 4 --num-nodes 2"
        for command in ("srun python ", "python ")
    ]


def test_a_job_whose_time_is_up_is_queued_again_and_a_failed_one_is_not(play):
    code, log = play("slurm_train.sh", code=143, **JOB)
    assert code == 143
    assert log[-1] == "scontrol requeue 7"

    code, log = play("slurm_train.sh", code=1, **JOB)
    assert code == 1
    assert log[-1].startswith("python")


def array_task(number, array):
    """Return what Slurm tells a task of an array."""
    return {
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_COUNT": str(len(array)),
        "SLURM_ARRAY_TASK_MIN": str(min(array)),
        "SLURM_ARRAY_TASK_MAX": str(max(array)),
    }


def test_the_tasks_of_an_array_make_a_part_each(play):
    request = ["model", "c.zarr", "--n-cells", "9"]

    _, [call] = play("slurm_generate.sh", *request, **array_task(3, range(8)))
    assert call == "python generate_part.py model c.zarr --n-cells 9 --rank 3 --n-ranks 8"

    _, [_, *calls] = play("slurm_generate.sh", *request)
    assert calls == [f"python generate_part.py model c.zarr --n-cells 9 --rank {rank} --n-ranks 2" for rank in (0, 1)]


@pytest.mark.parametrize("array", [[3], [3, 5], range(8)], ids=str)
def test_a_task_that_is_started_again_keeps_its_rank_if_the_number_of_ranks_is_given(play, array):
    _, [call] = play("slurm_generate.sh", "model", "c.zarr", **array_task(3, array), N_RANKS="8")

    assert call == "python generate_part.py model c.zarr --rank 3 --n-ranks 8"


@pytest.mark.parametrize("array", [[3], [3, 5], range(1, 9), range(1, 8, 2)], ids=str)
def test_tasks_of_which_nobody_knows_how_many_there_are_in_all_are_refused(play, array, capfd):
    code, log = play("slurm_generate.sh", "model", "c.zarr", **array_task(3, array))

    assert code == 2
    assert log == []
    assert "N_RANKS=8 sbatch --array=3" in capfd.readouterr().err


def test_ray_train_trains_with_two_workers(tmp_path):
    pytest.importorskip("ray.train", reason="needs ray[train]")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPTS / "ray_train.py"), "--max-epochs", "1", "--output", str(tmp_path / "model")]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    assert np.isfinite(SCLDM.load(tmp_path / "model", adata=False).history["prior_loss_train"].iloc[-1, 0])
