"""Compiled networks: one whole graph each, for full batches of training, that computes what the network computes.

A backend that runs the graph as it is suffices to count graphs and to compare; making kernels of them takes minutes.
"""

import pytest
import torch
from torch._dynamo.utils import counters

from scgen_diffusion.module import (
    CONDITIONS,
    MoleculeArchitecture,
    MoleculeModule,
    ProfileArchitecture,
    ProfileModule,
    SCLDMArchitecture,
    SCLDMModule,
)
from scgen_diffusion.nn import Classes
from scgen_diffusion.train import DIFFUSION_RECIPES, RECIPES, AutoencoderPlan, DiffusionPlan, PriorPlan
from scgen_diffusion.train._plans import compile_for_training

N_GENES, N_CLASSES = 40, 3
TRAINING, VALIDATION = (8, 5), (3,)  # cells of the batches of an epoch; the last one is smaller


class UnderWay(AutoencoderPlan):
    progress = 1.0  # without a trainer the plan cannot tell


class OnGpu(UnderWay):
    device = torch.device("cuda")  # which decides what is compiled


def cells(n, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.rand(n, N_GENES, generator=generator) * 2, generator=generator)
    return {"X": counts, CONDITIONS: torch.randint(N_CLASSES, (n, 1), generator=generator)}


def latents(n, seed, shape):
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(2, n, *shape, generator=generator)
    return {"mean": mean, "std": std.abs(), "condition": cells(n, seed)[CONDITIONS], "log_total": mean.flatten(1)[:, 0]}


def autoencoder(plan):
    torch.manual_seed(0)
    module = SCLDMModule(N_GENES, [Classes(N_CLASSES)], architecture=SCLDMArchitecture(n_layers=1))
    return plan(module, RECIPES["default"]["autoencoder"], seed=0), cells


def prior():
    torch.manual_seed(0)
    module = SCLDMModule(N_GENES, [Classes(N_CLASSES)], architecture=SCLDMArchitecture(prior_n_layers=1))
    return PriorPlan(module, RECIPES["default"]["prior"], seed=0), lambda n, seed: latents(n, seed, module.latent_shape)


def gene_space(name, module, architecture):
    torch.manual_seed(0)
    built = module(N_GENES, [Classes(N_CLASSES)], architecture=architecture(width=16, n_layers=1))
    return DiffusionPlan(built, DIFFUSION_RECIPES[name]["default"], seed=0), cells


#: With the number of graphs. The likelihood has two, as cells and effects of conditions have other parameters.
STAGES = {
    "autoencoder": (lambda: autoencoder(UnderWay), 2),
    "autoencoder on a GPU": (lambda: autoencoder(OnGpu), 4),
    "prior": (prior, 1),
    "SCMDM": (lambda: gene_space("SCMDM", MoleculeModule, MoleculeArchitecture), 1),
    "SCRDIT": (lambda: gene_space("SCRDIT", ProfileModule, ProfileArchitecture), 1),
}


def run_epoch(plan, draw):
    """Return the losses and the sums of absolute gradients of an epoch's batches."""
    found = []
    for seed, n in enumerate((*TRAINING, *VALIDATION)):
        training = seed < len(TRAINING)
        with torch.set_grad_enabled(training):
            loss = plan.compute_losses(draw(n, seed), torch.Generator().manual_seed(seed), training=training)["loss"]
        found.append(loss.detach())
        if training:
            parameters = [p for group in plan.trained_groups for p in group["params"]]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            found += [g.abs().sum() for g in gradients if g is not None]
    return torch.stack(found)


@pytest.mark.parametrize("stage", STAGES)
def test_full_batches_of_training_are_compiled_once_and_compute_the_same(stage):
    build, n_graphs = STAGES[stage]
    plan, draw = build()
    torch._dynamo.reset()
    counters.clear()
    expected = run_epoch(plan, draw)
    for part in plan.compiled_parts:
        compile_for_training(part, backend="eager", fullgraph=True)  # a break of the graph would be an error

    first = run_epoch(plan, draw)
    second = run_epoch(plan, draw)

    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-4)  # sums in another order
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == n_graphs


def test_what_was_compiled_is_as_before_when_training_ends_and_the_module_has_left_the_gpu(monkeypatch):
    plan, _ = autoencoder(OnGpu)
    plan.is_compiled, parts = True, plan.compiled_parts

    plan.on_fit_start()
    assert all("forward" in vars(part) for part in parts)
    monkeypatch.setattr(OnGpu, "device", torch.device("cpu"))
    plan.teardown("fit")
    assert not any("forward" in vars(part) for part in parts)
