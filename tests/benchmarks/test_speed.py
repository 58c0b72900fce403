"""The speed study: which systems stand beside which, and what is extrapolated."""

import itertools
from types import SimpleNamespace

import pandas as pd
import pytest

pytest.importorskip("torchdiffeq")
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


@pytest.mark.parametrize(("seconds_per_step", "n_measured"), [(0.01, 100), (5.0, systems.N_STEPS)])
def test_long_sampling_is_extrapolated_and_says_so(monkeypatch, seconds_per_step, n_measured):
    times = itertools.count(step=seconds_per_step)
    monkeypatch.setattr(systems, "clock", lambda device: next(times))
    extrapolation = systems.Extrapolation(100)
    extrapolation.choose(lambda: None, "cpu")
    assert extrapolation.share == n_measured / 100
    assert ("extrapolated" in extrapolation.describe()) == (n_measured < 100)


def test_extrapolated_speed_is_that_of_the_whole_work():
    whole = SimpleNamespace(share=lambda stage: 0.1, describe=str, n_cells=lambda stage: 128, n_parameters=1)
    measured = SimpleNamespace(cells_per_second=50.0, peak_bytes=0)
    assert speed._row("SCRDIT", "generate", whole, SETTING, measured)["cells_per_second"] == 5.0


@pytest.mark.parametrize("name", ["SCRDIT", "WBDIT"])
def test_gene_space_systems_of_the_package_train_and_generate(name):
    built = speed.SYSTEMS[name](SETTING)
    before = [p.clone() for p in built.networks[0].parameters()]
    built.training_step()
    assert any((p != q).any() for p, q in zip(before, built.networks[0].parameters(), strict=True))
    built.prepare("generate")
    built.generate()
    assert built.describe("generate") == "default size, float32, dpm_solver, 20 steps"
    assert 0 < built.n_parameters < 10e6
