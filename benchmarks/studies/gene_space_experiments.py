"""The experiments of the gene-space study: which models are trained, and which cells are drawn from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from scgen_diffusion.module import build_gene_space_architecture
from scgen_diffusion.train import DIFFUSION_RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable

ZERO_VALUES = (None, -5.0, -10.0, -20.0)
GENES_OF_ZERO_VALUES = (1_000, 2_000, 3_000)
REGRESSION = {"head": "regression", "target": "v", "scaling": "global"}
PUBLISHED_SCALING = {"head": "regression", "target": "noise", "scaling": "none"}
PATHS = ("vp_linear", "vp_cosine", "flow_matching")
REGRESSION_TARGETS = ("noise", "data", "v", "velocity")
SAMPLERS: dict[str, dict[str, Any]] = {
    "DDPM": {"sampler": "ddpm"},
    "DDIM, eta 0": {"sampler": "ddim"},
    "DDIM, eta 1": {"sampler": "ddim", "eta": 1.0},
    "DPM-Solver++": {"sampler": "dpm_solver"},
    "Heun": {"sampler": "heun"},
}
EVALUATIONS_PER_STEP = {"heun": 2}
LARGE_TYPE = 100  # training cells that a type needs for a model of its own

Sharing = Literal["in proportion to cells", "equally"]


@dataclass(frozen=True)
class Training:
    """What decides a trained model, besides its cells and the seed.

    Parameters
    ----------
    architecture
        Changes of SCRDIT's default architecture; the gene order may be ``"random"`` too.
    n_genes
        Most variable genes kept.
    steps, minutes
        Length of the training: one of the two.
    shared
        None for one conditional model; else every large type has an unconditional model of its own, and this is how the
        steps are shared out among them.
    """

    architecture: dict[str, Any] = field(default_factory=dict)
    n_genes: int = 2_000
    steps: int | None = None
    minutes: float | None = None
    shared: Sharing | None = None


@dataclass(frozen=True)
class Drawing:
    """Which cells are drawn, and how.

    Parameters
    ----------
    sampler, eta, n_steps
        The sampler; None for the model's default.
    cells
        How many random held-out cells are imitated; None for all.
    large_types
        Whether only cells of large types are imitated.
    """

    sampler: str | None = None
    eta: float | None = None
    n_steps: int | None = None
    cells: int | None = None
    large_types: bool = False


@dataclass(frozen=True)
class Configuration:
    """One row of an experiment."""

    name: str
    training: Training
    drawing: Drawing = Drawing()

    def describe(self) -> str:
        """Return all that decides the result, as JSON: what is set, and a digest of the package's defaults."""
        return json.dumps({**_set(self.training), **_set(self.drawing), "defaults": defaults_digest()}, sort_keys=True)


@dataclass(frozen=True)
class Options:
    """Sizes that the command line decides."""

    steps: int = 1_500
    minutes: float = 5.0
    n_genes: int = 2_000
    backbones: tuple[str, ...] = ("dit", "white_box", "unet")
    backbone_genes: int = 2_000
    backbone_steps: int = 1_500
    unet_width: int = 16
    sampler_cells: int = 512
    evaluations: tuple[int, ...] = (1000, 500, 200, 100, 50, 20, 10)

    def training(self, **architecture: Any) -> Training:
        """Return the baseline's training under these changes of the architecture."""
        return Training(changes(architecture), self.n_genes, self.steps)


