"""A replayed step is the step itself.

CUDA graphs need a GPU. Here an emulation stands in for them: it records each operator with its arguments, and a replay
runs the operators again and writes their results where the recorded ones are. As on a GPU, a replay sees neither Python
nor new tensors, and an operator whose result the host has to look at cannot be recorded.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from builders import seeded
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from scgen_diffusion.model import SCLDM, SCRDIT, WBDIT
from scgen_diffusion.module import _likelihoods as likelihoods
from scgen_diffusion.module._autoencoder import Encoder
from scgen_diffusion.train import _plans as plans
from scgen_diffusion.train import _step_graph as graphs

NEEDS_A_VALUE = ("_local_scalar_dense", "nonzero")


class Emulated(TorchDispatchMode):
    """Stands in for a CUDA graph."""

    made = []

    def __init__(self):
        super().__init__()
        self.calls, self.n_replays = [], 0
        self.made.append(self)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in NEEDS_A_VALUE):
            msg = f"operation not permitted when stream is capturing: {function}"
            raise RuntimeError(msg)
        # shapes of tensors may change later
        recorded = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}))
        results = function(*args, **(kwargs or {}))
        self.calls.append((function, *recorded, tree_map_only(torch.Tensor, torch.Tensor.detach, results)))
        return results

    def register_generator_state(self, generator):
        pass

    @torch.no_grad()
    def replay(self):
        self.n_replays += 1
        for function, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def attend_to_all(encoder, values):
    """Pool all genes, as on a GPU."""
    return encoder.network.attention(torch.arange(1, values.shape[1] + 1).expand_as(values), values)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture(autouse=True)
def emulation(monkeypatch):
    """Let the CPU replay steps, by the code for GPUs."""

    @contextmanager
    def recording(graph, *, capture_error_mode):
        with graph:
            yield

    stand_ins = {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Emulated, "graph": recording}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(plans, "REPLAYED_ON", ("cpu",))
    monkeypatch.setattr(likelihoods.Entries, "of_matrix", lambda counts: likelihoods.Entries(counts, counts))
    monkeypatch.setattr(Encoder, "_attend", attend_to_all)
    monkeypatch.setattr(Emulated, "made", [])


def fit(model, max_epochs=2, **options):
    """Train a model with a fixed seed."""
    with seeded(0):
        model.train(max_epochs, batch_size=16, accelerator="cpu", enable_progress_bar=False, **options)
    return model


@pytest.fixture
def train(any_class, make_model, make_cells):
    """Train a small model, the same way every time; the last batch of a pass has another size than the others."""

    # so that the loss depends on the noise from the start
    parts = {"target": "noise"} if any_class in (SCRDIT, WBDIT) else {}

    def run(**options):
        torch.manual_seed(0)
        return fit(make_model(make_cells(n_cells=100), cls=any_class, **parts), **options)

    return run


def state_of(model):
    return {**model.module.state_dict(), **{k: torch.from_numpy(v.to_numpy()) for k, v in model.history.items()}}


def assert_same_without_replay(train, monkeypatch, replayed):
    monkeypatch.setattr(plans, "REPLAYED_ON", ())
    expected = train()
    assert replayed.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(replayed[name], value, msg=name, equal_nan=True)


def test_a_replayed_training_is_the_same(train, monkeypatch):
    replayed, made = state_of(train(max_epochs=3)), list(Emulated.made)

    assert made
    assert all(graph.n_replays > 10 for graph in made)
    assert_same_without_replay(lambda: state_of(train(max_epochs=3)), monkeypatch, replayed)


def test_a_replayed_fine_tuning_is_the_same(make_trained, make_cells, monkeypatch):
    reference = make_trained()

    def tune():
        torch.manual_seed(0)
        cells = make_cells(n_cells=40, seed=5)
        cells.obs["cell_type"] = ["B cell", "plasma"] * 20
        return state_of(fit(SCLDM.load_query_data(cells, reference)))

    assert_same_without_replay(tune, monkeypatch, tune())


def test_a_step_that_waits_for_the_gpu_is_not_replayed(train, monkeypatch, caplog):
    original = graphs.StepGraph.__init__

    def waiting(self, compute, *args):
        def compute_and_look(batch, generator):
            losses = compute(batch, generator)
            assert losses["loss"].item() < 1e9
            return losses

        original(self, compute_and_look, *args)

    monkeypatch.setattr(graphs.StepGraph, "__init__", waiting)
    with caplog.at_level("INFO", logger=plans.__name__):
        assert train(max_epochs=1).is_trained_

    assert "operation not permitted" in caplog.text
    assert all(graph.n_replays == 0 for graph in Emulated.made)
