"""The record of what a redesign must not lose: from the tables of other studies to one."""

import sys

import pandas as pd
import pytest

record = pytest.importorskip("benchmarks.record")

SPEEDS = {"system": "package", "stage": "generate", "batch": 128, "threads": 2, "fixed_seconds": None, "peak_gib": 0.5}


@pytest.fixture
def run_record(tmp_path, monkeypatch):
    """Run the command on made-up tables of other studies, in place of measuring."""

    def run(label, seconds):
        speeds = pd.DataFrame([SPEEDS | {"seconds": second} for second in seconds])
        quality = pd.DataFrame(
            {"dataset": "pbmc3k", "seed": [0, 1], "method": "SCLDM", "metric": "w2", "value": seconds[:2]}
        )
        perturbation = quality.assign(cell_type=["B", "NK"], seed=0).drop(columns="dataset")
        studies = {"speed": speeds, "quality": quality, "perturbation": perturbation}

        def measure(part, folder):
            if part == "tests":
                (folder / "tests.log").write_text("SKIPPED\n=== 5 passed, 3 warnings in 2.50s ===\n")
            else:
                studies[part].to_csv(folder / f"{part}.csv")
            (folder / f"{part}-0.done").touch()

        monkeypatch.setattr(record, "run", measure)
        options = ["--label", label, "--work", str(tmp_path), "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["record.py", *options, "--parts", "tests", *studies])
        record.main()
        return pd.read_csv(tmp_path / "record.csv"), (tmp_path / "record.md").read_text()

    return run


def test_each_figure_has_a_row_and_repeated_speeds_their_median(run_record):
    rows, _ = run_record("before", [1.0, 2.0, 9.0])
    values = rows.set_index(["part", "dataset", "seed", "method", "metric"])["value"]
    assert values["speed", "128 cells, 2 threads", 0, "package generate", "seconds"] == 2.0
    assert values["perturbation", "kang_ifnb without NK", 0, "SCLDM", "w2"] == 2.0
    assert "fixed_seconds" not in set(rows["metric"])


def test_a_later_label_stands_beside_the_earlier_with_differences_and_ratios(run_record):
    run_record("before", [1.0, 2.0, 9.0])
    run_record("after", [7.0, 8.0])
    rows, page = run_record("after", [2.0, 4.0, 6.0])
    assert rows.groupby("label").size().nunique() == 1  # collected again, not added twice
    assert "| 128 cells, 2 threads, package generate, seconds | 2 | 4 | 2 |" in page
    assert "| pbmc3k, SCLDM, w2 | 1.5 ± 0.5 | 3 ± 1 | 1.5 |" in page
    assert "| kang_ifnb, SCLDM, w2 | 1.5 | 3 | 1.5 |" in page
    assert "| pytest, seconds | 2.5 | 2.5 | 1 |" in page
