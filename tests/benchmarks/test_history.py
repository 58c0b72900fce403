"""The history of speed: what became slower is seen, and told from what cannot be compared."""

import pandas as pd
import pytest

history = pytest.importorskip("history")


def row(cells_per_second, **changes):
    common = {
        "processor": "cpu",
        "threads": 1,
        "device": "cpu",
        "precision": "float32",
        "compile": False,
        "system": "package",
        "stage": "prior_step",
        "genes": 2000,
        "expressed": 720,
        "batch": 128,
        "matrix_rate": 1e11,
        "seconds": 128 / cells_per_second,
    }
    return common | {"cells_per_second": cells_per_second} | changes


def verdicts(now, *stored):
    return history.compare(pd.DataFrame([now]), pd.DataFrame(stored))["verdict"].tolist()


def test_a_figure_is_compared_with_the_last_one_of_the_same_thing():
    assert verdicts(row(60.0), row(50.0), row(100.0)) == [history.SLOWER]
    assert verdicts(row(60.0), row(100.0), row(50.0)) == [history.LIKE]
    assert verdicts(row(60.0), row(20.0)) == [history.FASTER]


@pytest.mark.parametrize(
    "other",
    [{"processor": "gpu"}, {"threads": 2}, {"genes": 500}, {"compile": True}, {"precision": "bf16"}, {"cells": 9}],
)
def test_figures_of_other_machines_and_sizes_are_not_compared(other):
    assert verdicts(row(1.0), row(100.0, **other)) == [history.NEW]


def test_nothing_is_compared_with_an_empty_history():
    assert history.compare(pd.DataFrame([row(1.0)]), pd.DataFrame())["verdict"].tolist() == [history.NEW]


def test_columns_that_older_rows_lack_have_a_stand_in():
    older = {name: value for name, value in row(100.0).items() if name not in ("threads", "matrix_rate")}
    assert verdicts(row(50.0, threads=0, cells=None), older) == [history.SLOWER]


def test_a_slower_machine_is_forgiven():
    assert verdicts(row(50.0, matrix_rate=6e10), row(100.0)) == [history.LIKE]
    assert verdicts(row(50.0, matrix_rate=2e11), row(100.0)) == [history.SLOWER]


def test_what_has_no_cells_is_compared_by_its_seconds():
    nothing = float("nan")
    stored = row(1.0) | {"cells_per_second": nothing, "seconds": 5.0}
    assert verdicts(stored | {"seconds": 10.0}, stored) == [history.SLOWER]


def test_changes_are_told_as_a_table():
    changes = history.compare(pd.DataFrame([row(50.0)]), pd.DataFrame([row(100.0)]))
    assert "| prior_step, package, 2000 genes, batch 128 | 100 | 50 | 0.5 | 1 | SLOWER |" in history.tabulate_changes(
        changes
    )


def test_history_is_drawn(tmp_path):
    history.draw_history(pd.DataFrame([row(50.0), row(60.0), row(1.0, genes=9)]), tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 1000
