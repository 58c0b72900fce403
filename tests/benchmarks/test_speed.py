"""The speed study: every system is measured, and the pages say what was measured."""

import pandas as pd
import pytest

pytest.importorskip("torchdiffeq")
measure = pytest.importorskip("benchmarks.speed.measure")
report = pytest.importorskip("benchmarks.speed.report")
calls, systems = (pytest.importorskip(f"benchmarks.speed.{name}") for name in ("calls", "systems"))
tables = pytest.importorskip("benchmarks.tables")


@pytest.fixture
def measured(monkeypatch, tiny):
    """Measure a system of tiny networks on a machine of known rates, with short requests."""
    monkeypatch.setattr(measure, "device_rate", lambda *_: 1e10)
    monkeypatch.setattr(measure, "release_memory", lambda: None)  # takes a second in a process this large
    monkeypatch.setattr(calls, "GENERATED", {"cpu": 8})
    monkeypatch.setattr(systems, "N_SAMPLED", {"cpu": 8})

    def run(name, stages=measure.STAGES, architecture=tiny):
        sizes = {"n_genes": 60, "n_expressed": 20, "batch_size": 8, "n_cells": 64, "n_steps": 2}
        setting = systems.Setting(**sizes, architecture=architecture)
        return pd.DataFrame(measure.measure_system(name, setting, stages, seconds=0.01)).set_index("stage")

    return run


def test_every_step_of_the_package_is_measured_and_set_beside_its_limit(measured):
    rows = measured("package")
    assert list(rows.index) == list(measure.SYSTEMS["package"].stages)
    assert (rows["cells_per_second"] > 0).all()
    assert (rows["limit"] * rows["flops_per_cell"]).to_list() == pytest.approx([1e10] * len(rows))
    assert rows["matrix_share"].between(0, 1, inclusive="neither").all()


def test_what_users_call_is_measured_from_setup_to_loading(measured):
    stages = [stage for stage in measure.SYSTEMS["calls-SCLDM"].stages if stage != "importing"]
    rows = measured("calls-SCLDM", stages)
    assert list(rows.index) == stages
    assert (rows["cells_per_second"] > 0).all()
    assert rows.loc["autoencoder_epochs", "how"].endswith("epochs of 58 cells")


def test_gene_space_models_train_and_generate(measured, tiny_gene_space):
    rows = measured("SCRDIT", architecture=tiny_gene_space)
    assert list(rows.index) == ["training_step", "generate"]
    assert (rows["cells_per_second"] > 0).all()


@pytest.mark.parametrize(("seconds_per_step", "n_measured"), [(0.01, 100), (1.5, systems.N_STEPS), (5.0, 1)])
def test_long_sampling_is_extrapolated_and_says_so(monkeypatch, seconds_per_step, n_measured):
    now = [0.0]

    def take_steps(n_steps: int) -> None:
        now[0] += 10 + n_steps * seconds_per_step  # ten seconds belong to every call

    monkeypatch.setattr(systems, "clock", lambda device: now[0])
    extrapolation = systems.Extrapolation(100)
    extrapolation.choose(take_steps, "cpu")
    assert extrapolation.share == n_measured / 100
    assert ("extrapolated" in extrapolation.describe()) == (n_measured < 100)


def row(system, stage, cells_per_second, batch, **more):
    common = {"system": system, "stage": stage, "cells_per_second": cells_per_second, "batch": batch, "peak_gib": 0.5}
    common |= {"genes": 2000, "expressed": 720, "threads": 2, "processor": tables.describe_processor()}
    common |= {"versions": "torch 2", "commit": "abc", "date": "2026-11-20", "matrix_rate": 2e11, "device": "cpu"}
    return common | {"seconds": batch / cells_per_second} | more


def test_pages_have_the_last_figures_beside_the_published_ones_and_the_limits(tmp_path):
    rows = [
        row("published", "autoencoder_step", 200.0, 128),
        row("package", "autoencoder_step", 9000.0, 128),
        row("package", "autoencoder_step", 2000.0, 128, flops_per_cell=1e7, matrix_share=0.3),
        row("calls-SCLDM", "autoencoder_epochs", 1500.0, 4096, loading_share=0.1, fixed_seconds=0.25),
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "speed.csv", index=False)
    page = tmp_path / "docs" / "user_guide" / "speed.md"
    page.parent.mkdir(parents=True)
    marks = "<!-- speed: {0} -->\nold\n<!-- /speed: {0} -->\n"
    page.write_text(marks.format("steps") + marks.format("calls"))
    (tmp_path / "README.md").write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n")
    report.write(tmp_path, tmp_path)
    step = "| SCLDM, training of the autoencoder, 128 cells at a time | 2,000 | 200 | **10** | 10% | 30% | 0.50 |"
    call = "| SCLDM, `train_autoencoder`, an epoch | 4,096 | 2.7 | 1,500 | 75% | 10% | 0.25 | 0.50 |"
    readme = (tmp_path / "README.md").read_text()
    assert "| SCLDM, training of the autoencoder | 2,000 | 200 | **10** |" in readme
    assert readme.startswith("before\n<!-- speed -->\n|  | cells/s |")
    assert readme.endswith("<!-- /speed -->\nafter\n")
    in_full = (tmp_path / "speed.md").read_text()
    assert step in in_full
    assert call in in_full
    in_short = page.read_text()
    assert "| SCLDM, training of the autoencoder, 128 cells at a time | 2,000 | 200 | **10** | 0.50 |" in in_short
    assert "| SCLDM, `train_autoencoder`, an epoch | 4,096 | 2.7 | 1,500 |" in in_short
    assert "old" not in in_short


def test_a_page_without_the_mark_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(ValueError, match="must have one place between <!-- speed --> and <!-- /speed -->, but found 0"):
        tables.write_block(tmp_path / "page.md", "speed", "text")
