"""Our SCLDM against numbers recorded from the published code, and the reader of its weights.

The folder of recordings is that of this file, or the one named by the environment variable ``PARITY_DIR``. Every size
comes from its ``config.json``: G genes, E width, L latent width, M latent tokens, H and HC heads of self- and
cross-attention, S padded length, B cells, DH heads of the prior.
"""

import json
import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Canary
from safetensors.torch import load_file, save_file

from scgen_diffusion.diffusion import FLOW_SAMPLERS, Guidance, GuidedField
from scgen_diffusion.model import SCLDM

FOLDER = Path(os.environ.get("PARITY_DIR") or Path(__file__).parent)
RECORDING = json.loads((FOLDER / "config.json").read_text())
CONFIG = RECORDING["config"]
KEYS = list(CONFIG["classes"])
VECTORS = load_file(FOLDER / "scldm_vectors.safetensors")


def weights_path(strategy):
    return FOLDER / f"scldm_{strategy}_state_dict.safetensors"


STRATEGIES = [name for name in ("joint", "mutually_exclusive") if weights_path(name).is_file()]
STRATEGY = STRATEGIES[0]  # for all that does not depend on it

# Float32 on another machine, with fused attention: sums in another order. The ends of the flow were recorded with an
# adaptive method of order 5; fifty steps of ours differ by up to 5.3e-5, ten by up to 8e-4.
TOLERANCE, ODE_TOLERANCE, N_ODE_STEPS = 1e-4, 3e-4, 50


def relative_error(found, expected):
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def gene_names():
    return [f"gene {i}" for i in range(CONFIG["G"])]


def class_names():
    """Name classes against the alphabet, so that sorting them anywhere shows."""
    return {key: [f"{key} {n - i}" for i in range(n)] for key, n in CONFIG["classes"].items()}


def read(path, strategy=STRATEGY, **changes):
    arguments = {
        "var_names": gene_names(),
        "categories": class_names(),
        "condition_strategy": strategy,
        "n_heads": CONFIG["H"],
        "n_heads_cross": CONFIG["HC"],
        "prior_n_heads": CONFIG["DH"],
    }
    return SCLDM.from_reference_checkpoint(path, **{**arguments, **changes})


def read_weights(weights, folder, **changes):
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "weights.safetensors")
    return read(folder / "weights.safetensors", **changes)


@pytest.fixture(scope="module")
def modules():
    """Read each recorded strategy once."""
    return {strategy: read(weights_path(strategy), strategy).module for strategy in STRATEGIES}


@pytest.fixture(scope="module")
def module(modules):
    return modules[STRATEGY]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


# --- recorded numbers: the autoencoder --------------------------------------------------------------------------------


def encode(module, genes, values):
    encoder = module.encoder
    return encoder.norm(encoder.network.read_attention(encoder.network.attention(genes, values)))


def test_latents_of_padded_cells_are_the_recorded_ones(module):
    genes, values = VECTORS["genes_subset"], VECTORS["counts_subset"].log1p()
    assert genes.shape == (CONFIG["B"], CONFIG["S"])
    assert relative_error(encode(module, genes, values), VECTORS["z"]) < TOLERANCE


def test_latents_from_dense_counts_at_the_recorded_padded_length_are_the_recorded_ones():
    module = read(weights_path(STRATEGY), padded_length=CONFIG["S"]).module
    assert relative_error(module.inference(VECTORS["counts"])["z"], VECTORS["z"]) < TOLERANCE


def test_latents_from_all_genes_are_the_recorded_ones(module):
    genes = torch.arange(1, CONFIG["G"] + 1).expand(CONFIG["B"], -1)
    z = encode(module, genes, VECTORS["counts"].log1p())
    assert relative_error(z, VECTORS["z_all_genes"]) < TOLERANCE


