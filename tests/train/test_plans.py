"""Plans train the right parameters, with random numbers that follow from seed and epoch."""

import lightning.pytorch as pl
import pytest
import torch
from builders import TINY_GENE_SPACE
from torch import nn
from torch.optim.swa_utils import AveragedModel

from scgen_diffusion.module import CONDITIONS, ProfileArchitecture, ProfileModule, SCLDMArchitecture, SCLDMModule
from scgen_diffusion.nn import Classes
from scgen_diffusion.train import (
    AutoencoderPlan,
    AutoencoderRecipe,
    DiffusionPlan,
    DiffusionRecipe,
    PriorPlan,
    PriorRecipe,
    StagePlan,
)
from scgen_diffusion.train import _plans as plans


@pytest.fixture
def module(tiny):
    return SCLDMModule(9, [Classes(3)], architecture=SCLDMArchitecture(**tiny))


def attached(plan):
    """Attach a plan to a trainer, which it asks for its length."""
    plan.trainer = pl.Trainer(max_epochs=1, logger=False, accelerator="cpu", enable_checkpointing=False)
    return plan


def seeded_generator():
    return torch.Generator().manual_seed(0)


def a_batch(n_cells=4, n_genes=9):
    return {"X": torch.poisson(torch.full((n_cells, n_genes), 3.0)) + 1, CONDITIONS: torch.zeros(n_cells, 1)}


def test_every_trained_parameter_of_the_prior_has_a_gradient_without_counts(tiny):
    """Otherwise several processes refuse to train."""
    module = SCLDMModule(9, [Classes(3)], architecture=SCLDMArchitecture(**tiny, likelihood="gaussian"))
    plan, mean = attached(PriorPlan(module, PriorRecipe(), seed=0)), torch.randn(4, *module.latent_shape)
    batch = {"mean": mean, "std": torch.ones_like(mean), "condition": torch.zeros(4, 1)}

    plan.compute_losses(batch, seeded_generator(), training=True)["loss"].backward()

    assert all(weights.grad is not None for group in plan.trained_groups for weights in group["params"])


AUTOENCODER = {"encoder", "decoder", "likelihood", "condition_effects"}


@pytest.mark.parametrize(
    ("plan", "recipe", "input_values", "expected"),
    [
        (AutoencoderPlan, AutoencoderRecipe, None, AUTOENCODER),
        (DiffusionPlan, DiffusionRecipe, "counts", {"network", "library_size"}),
        (DiffusionPlan, DiffusionRecipe, "log1p", {"network"}),
    ],
)
def test_a_stage_trains_all_of_its_parts_and_nothing_else(module, plan, recipe, input_values, expected):
    if input_values:
        architecture = ProfileArchitecture(**TINY_GENE_SPACE)
        module = ProfileModule(9, [Classes(3)], input_values=input_values, architecture=architecture)
    plan = attached(plan(module, recipe(), seed=0))
    parameters = [p for group in plan.trained_groups for p in group["params"]]
    before = {name for name, p in module.named_parameters() if p.requires_grad}

    assert len(parameters) == len({id(p) for p in parameters})  # none is in two groups
    plan.setup("fit")
    for name, p in module.named_parameters():
        is_trained = any(p is other for other in parameters)
        assert is_trained == p.requires_grad == (name.split(".")[0] in expected), name
    plan.teardown("fit")
    assert {name for name, p in module.named_parameters() if p.requires_grad} == before


def test_the_prior_learns_from_draws_of_the_posteriors(module, monkeypatch):
    seen = []
    monkeypatch.setattr(plans, "diffusion_loss", lambda *given, **_: seen.append(given[-1]) or torch.zeros(500))
    mean, none = torch.full((500, *module.latent_shape), 7.0), torch.zeros(500, 1)
    batch = {"mean": mean, "std": torch.full_like(mean, 2.0), "condition": none, "log_total": none[:, 0]}

    PriorPlan(module, PriorRecipe(), seed=0).compute_losses(batch, seeded_generator(), training=True)

    assert [seen[0].mean().item(), seen[0].std().item()] == pytest.approx([7, 2], abs=0.2)


@pytest.mark.parametrize("strategy", ["joint", "mutually_exclusive"])
def test_effects_learn_with_all_keys_of_a_cell_or_none_because_they_add_up(tiny, strategy):
    tiny = {**tiny, "condition_strategy": strategy}
    module, shown = SCLDMModule(9, [Classes(3), Classes(2)], architecture=SCLDMArchitecture(**tiny)), []
    module.condition_effects.register_forward_hook(lambda _, given, __: shown.append(given[0]))
    plan = attached(AutoencoderPlan(module, AutoencoderRecipe(drop_probability=0.5), seed=0))
    batch = {**a_batch(64), CONDITIONS: torch.ones(64, 2).long()}

    plan.compute_losses(batch, seeded_generator(), training=True)

    rows = {tuple(row) for row in torch.cat(shown).tolist()}
    assert rows == {(1, 1), tuple(module.null_condition.tolist())}


