"""Tables, pictures and pages of the speed study."""

import pandas as pd
import pytest

report = pytest.importorskip("speed_report")
results, scaling, tables, threads = (
    pytest.importorskip(name) for name in ("results", "scaling", "speed_tables", "threads")
)


def row(system, stage, cells_per_second, batch, **more):
    common = {
        "system": system,
        "stage": stage,
        "cells_per_second": cells_per_second,
        "batch": batch,
        "seconds": batch / cells_per_second,
        "peak_gib": 0.5,
        "genes": 2000,
        "expressed": 720,
        "threads": 2,
        "processor": results.describe_processor(),
        "versions": "torch 2",
        "commit": "abc",
        "date": "2026-11-20",
        "matrix_rate": 2e11,
        "bandwidth": 3e10,
        "limit": None,
        "device": "cpu",
    }
    return common | more


ROWS = [
    row("published", "autoencoder_step", 200.0, 128),
    row("package", "autoencoder_step", 2000.0, 128, limit=20_000.0, unfused_limit=8000.0, matrix_share=0.3),
    row("calls-SCLDM", "autoencoder_epochs", 1500.0, 4096, loading_share=0.1, fixed_seconds=0.25),
    row("calls-SCLDM", "importing", float("nan"), 4096, seconds=7.0),
]
THREADS = [
    {"system": "package", "processes": p, "threads": t, "openmp": openmp, "cells_per_second": 100.0 * p * t}
    for p, t, openmp in [(1, 1, "defaults"), (2, 1, "defaults"), (2, 1, "OMP_WAIT_POLICY=passive")]
]
SWEEP = [
    row("package", stage, 100.0 * value, 128, sweep=sweep, value=value)
    for sweep in ("batch", "tokens")
    for value in (2, 4, 8)
    for stage in ("autoencoder_step", "prior_step")
]


def test_steps_stand_beside_the_published_ones_and_the_limits():
    lines = tables.step_table(tables.Figures(pd.DataFrame(ROWS))).splitlines()
    name = "SCLDM, training of the autoencoder, 128 cells at a time"
    assert lines[2] == f"| {name} | 2,000 | 200 | **10** | 10% | 25% | 30% | 0.50 |"


def test_calls_stand_beside_the_bare_steps():
    lines = tables.call_table(tables.Figures(pd.DataFrame(ROWS))).splitlines()
    assert lines[2] == "| SCLDM, `import scgen_diffusion.model`, a fresh process |  | 7 |  |  |  |  |  |"
    assert lines[3] == "| SCLDM, `train_autoencoder`, an epoch | 4,096 | 2.7 | 1,500 | 75% | 10% | 0.25 | 0.50 |"


def test_the_last_of_several_measurements_counts():
    slower = row("package", "autoencoder_step", 1000.0, 128)
    assert "| 1,000 | 200 | **5** |" in tables.step_table(tables.Figures(pd.DataFrame([*ROWS, slower])))


def test_threads_and_processes_are_a_table():
    lines = tables.thread_table(pd.DataFrame(THREADS)).splitlines()
    assert (
        lines[0]
        == "| processes x threads | SCLDM, autoencoder, defaults | SCLDM, autoencoder, OMP_WAIT_POLICY=passive |"
    )
    assert lines[2:] == ["| 1 x 1 | 100 |  |", "| 2 x 1 | 200 | 200 |"]


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Stored figures, and pages with marks."""
    for name, rows in (("speed", ROWS), ("speed_threads", THREADS), ("speed_scaling", SWEEP)):
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "README.md").write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n")
    marks = [f"<!-- speed: {name} -->\n<!-- /speed: {name} -->\n" for name in ("steps", "calls", "threads")]
    (tmp_path / "speed_page.md").write_text("".join(marks))
    command = ["speed_report.py", "--write-only", "--results", str(tmp_path), "--plots", str(tmp_path)]
    pages = ["--page", str(tmp_path / "speed_page.md"), "--readme", str(tmp_path / "README.md")]
    monkeypatch.setattr("sys.argv", [*command, *pages])
    return tmp_path


def test_everything_is_written_from_what_is_stored(arguments):
    report.main()
    readme = (arguments / "README.md").read_text()
    assert readme.startswith("before\n<!-- speed -->\n|  | cells/s |")
    assert "old" not in readme
    assert readme.endswith("<!-- /speed -->\nafter\n")
    assert "200 GFLOP/s" in readme
    assert "an epoch" in (arguments / "speed_page.md").read_text()
    assert "## Changes" in (arguments / "speed.md").read_text()
    for picture in ("speed_history.png", "speed_scaling.png", "speed_memory.png"):
        assert (arguments / picture).stat().st_size > 5000


def test_the_pages_of_the_package_have_the_marks():
    for name in ("speed: steps", "speed: calls", "speed: threads"):
        assert f"<!-- {name} -->" in report.PAGE.read_text()
    assert "<!-- speed -->" in report.README.read_text()


def test_a_page_without_the_mark_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(ValueError, match="must have one place between <!-- speed --> and <!-- /speed -->, but found 0"):
        results.write_block(tmp_path / "page.md", "speed", "text")


def test_every_curve_has_a_name():
    for sweep in scaling.SWEEPS.values():
        for system, stages in sweep.systems.items():
            assert all((system, stage) in scaling.LABELS for stage in stages)


def test_every_sweep_changes_what_it_says():
    settings = [sweep.change(scaling.BASE, 7) for sweep in scaling.SWEEPS.values()]
    assert all(setting != scaling.BASE for setting in settings)
    assert len({str(setting) for setting in settings}) == len(settings)


def test_a_value_of_a_sweep_is_measured(monkeypatch):
    monkeypatch.setattr(scaling, "BASE", report_setting := scaling.Setting(n_genes=60, n_expressed=20, n_cells=32))
    arguments = scaling.argparse.Namespace(seconds=0.01, threads=1)
    rows = scaling.measure_value(scaling.SWEEPS["cells"], 40, "calls-SCLDM", ("setup", "loading"), arguments)
    assert report_setting.n_cells == 32
    assert [row["cells"] for row in rows] == [40, 40]
    assert all(row["cells_per_second"] > 0 for row in rows)


def test_processes_compute_at_the_same_time(monkeypatch):
    monkeypatch.setattr(threads, "Setting", lambda **_: scaling.Setting(n_genes=60, n_expressed=20, batch_size=8))
    figures = threads.measure("package", 2, 1, seconds=0.05)
    assert figures["cells_per_second"] > 0
    assert (figures["processes"], figures["threads"]) == (2, 1)
