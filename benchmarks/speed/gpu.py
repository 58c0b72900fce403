"""All figures of a GPU in ten minutes: goals, ways of taking steps, equivalence with the CPU, profiles.

    python -m benchmarks.speed.gpu                         # needs CUDA; results/speed_gpu.csv, results/speed_gpu.md
    python -m benchmarks.speed.gpu --device cpu --tiny     # a small test of the script

The package does not have to be installed: ``PYTHONPATH=src`` is enough. Failures are recorded with their error, and the
rest continues. Goals are those for an H200: 17 002 genes, 6 147 expressed, batches of 128.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from benchmarks.speed.measure import SYSTEMS, device_rate, measure_system, quieten
from benchmarks.speed.meters import profile, release_memory
from benchmarks.speed.systems import N_CLASSES, Setting
from benchmarks.tables import (
    describe_machine,
    describe_processor,
    describe_versions,
    markdown_table,
    read_table,
    store_rows,
    today,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

logger = logging.getLogger("benchmarks.gpu")

FULL = Setting(n_genes=17_002, n_expressed=6_147, batch_size=128, device="cuda", n_cells=8_192)
TINY = Setting(
    n_genes=60, n_expressed=20, batch_size=8, device="cpu", n_cells=64, n_steps=2, architecture={"width": 32}
)
MINUTES = 9.0  # after this time, nothing new is started


@dataclass(frozen=True)
class Way:
    """A way of computing: precision, compiled networks, and whether the GPU replays recorded steps of training.

    With ``"tf32"``, products of float32 matrices are rounded to 10 bits, as torch does on request.
    """

    precision: str = "float32"
    compile: bool = False
    replay: bool = True

    def suits(self, goal: Goal) -> bool:
        """Return whether to measure a goal so: published sizes compute in bfloat16, and other ways differ in steps."""
        if goal.system.endswith("published-size"):
            return self == Way("bf16")
        return self == Way() or (goal.stage.endswith("step") and goal.times == 1)

    def __str__(self) -> str:
        """Describe the way in words."""
        is_replayed = self.replay and self.precision != "bf16"
        parts = [self.precision, "compiled" if self.compile else "", "replayed" if is_replayed else ""]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Goal:
    """What a stage should reach."""

    system: str
    stage: str
    cells_per_second: float | None = None
    peak_gib: float | None = None
    times: int = 1  # the batch size of the setting

    def compared_with(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the columns of a measurement's row that say what it should reach, and whether it does."""
        columns = {"goal": self.cells_per_second, "goal_gib": self.peak_gib, "met": None}
        if self.cells_per_second is None:
            return columns
        fits = self.peak_gib is None or row["peak_gib"] <= self.peak_gib
        return columns | {"met": bool(row["cells_per_second"] >= self.cells_per_second and fits)}


GOALS = (
    Goal("package", "autoencoder_step", 50_000, 3.0),
    Goal("package", "prior_step", 200_000),
    Goal("calls-SCLDM", "generate_anndata", 10_000),
    Goal("SCRDIT", "training_step", 40_000),
    Goal("SCRDIT", "generate", 5_000),
    Goal("WBDIT", "training_step", 40_000),
    Goal("WBDIT", "generate", 5_000),
    Goal("package", "autoencoder_step", times=8),
    Goal("package", "prior_step", times=8),
    Goal("SCRDIT", "training_step", times=8),
    Goal("WBDIT", "training_step", times=8),
    Goal("SCRDIT-published-size", "training_step"),
    Goal("WBDIT-published-size", "training_step"),
    Goal("calls-SCLDM", "autoencoder_epochs"),
    Goal("calls-SCLDM", "prior_epochs"),
    Goal("calls-SCLDM", "latent_representation"),
)
#: Defaults are first, and what takes minutes to compile is last, in case time runs out.
WAYS = (Way(), Way("tf32"), Way(replay=False), Way("bf16"), Way(compile=True))
KEYS = ("system", "stage", "batch", "precision", "compile", "replay", "processor")
PROFILED = {"package": ("autoencoder_step", "prior_step", "generate"), "SCRDIT": ("training_step",)}


# --- equivalence with the CPU -------------------------------------------------------------------------------

#: Largest relative difference that passes. Sums over thousands of genes in another order, and twenty sampling steps,
#: turn float32's 1e-7 into this; bfloat16 has three digits.
TOLERANCES = {"float32": 1e-3, "bf16": 5e-2}
N_CELLS = 16
SHAKE = 0.02


@dataclass(frozen=True)
class Comparison:
    """A quantity computed on both devices."""

    name: str
    precision: str
    difference: float

    @property
    def passes(self) -> bool:
        """Whether both values agree within the precision."""
        return self.difference <= TOLERANCES[self.precision]


