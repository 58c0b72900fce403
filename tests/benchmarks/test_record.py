"""The record of what a redesign must not lose: from the tables of other studies to one."""

import sys

import pandas as pd
import pytest

record = pytest.importorskip("benchmarks.record")

SPEEDS = {"system": "package", "stage": "generate", "batch": 128, "threads": 2, "fixed_seconds": None, "peak_gib": 0.5}


@pytest.fixture
def run_record(tmp_path, monkeypatch):
    """Run the command on made-up tables of other studies, in place of measuring."""

    def run(label, seconds, *options):
        speeds = pd.DataFrame([SPEEDS | {"seconds": second} for second in seconds])
        quality = pd.DataFrame(
            {"dataset": "pbmc3k", "seed": [0, 1], "method": "SCLDM", "metric": "w2", "value": seconds[:2], "floor": 0.5}
        )
        perturbation = quality.assign(cell_type=["B", "NK"], seed=0).drop(columns=["dataset", "floor"])
        studies = {"speed": speeds, "compare": quality, "perturbation": perturbation}

        def measure(command, env, stdout, **_):
            if "pytest" in command:
                stdout.write("SKIPPED\n=== 5 passed, 3 warnings in 2.50s ===\n")
            if "judge" in command:  # cells of any package are judged by this tree's
                assert env["PYTHONPATH"] == str(record.ROOT / "src")
            elif "draw" in command:
                assert env["PYTHONPATH"] == "/older/src"
            for name, table in studies.items():
                table.to_csv(tmp_path / label / f"{name}.csv")

        monkeypatch.setattr(record.subprocess, "run", measure)
        monkeypatch.setenv("PYTHONPATH", "/older/src")
        monkeypatch.setattr(record, "describe_commit", lambda: "")
        where = ["--label", label, "--work", str(tmp_path), "--results", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", ["record.py", *where, "--parts", "tests", "quality", "perturbation", "speed"])
        record.main()
        return pd.read_csv(tmp_path / "record.csv"), (tmp_path / "record.md").read_text()

    return run


def test_each_figure_has_a_row_and_repeated_speeds_their_median(run_record):
    rows, _ = run_record("before", [1.0, 2.0, 9.0])
    values = rows.set_index(["part", "dataset", "seed", "method", "metric"])["value"]
    assert values["speed", "128 cells, 2 threads", 0, "package generate", "seconds"] == 2.0
    assert values["perturbation", "kang_ifnb without NK", 0, "SCLDM", "w2"] == 2.0
    assert "fixed_seconds" not in set(rows["metric"])


def test_labels_are_compared_by_differences_and_ratios(run_record):
    run_record("before", [1.0, 2.0, 9.0])
    run_record("after", [2.0, 4.0, 6.0])
    rows, page = run_record("after", [7.0, 8.0, 9.0], "--collect")
    assert rows.groupby("label").size().nunique() == 1  # collected again, not added twice
    assert "| 128 cells, 2 threads, package generate, seconds | 2 | 4 | 2 |" in page
    assert "| pbmc3k, SCLDM, w2 | 1.5 ± 0.5 | 3 ± 1 | 1.5 |" in page
    assert "| kang_ifnb, SCLDM, w2 | 1.5 | 3 | 1.5 |" in page
    assert "| pbmc3k, floor, w2 | 0.5 | 0.5 | 0 |" in page
    assert "| pytest, seconds | 2.5 | 2.5 | 1 |" in page
