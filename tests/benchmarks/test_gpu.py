"""The GPU script on a CPU: it runs from end to end and records failures."""

import sys

import pandas as pd
import pytest

gpu = pytest.importorskip("benchmarks.speed.gpu")
calls, systems = (pytest.importorskip(f"benchmarks.speed.{name}") for name in ("calls", "systems"))


@pytest.fixture
def run_script(monkeypatch, tmp_path):
    """Run the very command with few goals, one way of computing, short requests and known rates."""
    monkeypatch.setattr(calls, "GENERATED", {"cpu": 8})
    monkeypatch.setattr(systems, "N_SAMPLED", {"cpu": 8})
    monkeypatch.setattr(gpu, "PROFILED", {"package": ("prior_step",)})
    monkeypatch.setattr(gpu, "WAYS", (gpu.Way(),))
    for module in (gpu, sys.modules["benchmarks.speed.measure"]):
        monkeypatch.setattr(module, "device_rate", lambda *_: 1e10)
        monkeypatch.setattr(module, "release_memory", lambda: None)  # takes a second in a process this large

    def run(*goals, difference=1e-4):
        monkeypatch.setattr(gpu, "GOALS", goals)
        monkeypatch.setattr(gpu, "compare_devices", lambda *_: [gpu.Comparison("loss", "float32", difference)])
        options = ["--device", "cpu", "--tiny", "--seconds", "0.01", "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["gpu", *options])
        gpu.main()
        return pd.read_csv(tmp_path / "speed_gpu.csv"), (tmp_path / "speed_gpu.md").read_text()

    return run


def test_the_whole_script_runs_on_a_cpu_and_a_stage_that_fails_costs_no_other(run_script, monkeypatch):
    def fail(_):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(systems.PackageSystem, "autoencoder_step", fail)
    rows, page = run_script(
        gpu.Goal("package", "autoencoder_step", 1.0),
        gpu.Goal("package", "prior_step", 1.0),
        gpu.Goal("calls-SCLDM", "generate_anndata", 1e12),
        gpu.Goal("WBDIT", "training_step"),
    )
    how = rows.set_index("stage")["how"]
    assert how["autoencoder_step"] == "failed: RuntimeError: no kernel image"
    assert not how.drop("autoencoder_step").str.startswith("failed").any()
    assert rows.set_index("stage")["met"].tolist()[:3] == [False, True, False]
    assert "| loss, float32 | 1.0e-04 | yes |" in page
    assert "matrix work in all" in page


def test_a_device_that_computes_something_else_ends_with_an_error(run_script, monkeypatch):
    monkeypatch.setattr(gpu, "PROFILED", {})
    with pytest.raises(SystemExit, match="1"):
        run_script(gpu.Goal("package", "prior_step", 1.0), difference=0.5)


def test_bfloat16_differs_a_little_from_float32_in_every_loss_and_sample():
    comparisons = gpu.compare_devices(gpu.TINY, "bf16")
    assert len(comparisons) == 7
    assert all(0 < each.difference for each in comparisons)  # nothing is compared that is zero by construction
    assert all(each.passes for each in comparisons)