def changes(architecture: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is as in the default architecture anyway, so that equal trainings are recognised."""
    default = build_gene_space_architecture("SCRDIT", "default")
    return {name: value for name, value in architecture.items() if getattr(default, name) != value}


@cache
def defaults_digest() -> str:
    """Tell one state of the package's default architecture and recipe from another."""
    defaults = build_gene_space_architecture("SCRDIT", "default"), DIFFUSION_RECIPES["SCRDIT"]["default"]
    return hashlib.sha256(repr(defaults).encode()).hexdigest()[:8]


def zero_value(options: Options) -> list[Configuration]:
    """List the values that stand for zero, and numbers of genes, in the default architecture."""
    return _zero_values(options, {})


def zero_value_regression(options: Options) -> list[Configuration]:
    """List the same where the network predicts ``v`` itself, and values are scaled by one number."""
    return _zero_values(options, REGRESSION)


def zero_value_published(options: Options) -> list[Configuration]:
    """List the same under the published scaling and target."""
    return _zero_values(options, PUBLISHED_SCALING)


def _zero_values(options: Options, architecture: dict[str, Any]) -> list[Configuration]:
    return [
        Configuration(
            f"{'zeros kept' if value is None else f'zeros become {value:g}'}, {n_genes} genes",
            Training(changes(architecture | {"zero_value": value}), n_genes, options.steps),
        )
        for n_genes in GENES_OF_ZERO_VALUES
        for value in ZERO_VALUES
    ]


def backbones(options: Options) -> list[Configuration]:
    """List the networks, each under equal steps and under equal time."""
    lengths = {"equal steps": {"steps": options.backbone_steps}, "equal time": {"minutes": options.minutes}}
    return [
        Configuration(
            f"{_backbone_name(name, options)}, {length}",
            Training(_backbone(name, options), options.backbone_genes, **budget),
        )
        for length, budget in lengths.items()
        for name in options.backbones
    ]


def _backbone(name: str, options: Options) -> dict[str, Any]:
    sizes = {"unet_width": options.unet_width} if name == "unet" else {}
    return changes({"backbone": name} | sizes)


def _backbone_name(name: str, options: Options) -> str:
    return {"dit": "DiT", "white_box": "white-box DiT"}.get(name, f"U-Net (width {options.unet_width})")


def samplers(options: Options) -> list[Configuration]:
    """List the samplers at numbers of network evaluations."""
    return [
        Configuration(
            f"{name}, {evaluations} evaluations",
            options.training(),
            Drawing(
                **way, n_steps=evaluations // EVALUATIONS_PER_STEP.get(name.lower(), 1), cells=options.sampler_cells
            ),
        )
        for name, way in SAMPLERS.items()
        for evaluations in options.evaluations
    ]


def one_model(options: Options) -> list[Configuration]:
    """List one conditional model, and one model per type with the same number of steps in all."""
    drawing = Drawing(large_types=True)
    sharings: tuple[Sharing, ...] = ("in proportion to cells", "equally")
    return [
        Configuration("one conditional model", options.training(), drawing),
        *(
            Configuration(
                f"one model per type, steps shared {sharing}",
                Training({}, options.n_genes, options.steps, shared=sharing),
                drawing,
            )
            for sharing in sharings
        ),
    ]


def gene_order(options: Options) -> list[Configuration]:
    """List the orders of genes."""
    return [Configuration(order, options.training(gene_order=order)) for order in ("given", "correlation", "random")]


def targets(options: Options) -> list[Configuration]:
    """List the paths, and what the network predicts: the distribution of each value, or a number."""
    heads = {"spike and slab": {"head": "spike_and_slab", "target": "data"}}
    heads |= {target: {"head": "regression", "target": target} for target in REGRESSION_TARGETS}
    return [
        Configuration(f"{path}, {name}", options.training(path=path, **head))
        for name, head in heads.items()
        for path in PATHS
        if is_offered({"path": path, **head})
    ]


def is_offered(architecture: dict[str, Any]) -> bool:
    """Tell whether the package has such an architecture: not every target belongs to every path."""
    try:
        build_gene_space_architecture("SCRDIT", "default", **architecture)
    except ValueError:
        return False
    return True


EXPERIMENTS: dict[str, Callable[[Options], list[Configuration]]] = {
    "targets": targets,
    "gene_order": gene_order,
    "one_model": one_model,
    "backbones": backbones,
    "samplers": samplers,
    "zero_value": zero_value,
    "zero_value_regression": zero_value_regression,
    "zero_value_published": zero_value_published,
}


def _set(choices: Training | Drawing) -> dict[str, Any]:
    return {name: value for name, value in asdict(choices).items() if value not in (None, False, {})}
