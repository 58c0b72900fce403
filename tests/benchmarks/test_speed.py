"""The speed study: which systems stand beside which, and what is extrapolated."""

import itertools
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

pytest.importorskip("torchdiffeq")
roofline = pytest.importorskip("roofline")
speed = pytest.importorskip("speed")
systems = pytest.importorskip("gene_space_systems")
system = pytest.importorskip("system")

SETTING = system.Setting(n_genes=210, n_expressed=60, batch_size=8)


def row(name, stage, cells_per_second, batch=128):
    return {
        "system": name,
        "stage": stage,
        "cells_per_second": cells_per_second,
        "batch": batch,
        "how": "how",
        "parameters": 2e6,
        "peak_gib": 1.0,
        "seconds": batch / cells_per_second,
    }


def test_every_system_stands_beside_a_published_one():
    for each in speed.SYSTEMS.values():
        assert speed.SYSTEMS[each.yardstick].yardstick == each.yardstick


def test_ratios_are_to_the_published_system_at_the_same_batch():
    slow, fast = row("published-scrdit", "training_step", 10.0, 16), row("SCRDIT", "training_step", 40.0, 16)
    other = row("SCRDIT", "training_step", 80.0, 32)
    lines = speed.tabulate(pd.DataFrame([slow, fast, other])).splitlines()[2:]
    assert [line.split(" | ")[4] for line in lines] == ["1.0", "4.0", ""]
    assert lines[1].startswith("| training_step, SCRDIT (how), batch 16 | 2.00 | 0.4 | 40 |")


def test_generation_stands_beside_both_published_samplers():
    rows = [row("published-wbdit", "generate_ddpm", 1.0), row("published-wbdit", "generate_ddim", 10.0)]
    table = speed.tabulate(pd.DataFrame([*rows, row("WBDIT", "generate", 200.0)]))
    assert "200.0 DDPM, 20.0 DDIM" in table


@pytest.mark.parametrize(("seconds_per_step", "n_measured"), [(0.01, 100), (1.5, systems.N_STEPS), (5.0, 1)])
def test_long_sampling_is_extrapolated_and_says_so(monkeypatch, seconds_per_step, n_measured):
    times = itertools.count(step=seconds_per_step)
    monkeypatch.setattr(systems, "clock", lambda device: next(times))
    extrapolation = systems.Extrapolation(100)
    extrapolation.choose(lambda: None, "cpu")
    assert extrapolation.share == n_measured / 100
    assert ("extrapolated" in extrapolation.describe()) == (n_measured < 100)


def test_extrapolated_speed_is_that_of_the_whole_work():
    whole = SimpleNamespace(share=lambda _: 0.1, describe=str, n_cells=lambda _: 128, n_parameters=1, precision=str)
    measured = SimpleNamespace(cells_per_second=50.0, peak_bytes=0, further={})
    assert speed._row("SCRDIT", "generate", whole, SETTING, measured)["cells_per_second"] == 5.0


def test_the_share_of_the_limit_stands_beside_a_figure():
    counted = row("package", "prior_step", 50.0) | {"limit": 200.0, "unfused_limit": 100.0, "matrix_share": 0.62}
    assert speed.tabulate(pd.DataFrame([counted])).splitlines()[2].endswith("| 25% | 50% | 62% |")


def measured(*arguments):
    arguments = speed.parse_arguments(
        ["--genes", "60", "--batch", "8", "--seconds", "0.01", "--cells", "64", *arguments]
    )
    return speed.run(arguments).set_index("stage")


@pytest.fixture
def _small_rates(monkeypatch):
    monkeypatch.setattr(speed, "machine_rates", lambda device: roofline.Rates({"float32": 1e10, "bf16": 1e10}, 1e10))


@pytest.fixture
def _tiny_networks(monkeypatch, tiny):
    chosen = speed.setting_from
    monkeypatch.setattr(speed, "setting_from", lambda *arguments: replace(chosen(*arguments), architecture=tiny))


@pytest.mark.usefixtures("_small_rates", "_tiny_networks")
def test_every_step_of_the_package_is_measured_and_set_beside_its_limit():
    rows = measured("--systems", "package", "--no-apart")
    assert list(rows.index) == list(speed.SYSTEMS["package"].stages)
    assert (rows["cells_per_second"] > 0).all()
    assert (rows["flops_per_cell"] > 0).all()
    assert (rows["limit"] >= rows["unfused_limit"]).all()
    assert rows["matrix_share"].between(0, 1, inclusive="neither").all()


@pytest.mark.usefixtures("_small_rates", "_tiny_networks")
def test_what_users_call_is_measured_from_setup_to_loading():
    stages = [stage for stage in speed.SYSTEMS["calls-SCLDM"].stages if stage != "importing"]
    rows = measured("--systems", "calls-SCLDM", "--no-apart", "--stages", *stages)
    assert list(rows.index) == stages
    assert (rows["cells_per_second"] > 0).all()
    assert rows["cells"].eq(64).all()
    assert rows.loc["prior_epochs", "loading_share"] > 0
    assert rows.loc["autoencoder_epochs", "how"].endswith("epochs of 58 cells")


def test_a_process_of_its_own_returns_its_rows():
    rows = measured("--systems", "calls-SCLDM", "--stages", "setup", "--no-limit")
    assert rows["cells_per_second"].item() > 0


def test_a_slow_figure_ends_the_check_with_an_error(tmp_path, monkeypatch):
    command = ["speed.py", "--genes", "60", "--systems", "calls-SCLDM", "--stages", "setup", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", [*command, "--cells", "64", "--no-limit", "--results", str(tmp_path)])
    speed.main()
    stored = pd.read_csv(tmp_path / "speed.csv")
    stored.assign(cells_per_second=1e12).to_csv(tmp_path / "speed.csv", index=False)
    sys.argv.append("--check")
    with pytest.raises(SystemExit, match="1"):
        speed.main()
    assert len(pd.read_csv(tmp_path / "speed.csv")) == 1  # a check stores nothing
    sys.argv += ["--tolerance", "1", "--record"]
    speed.main()
    assert len(pd.read_csv(tmp_path / "speed.csv")) == 2


@pytest.mark.parametrize("name", ["SCRDIT", "WBDIT"])
def test_gene_space_systems_of_the_package_train_and_generate(name):
    built = speed.SYSTEMS[name](SETTING)
    before = [p.clone() for p in built.networks[0].parameters()]
    built.training_step()
    assert any((p != q).any() for p, q in zip(before, built.networks[0].parameters(), strict=True))
    built.prepare("generate")
    built.generate()
    n_steps = built.model.generate(1, seed=0, show_progress=False).uns["scgen_diffusion"]["n_steps"]
    assert built.describe("generate") == f"default size, float32, {built.model.default_sampler}, {n_steps} steps"
    assert 0 < built.n_parameters < 10e6