def test_means_dispersions_and_likelihoods_are_the_recorded_ones(module):
    outputs = module.generative(VECTORS["z"], VECTORS["library_size"])
    assert relative_error(module.likelihood.mean(**outputs), VECTORS["mu"]) < TOLERANCE
    theta = module.likelihood.log_dispersion(outputs["outputs"]).exp()
    assert relative_error(theta.expand_as(VECTORS["theta"]), VECTORS["theta"]) < TOLERANCE
    nll = -module.likelihood(VECTORS["counts"], **outputs)
    assert relative_error(nll, VECTORS["nll_per_cell"]) < TOLERANCE


# --- recorded numbers: the prior --------------------------------------------------------------------------------------


def recorded(kind):
    """List (strategy, what) of all recordings of a kind, such as ("joint", "guided") of "velocity"."""
    return [
        (strategy, name.removeprefix(f"{strategy}.{kind}_"))
        for strategy in STRATEGIES
        for name in sorted(VECTORS)
        if name.startswith(f"{strategy}.{kind}_")
    ]


def recorded_condition(strategy):
    return torch.stack([VECTORS[f"{strategy}.condition.{key}"] for key in KEYS], dim=1)


def field_of(module, strategy, what):
    """Return the recorded field: "unconditional", "conditional", "conditional.<key>" or "guided"."""
    condition, columns = recorded_condition(strategy), module.condition_columns
    if what == "guided":
        scales = [RECORDING["guidance_weight"][key] for key in KEYS]
        return GuidedField(module.prior, condition, columns, Guidance(module.strategy.terms(scales)))
    if what.startswith("conditional."):
        condition = columns.keep(condition, [KEYS.index(what.removeprefix("conditional."))])
    elif what == "unconditional":
        condition = columns.keep(condition, ())
    else:
        assert what == "conditional"
    return lambda x, t: module.prior(x, t.expand(len(x)), condition)


@pytest.mark.parametrize(("strategy", "what"), recorded("velocity"))
def test_velocities_are_the_recorded_ones(modules, strategy, what):
    velocity = field_of(modules[strategy], strategy, what)(VECTORS[f"{strategy}.x"], VECTORS[f"{strategy}.t"])
    assert relative_error(velocity, VECTORS[f"{strategy}.velocity_{what}"]) < TOLERANCE


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("what", ["guided", "unconditional"])
def test_sampled_latents_are_the_recorded_ends_of_the_flow(modules, strategy, what):
    weights, module = RECORDING["guidance_weight"], modules[strategy]
    guidance = Guidance(module.strategy.terms([weights[key] if what == "guided" else 0.0 for key in KEYS]))
    denoiser = module.denoiser(recorded_condition(strategy), guidance)
    ends = FLOW_SAMPLERS["midpoint"](denoiser, VECTORS[f"{strategy}.x"], n_steps=N_ODE_STEPS)
    assert relative_error(module.unstandardise(ends), VECTORS[f"{strategy}.ode_end_{what}"]) < ODE_TOLERANCE


# --- the reader: what it accepts --------------------------------------------------------------------------------------


@pytest.fixture
def weights():
    return load_file(weights_path(STRATEGY))


PARTS = ("encoder", "decoder", "likelihood", "prior", "averaged_prior")


def assert_same_weights(one, other):
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("is_lightning", [True, False], ids=["Lightning checkpoint", "bare state dict"])
def test_a_torch_file_gives_the_same_model_as_safetensors(tmp_path, weights, module, is_lightning):
    content = {"state_dict": weights, "epoch": 3, "global_step": 120, "lr_schedulers": [{"last_epoch": 3}]}
    torch.save(content if is_lightning else weights, tmp_path / "model.ckpt")
    found = read(tmp_path / "model.ckpt").module
    for part in PARTS:
        assert_same_weights(getattr(found, part), getattr(module, part))


