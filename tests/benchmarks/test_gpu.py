"""The script for a GPU, on a CPU: it runs from end to end, and failures are told apart from figures."""

import sys
from dataclasses import replace

import pandas as pd
import pytest

gpu = pytest.importorskip("gpu")
equivalence = pytest.importorskip("equivalence")
calls, gene_space_systems, roofline, speed = (
    pytest.importorskip(name) for name in ("calls", "gene_space_systems", "roofline", "speed")
)


@pytest.fixture
def run_script(monkeypatch, tmp_path):
    """Run the very script with the very options, but for a shorter request, one way of computing and known rates."""
    monkeypatch.setattr(calls, "GENERATED", {"cpu": 8})
    monkeypatch.setattr(gene_space_systems, "N_SAMPLED", {"cpu": 8})
    goals = tuple(goal for goal in gpu.GOALS if not goal.stage.endswith("_epochs"))  # long, and tested with speed.py
    monkeypatch.setattr(gpu, "GOALS", goals)
    monkeypatch.setattr(gpu, "PROFILED", {"package": ("prior_step",)})
    monkeypatch.setattr(gpu, "WAYS", (("bf16", True), ("bf16", False)))
    for module in (gpu, speed):
        monkeypatch.setattr(module, "machine_rates", lambda _: roofline.Rates({"float32": 1e10, "bf16": 1e10}, 1e10))

    def run(*options):
        common = [
            "gpu.py",
            "--device",
            "cpu",
            "--tiny",
            "--no-compile",
            "--seconds",
            "0.01",
            "--results",
            str(tmp_path),
        ]
        monkeypatch.setattr(sys, "argv", [*common, *options])
        gpu.main()
        return pd.read_csv(tmp_path / "speed_gpu.csv"), (tmp_path / "speed_gpu.md").read_text()

    return run


def test_the_whole_script_runs_on_a_cpu(run_script, monkeypatch):
    one_of_each_kind = [
        ("package", "autoencoder_step"),
        ("calls-SCLDM", "generate_anndata"),
        ("SCRDIT-published-size", "training_step"),
    ]
    goals = tuple(goal for goal in gpu.GOALS if (goal.system, goal.stage) in one_of_each_kind)
    monkeypatch.setattr(gpu, "GOALS", goals)
    monkeypatch.setattr(gpu, "PROFILED", {"package": ("prior_step",)})
    assert len(goals) == 3
    rows, page = run_script()
    assert set(rows[["system", "stage"]].itertuples(index=False, name=None)) == {(g.system, g.stage) for g in gpu.GOALS}
    assert not rows["how"].str.startswith("failed").any()
    assert (rows["cells_per_second"] > 0).all()
    assert rows["met"].notna().sum() == sum(goal.cells_per_second is not None for goal in gpu.GOALS)
    assert "sampled latents, bf16" in page
    assert "matrix work in all" in page


def test_what_fails_is_written_down_and_the_rest_goes_on(run_script, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(gpu, "GOALS", (gpu.Goal("package", "prior_step", 1.0), gpu.Goal("package", "generate", 1.0)))
    monkeypatch.setattr(gpu, "PROFILED", {})
    monkeypatch.setattr(gpu, "compare_devices", lambda *_: [equivalence.Comparison("all", "float32", 0.0)])
    monkeypatch.setattr(gpu, "measure_system", fail)
    rows, _ = run_script()
    assert rows["how"].tolist() == ["failed: RuntimeError: no kernel image"] * 2
    assert rows["met"].tolist() == [False, False]


def test_a_stage_that_fails_costs_no_other_stage_of_its_system(run_script, monkeypatch):
    def fail(_):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "GOALS", (gpu.Goal("package", "autoencoder_step", 1.0), gpu.Goal("package", "prior_step")))
    monkeypatch.setattr(gpu, "PROFILED", {})
    monkeypatch.setattr(gpu, "compare_devices", lambda *_: [equivalence.Comparison("all", "float32", 0.0)])
    monkeypatch.setattr(gpu.SYSTEMS["package"], "autoencoder_step", fail)
    rows, _ = run_script()
    assert rows.set_index("stage")["how"].str.startswith("failed").to_dict() == {
        "autoencoder_step": True,
        "prior_step": False,
    }


def test_a_device_that_computes_something_else_ends_with_an_error(run_script, monkeypatch):
    monkeypatch.setattr(gpu, "GOALS", (gpu.Goal("package", "prior_step", 1.0),))
    monkeypatch.setattr(gpu, "PROFILED", {})
    monkeypatch.setattr(gpu, "compare_devices", lambda *_: [equivalence.Comparison("loss", "float32", 0.5)])
    with pytest.raises(SystemExit, match="1"):
        run_script()


def test_nothing_new_is_begun_after_the_deadline(run_script, monkeypatch):
    monkeypatch.setattr(gpu, "compare_devices", lambda *_: [equivalence.Comparison("loss", "float32", 0.0)])
    monkeypatch.setattr(gpu, "_measure", lambda *_: pytest.fail("it was measured"))
    _, page = run_script("--minutes", "0")
    assert "loss, float32" in page


@pytest.mark.parametrize(
    ("speed_of_it", "gib", "met"), [(60_000, 2.0, True), (60_000, 4.0, False), (40_000, 2.0, False)]
)
def test_a_goal_is_met_by_speed_and_memory_together(speed_of_it, gib, met):
    row = {"system": "package", "stage": "autoencoder_step", "cells_per_second": speed_of_it, "peak_gib": gib}
    assert gpu.judged(pd.DataFrame([row]))["met"].tolist() == [met]


@pytest.fixture(scope="module")
def comparisons():
    return {each.name: each for each in equivalence.compare_devices(replace(gpu.TINY), "bf16")}


def test_bfloat16_differs_a_little_from_float32_in_every_loss_and_sample(comparisons):
    assert len(comparisons) == 7
    assert all(0 < each.difference for each in comparisons.values())  # nothing is compared that is zero by construction
    assert all(each.passes for each in comparisons.values())


def test_a_difference_is_seen():
    assert not equivalence.Comparison("loss", "float32", 2e-3).passes
