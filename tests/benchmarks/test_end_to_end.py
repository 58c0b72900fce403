"""The study from files to a report: commands are stopped and run again, and its tables."""

import json
import subprocess

import pandas as pd
import pytest
from benchmarks.studies import end_to_end

SCRIPT = """
import signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
runs = Path(sys.argv[1])
with runs.open("a") as file:
    file.write("run ")
if runs.read_text() == "run ":
    time.sleep(60)
sys.exit(int(sys.argv[2]))
"""


def test_a_stopped_command_is_run_again(tmp_path):
    costs = end_to_end.run(["-c", SCRIPT, str(tmp_path / "runs"), "0"], tmp_path / "costs.json", stops=(1, 30))

    assert (tmp_path / "runs").read_text() == "run run "
    assert costs["n_stopped"] == 1
    assert costs["peak_memory_gib"] > 0.001
    assert 0 < costs["cpu_minutes"] < costs["wall_minutes"] < 0.5


def test_a_command_that_fails_ends_the_study(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        end_to_end.run(["-c", "raise SystemExit(2)"], tmp_path / "costs.json")


def test_a_study_that_is_stopped_adds_up_its_costs(tmp_path, monkeypatch):
    command, record = ["-c", SCRIPT, str(tmp_path / "runs"), "0"], tmp_path / "costs.json"

    def stop_study(process):
        if (tmp_path / "runs").exists():
            raise KeyboardInterrupt
        return 0.0

    monkeypatch.setattr(end_to_end, "peak_memory", stop_study)
    with pytest.raises(KeyboardInterrupt):
        end_to_end.run(command, record)
    monkeypatch.undo()
    before = json.loads(record.read_text())
    costs = end_to_end.run(command, record)

    assert before["n_stopped"] == costs["n_stopped"] == 1
    assert 0 < before["cpu_minutes"] < costs["cpu_minutes"]


def test_tables_show_every_step_and_the_cells_beside_real_ones():
    costs = {"wall_minutes": 60.0, "cpu_minutes": 59, "peak_memory_gib": 1, "n_stopped": 2}
    steps = [{"step": step, **costs} for step in end_to_end.STEPS]
    sides = [{"step": side, "auc_genes": 0.5, "recall": 0.9} for side in end_to_end.SIDES]
    rows = pd.DataFrame([*steps, *sides])

    costs, quality = end_to_end.costs_of(rows), end_to_end.quality_of(rows)

    assert costs.count("| 60.0 | 59.0 | 1.0 | 2 |") == 4
    assert quality.splitlines()[0] == "|  | AUC, genes | recall |"
    assert quality.splitlines()[2:] == ["| real cells | 0.50 | 0.90 |", "| generated cells | 0.50 | 0.90 |"]