def with_ema(weights):
    """Add what ema-pytorch's ``EMA`` adds to a state dict: counters, the raw weights again, the averaged ones."""
    raw = {
        name.removeprefix("diffusion_model."): w for name, w in weights.items() if name.startswith("diffusion_model.")
    }
    averaged = {name: w.clone() if name == "pos_embed" else 0.5 * w + 0.01 for name, w in raw.items()}
    return {
        **weights,
        "ema_model.initted": torch.tensor(data=True),
        "ema_model.step": torch.tensor(40),
        **{f"ema_model.online_model.{name}": w.clone() for name, w in raw.items()},
        **{f"ema_model.ema_model.{name}": w for name, w in averaged.items()},
    }, {**weights, **{f"diffusion_model.{name}": w for name, w in averaged.items()}}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_averaged_weights_are_used_on_request(tmp_path, weights, module, suffix):
    with_both, averaged_only = with_ema(weights)
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": with_both}, path) if suffix == ".ckpt" else save_file(with_both, path)
    averaged_prior = read_weights(averaged_only, tmp_path).module.prior

    found = read(path, ema=True).module
    assert_same_weights(found.averaged_prior.module, averaged_prior)
    assert_same_weights(found.prior, module.prior)
    assert_same_weights(found.encoder, module.encoder)
    assert_same_weights(read(path).module.averaged_prior.module, module.prior)  # unless requested


def test_unshared_dispersions_come_from_the_second_output_of_the_head(tmp_path, weights):
    generator = torch.Generator().manual_seed(0)
    weights.pop("vae_model.decoder_head.theta.weight", None)
    head = torch.randn(2, CONFIG["E"], generator=generator)
    bias = torch.randn(2, generator=generator)
    weights |= {"vae_model.decoder_head.params.weight": head, "vae_model.decoder_head.params.bias": bias}
    module = read_weights(weights, tmp_path).module
    seen = []
    module.decoder.gene_queries.readout.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    outputs = module.generative(VECTORS["z"], VECTORS["library_size"])

    scores, log_theta = (seen[0] @ head.T + bias).unbind(-1)
    mu = scores.softmax(1) * VECTORS["library_size"]
    assert relative_error(module.likelihood.mean(**outputs), mu) < TOLERANCE
    assert relative_error(module.likelihood.log_dispersion(outputs["outputs"]).exp(), log_theta.exp()) < TOLERANCE
    assert relative_error(module.likelihood.parameters_per_cell(**outputs)[:, 1], log_theta.exp()) < TOLERANCE


def test_encoder_and_decoder_may_have_gene_embeddings_of_their_own(tmp_path, weights):
    encoder_genes = weights["vae_model.input_layer.gene_embedding.weight"]
    weights["vae_model.decoder.gene_embedding.weight"] = encoder_genes + 1
    module = read_weights(weights, tmp_path).module
    torch.testing.assert_close(module.encoder.network.attention.embed_gene.weight, encoder_genes)
    torch.testing.assert_close(module.decoder.gene_queries.embed_gene.weight, encoder_genes + 1)


def test_keys_may_be_given_in_any_order(modules):
    backwards = {key: class_names()[key] for key in reversed(KEYS)}
    for strategy, module in modules.items():
        x, t = VECTORS[f"{strategy}.x"], VECTORS[f"{strategy}.t"]
        condition = recorded_condition(strategy)
        found = read(weights_path(strategy), strategy, categories=backwards).module.prior(x, t, condition.flip(1))
        torch.testing.assert_close(found, module.prior(x, t, condition))  # a sum over keys in another order


def test_the_model_generates():
    model = read(weights_path(STRATEGY))
    cells = model.generate(6, library_size=50, n_steps=2, sampler="euler", seed=0)
    assert str(model).startswith("SCLDM with published weights")
    assert cells.shape == (6, CONFIG["G"])
    assert cells.var_names.tolist() == gene_names()
    assert {key: list(values) for key, values in model.conditions.categories.items()} == class_names()
    assert set(cells.obs) >= set(KEYS)
    assert np.isfinite(cells.X.toarray()).all()
    assert cells.X.sum() > 0