def compare_devices(setting: Setting, precision: str = "float32") -> list[Comparison]:
    """Compute losses and states of all models in float32 on the CPU, and in ``precision`` on the setting's device."""
    small = replace(setting, batch_size=N_CELLS, device="cpu", precision="float32", compile=False)
    found = []
    for name in ("package", "SCRDIT", "WBDIT"):
        system = SYSTEMS[name](small)
        module = shaken(system.module.eval())
        quantities = scldm_quantities(system) if name == "package" else gene_space_quantities(system)
        for quantity, compute in quantities.items():
            expected = on_device(module, compute, "cpu", "float32")
            got = on_device(module, compute, setting.device, precision)
            found.append(Comparison(f"{name} {quantity}", precision, relative_difference(expected, got)))
    return found


@torch.no_grad()
def shaken(module: nn.Module) -> nn.Module:
    """Perturb all weights slightly: layers that start at zero would hide everything before them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(SHAKE * torch.randn(parameter.shape, generator=generator))
    return module


@torch.no_grad()
def on_device(module: nn.Module, compute: Callable[..., Tensor], device: str, precision: str) -> Tensor:
    """Compute with a copy of the module on the device."""
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        return compute(copy.deepcopy(module).to(device), device).float().cpu()


def relative_difference(expected: Tensor, got: Tensor) -> float:
    """Return the norm of the difference, relative to that of the expected value."""
    return float((expected - got).norm() / expected.norm())


def scldm_quantities(system: Any) -> dict[str, Callable[[Any, str], Tensor]]:
    """Return the quantities of SCLDM to compare, each a function of the module and its device."""
    from scvi import REGISTRY_KEYS

    from scgen_diffusion.diffusion import FLOW_SAMPLERS, TARGETS, diffusion_loss
    from scgen_diffusion.model import SCLDM

    cells, shape = system.cells, (N_CELLS, *system.module.latent_shape)
    noise, t = _normal(*shape), _normal(N_CELLS).sigmoid()

    def autoencoder_loss(module: Any, device: str) -> Tensor:
        inputs = {"noise": noise.to(device), "keep": None, "generator": None}
        _, _, losses = module({REGISTRY_KEYS.X_KEY: cells.counts.to(device)}, inference_kwargs=inputs)
        return losses.loss.reshape(1)

    def prior_loss(module: Any, device: str) -> Tensor:
        data, z, condition = (v.to(device) for v in (_normal(*shape, seed=1), noise, cells.condition))
        return diffusion_loss(
            module.prior, module.path, TARGETS["velocity"], data, noise=z, t=t.to(device), condition=condition
        )

    def latents(module: Any, device: str) -> Tensor:
        denoiser = module.denoiser(cells.condition.to(device), _guidance(module))
        return module.unstandardise(FLOW_SAMPLERS[SCLDM.default_sampler](denoiser, noise.to(device)))

    return {"autoencoder loss": autoencoder_loss, "prior loss": prior_loss, "sampled latents": latents}


def gene_space_quantities(system: Any) -> dict[str, Callable[[Any, str], Tensor]]:
    """Return the quantities of a gene-space model to compare."""
    from scvi import REGISTRY_KEYS

    counts, condition = system.cells.counts, system.condition
    drawn = system.module.draw_for_training(counts, torch.Generator().manual_seed(0), training=False)

    def loss(module: Any, device: str) -> Tensor:
        inputs = {name: values.to(device) for name, values in (drawn | {"condition": condition}).items()}
        inputs["averaged"] = False
        _, _, losses = module({REGISTRY_KEYS.X_KEY: counts.to(device)}, generative_kwargs=inputs)
        return losses.loss.reshape(1)

    def prediction(module: Any, device: str) -> Tensor:
        denoiser = module.denoiser(condition.to(device), _guidance(module))
        return denoiser.predict(drawn["x_t"].to(device), drawn["t"].to(device))

    return {"loss": loss, "prediction": prediction}


def _guidance(module: Any) -> Any:
    from scgen_diffusion.diffusion import ResolvedGuidance

    return ResolvedGuidance.of(module.strategy, [1.0] * len(N_CLASSES))


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- goals ----------------------------------------------------------------------------------------------------


def measure_goals(setting: Setting, arguments: argparse.Namespace, ends: float) -> Iterator[list[dict[str, Any]]]:
    """Measure one system in one way after the other, and compare figures with goals."""
    for way in WAYS:
        if way.compile and not arguments.compile:
            continue
        wanted = [goal for goal in GOALS if way.suits(goal)]
        for system, times in dict.fromkeys((goal.system, goal.times) for goal in wanted):
            if arguments.systems and system not in arguments.systems:
                continue
            if time.monotonic() > ends:
                logger.info("No time left for %s, %s", system, way)
                continue
            goals = {goal.stage: goal for goal in wanted if (goal.system, goal.times) == (system, times)}
            own = replace(setting, **asdict(way), batch_size=times * setting.batch_size)
            rows = _measure(system, list(goals), own, arguments.seconds)
            for row in rows:
                row |= {"replay": way.replay, **goals[row["stage"]].compared_with(row)}
            yield rows


def _measure(system: str, stages: Sequence[str], setting: Setting, seconds: float) -> list[dict[str, Any]]:
    def failed(stage: str, error: Exception) -> dict[str, Any]:
        logger.info("%s", "".join(traceback.format_exception(error)))
        how = f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]
        row = {"system": system, "stage": stage, "precision": setting.precision, "compile": setting.compile, "how": how}
        row |= {"batch": setting.batch_size, "processor": describe_processor(setting.device)}
        return row | {"cells_per_second": float("nan"), "peak_gib": float("nan")}

    try:  # one failure must not cost the other figures of a borrowed machine
        rows = measure_system(system, setting, stages, seconds=seconds, on_failure=failed)
    except Exception as error:  # noqa: BLE001  as above: the system could not be built
        rows = [failed(stage, error) for stage in stages]
    release_memory()
    return rows


def profiles(setting: Setting, systems: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield the operators that take most time, not compiled and not replayed, so that they have names."""
    setting = replace(setting, replay=False)
    for name, stages in PROFILED.items():
        if systems and name not in systems:
            continue
        system = SYSTEMS[name](setting)
        for stage in stages:
            system.prepare(stage)
            step = getattr(system, stage)
            step()
            yield f"{stage}, {name}", str(profile(step, device=setting.device))


