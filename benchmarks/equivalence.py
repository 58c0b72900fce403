"""Does a device compute what the CPU computes? Losses and sampled states of the same weights, cells and noise, on both."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from system import N_CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from system import Setting
    from torch import Tensor, nn

#: Largest relative difference that passes. Sums over thousands of genes in another order, and a sampler of twenty steps, carry float32's 1e-7 up to here;
#: bfloat16 has three digits.
TOLERANCES = {"float32": 1e-3, "bf16": 5e-2}
N_CELLS = 16
SHAKE = 0.02


@dataclass(frozen=True)
class Comparison:
    """One quantity on both devices."""

    name: str
    precision: str
    difference: float

    @property
    def passes(self) -> bool:
        """Whether both are the same as far as the precision goes."""
        return self.difference <= TOLERANCES[self.precision]


def compare_devices(setting: Setting, precision: str = "float32") -> list[Comparison]:
    """Compute losses and states of all three models in float32 on the CPU, and in ``precision`` on the setting's device."""
    from dataclasses import replace

    from systems import SYSTEMS

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
    """Move all weights a little: what starts at zero would hide everything before it."""
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
    """Return the norm of the difference over that of what is expected."""
    return float((expected - got).norm() / expected.norm())


def scldm_quantities(system: Any) -> dict[str, Callable[[Any, str], Tensor]]:
    """Name what is compared of SCLDM: each a function of the module and its device."""
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
        return module.sample_latents(
            noise.to(device),
            cells.condition.to(device),
            guidance=_guidance(module),
            sampler=FLOW_SAMPLERS[SCLDM.default_sampler],
        )

    return {"autoencoder loss": autoencoder_loss, "prior loss": prior_loss, "sampled latents": latents}


def gene_space_quantities(system: Any) -> dict[str, Callable[[Any, str], Tensor]]:
    """Name what is compared of a gene-space model."""
    from scvi import REGISTRY_KEYS

    from scgen_diffusion.diffusion import samplers_for

    counts, condition = system.cells.counts, system.condition
    noise, t = _normal(*counts.shape), _normal(N_CELLS).sigmoid()

    def loss(module: Any, device: str) -> Tensor:
        inputs = {"noise": noise.to(device), "t": t.to(device), "condition": condition.to(device), "averaged": False}
        _, _, losses = module({REGISTRY_KEYS.X_KEY: counts.to(device)}, generative_kwargs=inputs)
        return losses.loss.reshape(1)

    def profiles(module: Any, device: str) -> Tensor:
        sampler = samplers_for(module.path)[system.model.default_sampler]
        return sampler(module.denoiser(condition.to(device), _guidance(module)), noise.to(device))

    return {"loss": loss, "sampled profiles": profiles}


def _guidance(module: Any) -> Any:
    from scgen_diffusion.diffusion import Guidance

    return Guidance.of(module.strategy, [1.0] * len(N_CLASSES))


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