def test_weights_without_conditions_generate_too(tmp_path, weights):
    unconditional = {name: w for name, w in weights.items() if "class_embeddings" not in name}
    model = read_weights(unconditional, tmp_path, categories={})

    assert model.generate(2, library_size=50, n_steps=1, sampler="euler", seed=0).shape == (2, CONFIG["G"])


# --- the reader: what it refuses --------------------------------------------------------------------------------------


def wrong_categories():
    key, names = KEYS[0], class_names()
    return [
        names | {key: [*names[key], "another"]},
        {k: v for k, v in names.items() if k != key},
        names | {"another": ["a", "b"]},
        {("another" if k == key else k): v for k, v in names.items()},
        {},
    ]


WRONG = [("var_names", names) for names in (gene_names()[1:], [*gene_names(), "another"], ["gene"] * CONFIG["G"])]
WRONG += [("categories", value) for value in wrong_categories()]
WRONG += [("n_heads", CONFIG["E"] + 1), ("ema", True)]
MESSAGES = {"n_heads": "heads", "ema": "averaged", "var_names": "var_names"}


@pytest.mark.parametrize(("argument", "value"), WRONG)
def test_arguments_that_do_not_fit_the_weights_are_refused(argument, value):
    with pytest.raises(ValueError, match=MESSAGES.get(argument, f"`{argument}`")):
        read(weights_path(STRATEGY), **{argument: value})


def test_totals_that_the_weights_do_not_tell_are_asked_for():
    with pytest.raises(ValueError, match="library"):
        read(weights_path(STRATEGY)).generate(2)


def test_tensors_that_the_model_cannot_hold_are_refused_rather_than_ignored(tmp_path, weights):
    changes = {
        "vae_model.encoder.pos_embed": torch.ones(1, CONFIG["M"], CONFIG["E"]),
        "diffusion_model.final_layer.linear.weight": torch.zeros(CONFIG["L"] + 1, CONFIG["D"]),
    }
    for name, tensor in changes.items():
        with pytest.raises(ValueError, match=r"position embedding|project_out"):
            read_weights(weights | {name: tensor}, tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_code_is_refused_and_not_executed(tmp_path, weights, zipped):
    path, canary = tmp_path / "model.ckpt", tmp_path / "canary"
    content = {"state_dict": weights, "hyper_parameters": Canary(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model\.ckpt"):
        read(path)
    assert not canary.exists()

    torch.load(path, weights_only=False)  # the canary does sing when it is let out
    assert canary.exists()


def test_a_missing_file_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "nowhere.ckpt", "~/nowhere.ckpt"):
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}/nowhere"):
            read(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_truncated_file_and_one_of_something_else_are_refused_and_not_executed(tmp_path, weights, suffix):
    path, canary = tmp_path / f"model{suffix}", tmp_path / "canary"
    torch.save({"state_dict": weights}, path) if suffix == ".ckpt" else save_file(weights, path)
    whole = path.read_bytes()
    truncated = [b"", whole[:10], whole[: len(whole) // 2], whole[:-10]]
    for content in (*truncated, b"gene,count\nA,1\n" * 100, pickle.dumps(Canary(canary))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"model{suffix}"):
            read(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content", [[1, 2], {"state_dict": [1, 2]}, torch.zeros(3), {}, {"layer.weight": torch.zeros(3)}], ids=repr
)
def test_a_torch_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"weights"):
        read(tmp_path / "model.ckpt")


def test_weights_that_lack_any_tensor_are_refused(tmp_path, weights):
    # The encoder's position embedding is zero and need not be there; without theta the file is one of unshared
    # dispersions, whose head has another shape.
    needed = [name for name in weights if name != "vae_model.encoder.pos_embed"]
    accepted = []
    for name in needed:
        with suppress(ValueError):
            read_weights({other: w for other, w in weights.items() if other != name}, tmp_path)
            accepted.append(name)
    assert accepted == []