def report(stored: pd.DataFrame, comparisons: Sequence[Comparison], profiled: dict[str, str], setting: Setting) -> str:
    """Write all results of this processor as markdown."""
    rows = stored[stored["processor"] == describe_processor(setting.device)]
    rates = {precision: device_rate(setting.device, precision) for precision in TOLERANCES}
    flops = ", ".join(f"{precision} {rate / 1e12:,.1f}" for precision, rate in rates.items())
    goals = [
        [
            f"{row.stage}, {row.system}, {row.batch:,.0f} cells, {Way(row.precision, row.compile, row.replay)}",
            f"{row.cells_per_second:,.0f}",
            "" if pd.isna(row.goal) else f"{row.goal:,.0f}",
            f"{row.peak_gib:.2f}",
            "" if pd.isna(row.goal_gib) else f"{row.goal_gib:g}",
            "" if pd.isna(row.met) else "yes" if row.met else "**no**",
            row.how,
        ]
        for row in rows.itertuples()
    ]
    compared = [
        [f"{each.name}, {each.precision}", f"{each.difference:.1e}", "yes" if each.passes else "**no**"]
        for each in comparisons
    ]
    parts = [
        f"{describe_machine(setting.device)}; {describe_versions('torch', 'scvi-tools', 'anndata', 'scgen-diffusion')}; "
        f"{today()}. {setting.n_genes:,} genes, {setting.n_expressed:,} expressed. "
        f"Matrix product, TFLOP/s: {flops}. Written by `python -m benchmarks.speed.gpu`; "
        "`speed_gpu.csv` has the version of each row.",
        markdown_table(["", "cells/s", "goal", "GiB", "goal", "met", "how"], goals),
        "## Equivalence with the CPU",
        markdown_table(["", "relative difference", "within tolerance"], compared),
        "## Where the time goes (float32, not compiled)",
        *(f"{name}\n\n```text\n{table}\n```" for name, table in profiled.items()),
    ]
    return "\n\n".join(parts) + "\n"


def attempt(what: str, work: Callable[[], Any], otherwise: Any) -> Any:
    """Return the result of ``work``, or, if it fails, log the error and return ``otherwise``."""
    try:
        return work()
    except Exception:  # noqa: BLE001  as above
        logger.info("%s failed:\n%s", what, traceback.format_exc())
        return otherwise


def run(arguments: argparse.Namespace) -> bool:
    """Measure, compare, profile and write; return whether the device and the CPU compute the same."""
    setting = replace(TINY if arguments.tiny else FULL, device=arguments.device)
    ends = time.monotonic() + 60 * arguments.minutes
    comparisons: list[Comparison] = []
    for precision in ("float32", "bf16"):
        small = replace(setting, n_genes=min(setting.n_genes, 2_000), n_expressed=min(setting.n_expressed, 720))
        comparisons += attempt("The comparison", lambda s=small, p=precision: compare_devices(s, p), [])
    profiled = attempt("The profile", lambda: dict(profiles(setting, arguments.systems)), {})
    stored = arguments.results / "speed_gpu.csv"
    for measured in measure_goals(setting, arguments, ends):
        store_rows(stored, pd.DataFrame(measured), KEYS)
        # now, as the machine may be gone soon
        write_text(arguments.results / "speed_gpu.md", report(read_table(stored), comparisons, profiled, setting))
    logger.info("%s", report(read_table(stored), comparisons, profiled, setting))
    return bool(comparisons) and all(each.passes for each in comparisons)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    quieten()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--systems", nargs="+", help="what to measure; default: everything")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test the script")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="measure compiled steps too"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="approximate duration of each measurement")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time after which nothing new is started")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    if not run(parser.parse_args()):
        parser.exit(1, "The device and the CPU do not compute the same; see the table.\n")


if __name__ == "__main__":
    main()