def test_validation_sees_whole_cells_and_the_same_random_numbers_each_time(module, monkeypatch):
    logged, batch = [], a_batch()
    monkeypatch.setattr(StagePlan, "_add", lambda self, subset, losses, batch: logged.append(losses["loss"].item()))
    thinned, whole = (
        attached(AutoencoderPlan(module, AutoencoderRecipe(min_kept_fraction=share), seed=0)) for share in (0.1, 1.0)
    )

    for plan, number in ((thinned, 0), (thinned, 0), (thinned, 1), (whole, 0)):
        plan.validation_step(batch, number)

    assert logged[0] == logged[1] == logged[3] != logged[2]


def test_the_prior_is_validated_with_the_averaged_weights_and_all_conditions(module):
    plan, mean = PriorPlan(module, PriorRecipe(drop_probability=1.0), seed=0), torch.randn(4, *module.latent_shape)
    for parameter in module.averaged_prior.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def loss(condition):
        batch = {"mean": mean, "std": torch.ones_like(mean), "log_total": torch.zeros(4)}
        batch["condition"] = torch.full((4, 1), condition)
        return plan.compute_losses(batch, seeded_generator(), training=False)["velocity_loss"].item()

    before = loss(0.0)
    for parameter in module.prior.parameters():
        torch.nn.init.normal_(parameter)
    assert loss(0.0) == before != loss(1.0)


def test_conditions_are_dropped_in_training_only(monkeypatch):
    module, seen = ProfileModule(9, [Classes(3)], architecture=ProfileArchitecture(**TINY_GENE_SPACE)), []

    def note(self, data, noise, t, condition, **_):
        seen.append(condition)
        return {"error": data.sum(1), "condition": condition}

    monkeypatch.setattr(ProfileModule, "generative", note)
    plan = DiffusionPlan(module, DiffusionRecipe(drop_probability=0.5), seed=0)
    batch = {"X": torch.ones(200, 9), CONDITIONS: torch.ones(200, 1)}

    for training in (True, False):
        plan.compute_losses(batch, seeded_generator(), training=training)

    assert set(seen[0].flatten().tolist()) == {1, 3}  # 3 means none of the three classes
    assert (seen[0] == 3).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert (seen[1] == 1).all()


class TablePlan(StagePlan):
    """Train three parameters, of which two may."""

    name = "tables"

    def parameter_groups(self):
        module = self.module
        return [{"params": [module.table, module.whole, module.other], "lr": 0.1}]

    def compute_losses(self, batch, generator, *, training):
        raise NotImplementedError


def test_other_rows_and_parameters_stay_under_weight_decay():
    torch.manual_seed(0)
    module = nn.Module()
    module.table, module.whole, module.other = (nn.Parameter(torch.randn(size)) for size in ((4, 3), (2,), (2,)))
    plan = attached(TablePlan(module, PriorRecipe(weight_decay=0.5), seed=0))
    plan.trained_rows = {module.table: torch.tensor([[False], [True], [False], [False]]), module.whole: None}
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    plan.setup("fit")
    assert [(g["lr"], g.get("weight_decay")) for g in plan.trained_groups] == [(0.1, None), (0.1, 0.0)]
    optimizer = torch.optim.AdamW(plan.trained_groups, weight_decay=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        sum((parameter - 3).square().sum() for parameter in module.parameters()).backward()
        optimizer.step()
    plan.teardown("fit")

    assert torch.equal(module.table[[0, 2, 3]], before["table"][[0, 2, 3]])
    assert torch.equal(module.other, before["other"])
    assert (module.table[1] != before["table"][1]).all()
    assert (module.whole != before["whole"]).all()
    module.table.square().sum().backward()
    assert (module.table.grad[0] != 0).all()
    assert module.other.requires_grad


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_the_average_follows_the_formula(decay):
    network = torch.nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(network)
    update = plans.AverageUpdate(averaged, network, decay)
    expected = None
    for n, value in enumerate([4.0, -2.0, 7.0, 1.0, 0.5]):
        with torch.no_grad():
            network.weight.fill_(value)
        update()
        share = min(decay, (1 + n) / (10 + n))
        expected = value if n == 0 else share * expected + (1 - share) * value  # the first update copies

        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-6)  # single precision
