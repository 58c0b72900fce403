"""No step asks the device for a value: on a GPU the host would wait there until all work is done.

Steps are taken on torch's meta device. Its tensors have shapes and no values, so that every operator whose result the
host would have to look at (``item``, ``nonzero``, indexing by a mask) raises. It is no CPU, so that the paths for other
devices are those that run.
"""

from __future__ import annotations

import pytest
import torch

from scgen_diffusion.module import (
    CONDITIONS,
    AverageUpdate,
    ModalityPanel,
    MultimodalModule,
    SCLDMModule,
    build_architecture,
    build_gene_space_architecture,
    gene_space_module,
)
from scgen_diffusion.nn import Classes, Members, Number
from scgen_diffusion.train import DIFFUSION_RECIPES, RECIPES, AutoencoderPlan, DiffusionPlan, PriorPlan

N_GENES, N_CELLS, DEVICE = 60, 8, "meta"


class UnderWay(AutoencoderPlan):
    progress = 1.0  # without a trainer the plan cannot tell


@pytest.fixture(autouse=True)
def binomial_without_values(monkeypatch):
    """Thinning has no kernel on the meta device; what it returns has the counts' shape."""
    monkeypatch.setattr(torch, "binomial", lambda counts, probability, generator=None: torch.empty_like(counts))


def conditions():
    """Return one key of each kind, and known embeddings of more classes than a batch has cells."""
    return [4, Number(), Members(5, largest=2), Classes(20, torch.randn(20, 3))]


def build_scldm(size="default", **options):
    architecture = build_architecture(size, **options)
    return SCLDMModule(N_GENES, conditions(), architecture=architecture).to(DEVICE)


def build_multimodal():
    sizes = {"negative_binomial": N_GENES - 4, "bernoulli": 4}
    return MultimodalModule([ModalityPanel(n, name) for name, n in sizes.items()], conditions()).to(DEVICE)


def take_step(plan, batch):
    """Compute losses, gradients and their clipped norm, and update weights and averages, as the trainer does."""
    optimizer = torch.optim.AdamW(plan.parameter_groups())
    plan.compute_losses(batch, None, training=True)["loss"].backward()
    plan.to(DEVICE).configure_gradient_clipping(optimizer, 1.0)
    optimizer.step()
    if isinstance(plan, PriorPlan | DiffusionPlan):
        network, averaged = plan.module.network_and_average
        averaged.n_averaged = torch.tensor(1)  # its number is read before the first step
        AverageUpdate(averaged, network, 0.9)()


def cells_of(module):
    condition = torch.empty(N_CELLS, len(module.null_condition), dtype=module.null_condition.dtype, device=DEVICE)
    return {"X": torch.empty(N_CELLS, N_GENES, device=DEVICE), CONDITIONS: condition}


@pytest.mark.parametrize(
    ("size", "build"),
    [
        ("default", build_scldm),
        ("published", lambda: build_scldm("published")),
        ("default", lambda: build_scldm(dispersion="gene-cell", decoder="gene_queries")),
        ("default", lambda: build_scldm(likelihood="gaussian")),
        ("default", build_multimodal),
    ],
    ids=["default", "published", "gene queries", "gaussian", "modalities"],
)
def test_a_step_of_the_autoencoder(size, build):
    module = build()

    take_step(UnderWay(module, RECIPES[size].autoencoder, seed=0), cells_of(module))


@pytest.mark.parametrize("strategy", ["joint", "mutually_exclusive", "additive"])
def test_a_step_of_the_prior(strategy):
    module = build_scldm(condition_strategy=strategy)
    latents = {name: torch.empty(N_CELLS, *module.latent_shape, device=DEVICE) for name in ("mean", "std")}
    rest = {"condition": cells_of(module)[CONDITIONS], "log_total": torch.empty(N_CELLS, device=DEVICE)}

    take_step(PriorPlan(module, RECIPES["default"].prior, seed=0), latents | rest)


@pytest.mark.parametrize("recipe", ["molecules", "profiles", "published"])
@pytest.mark.parametrize("model", ["SCRDIT", "WBDIT"])
def test_a_step_in_gene_space(model, recipe):
    values = "counts" if recipe == "molecules" else "log1p"
    architecture = build_gene_space_architecture(model, "default", values=values, n_genes=N_GENES)
    if recipe == "published":
        architecture = build_gene_space_architecture(model, recipe, width=16)
    module = gene_space_module(architecture)(N_GENES, conditions(), architecture=architecture).to(DEVICE)
    options = DIFFUSION_RECIPES[model].get(recipe, DIFFUSION_RECIPES[model]["transformer"])

    take_step(DiffusionPlan(module, options, seed=0), cells_of(module))


def test_the_check_sees_a_step_that_waits(monkeypatch):
    """Collecting the expressed genes needs their number."""
    module = build_scldm()
    monkeypatch.setattr(module.encoder.network.attention, "mask_padding", False)

    with pytest.raises((RuntimeError, NotImplementedError)):
        take_step(UnderWay(module, RECIPES["default"].autoencoder, seed=0), cells_of(module))
