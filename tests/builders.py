"""Builders that all tests share: small count data, small models, and one model trained once per session."""

import asyncio
import functools
import gc
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import anndata
import lightning.fabric.utilities.registry
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch
from hypothesis import settings
from lightning.pytorch.callbacks import Callback
from numba.core.dispatcher import Dispatcher
from scvi.data import AnnDataManager

from scgen_diffusion.diffusion import _random
from scgen_diffusion.model import SCLDM, SCMDM, SCRDIT, WBDIT, _scldm
from scgen_diffusion.train import RECIPES, AutoencoderRecipe, PerturbationFlowRecipe, PriorRecipe

settings.register_profile("busy", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("busy")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores Ctrl-C for what it runs in the background

torch.set_num_threads(1)  # tensors this small only wait for each other's threads: ten times faster with one

# Every training looks for callbacks of other packages. Reading the metadata of all of them takes a tenth of a tiny
# training.
lightning.fabric.utilities.registry.entry_points = functools.cache(lightning.fabric.utilities.registry.entry_points)


def _freeze_once(registry, freeze=AnnDataManager._get_data_registry_from_registry, frozen={}):  # noqa: B006
    """Return where the registered data are, which scvi-tools freezes at every look: a twelfth of a tiny training."""
    key = repr([(name, field["data_registry"]) for name, field in registry["field_registries"].items()])
    return frozen[key] if key in frozen else frozen.setdefault(key, freeze(registry))


AnnDataManager._get_data_registry_from_registry = staticmethod(_freeze_once)


async def _at_once(work, /, *arguments, **options):
    return work(*arguments, **options)


asyncio.to_thread = _at_once  # zarr does so for each of many small files, which takes two fifths of the time to write

# As many epochs as usual, of 3 steps instead of 10: the prior's and the flow's take half of a tiny training.
QUICK_RECIPE = {
    "autoencoder": AutoencoderRecipe(),
    "prior": PriorRecipe(smallest_epoch=3, reference_steps=1200),
    "perturbation_flow": PerturbationFlowRecipe(smallest_epoch=3, reference_steps=90, batch_size=64),
}
_scldm.RECIPES = {**RECIPES, "default": QUICK_RECIPE}

TYPES = ["B cell", "T cell", "NK", "rare", "never seen"]
DOSES = [1, 10, 100]


def _make_cells(n_cells=96, n_genes=12, *, seed=0, matrix=np.asarray, values="counts"):
    """Build cells with a type (one of them rare, one empty), an integer dose and a truth value ``treated``.

    No T cell has the dose 100, so that there is a combination to extrapolate to.
    """
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, n_cells)
    types[0] = 3
    doses = rng.choice(DOSES, n_cells)
    doses[(types == 1) & (doses == 100)] = 10
    programme = rng.gamma(1.0, 3.0, (4, n_genes))
    counts = rng.poisson(programme[types] * rng.lognormal(0, 0.3, (n_cells, 1))).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(types, categories=TYPES),
            "dose": doses,
            "treated": rng.random(n_cells) < 0.5,
        },
        index=[f"cell_{number}" for number in range(n_cells)],
    )
    var = pd.DataFrame(
        {"highly_variable": rng.random(n_genes) < 0.5, "symbol": [f"S{g}" for g in range(n_genes)]},
        index=[f"gene_{g}" for g in range(n_genes)],
    )
    x = counts if values == "counts" else np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    return anndata.AnnData(matrix(x), obs=obs, var=var)


TINY = {
    "n_latent_tokens": 2,
    "n_latent": 4,
    "width": 8,
    "n_layers": 1,
    "n_heads": 2,
    "n_heads_cross": 2,
    "pooling_width": 16,
    "decoder_width": 16,
    "n_factors": 8,
    "prior_width": 8,
    "prior_n_layers": 1,
    "prior_n_heads": 2,
}


TINY_GENE_SPACE = {
    "patch_size": 5,  # of 12 genes, so that the last patch is padded
    "width": 8,
    "n_layers": 1,
    "n_heads": 2,
    "unet_width": 4,
    "target": "data",
    "head": "regression",
    "n_global_tokens": 1,
    "zero_value": None,
    "scaling": "gene",
}
TINY_MOLECULES = {"patch_size": 5, "width": 8, "n_layers": 1, "n_heads": 2, "n_global_tokens": 1, "n_axes": 4}
SIZES = {SCLDM: TINY, SCRDIT: TINY_GENE_SPACE, WBDIT: TINY_GENE_SPACE, SCMDM: TINY_MOLECULES}


def _make_model(adata=None, *, cls=SCLDM, condition_keys=("cell_type", "dose"), setup=None, **options):
    adata = _make_cells() if adata is None else adata
    cls.setup_anndata(adata, condition_keys=list(condition_keys), **(setup or {}))
    return cls(adata, **{**SIZES[cls], **options})


@contextmanager
def seeded(seed):
    """Set scvi-tools' seed for a while; the setter would say so on every call."""
    before, scvi.settings._seed = scvi.settings.seed, seed
    try:
        yield
    finally:
        scvi.settings._seed = before


QUICK = {"batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}


def _make_trained(adata=None, *, max_epochs=1, **options):
    """Train a model, and then stir its network: after so few steps, it would ignore time and conditions."""
    torch.manual_seed(0)
    model = _make_model(adata, **options)
    with seeded(0):
        model.train(max_epochs, **QUICK)
    generator = torch.Generator().manual_seed(0)
    _, averaged = model.module.network_and_average
    for parameter in averaged.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device), alpha=0.2)
    return model


class At(Callback):
    """After a step of a stage, send a signal to this process, or call a function of the plan."""

    def __init__(self, stage, step, work):
        self.stage, self.step, self.work = stage, step, work

    def on_train_batch_end(self, trainer, plan, *_):
        if (plan.name, trainer.global_step) == (self.stage, self.step):
            if callable(self.work):
                self.work(plan)
            else:
                os.kill(os.getpid(), self.work)


def same_cells(one, other):
    """Return whether cells have the same values and the same conditions."""
    is_same = (one.X != other.X).nnz == 0 if sp.issparse(one.X) else np.array_equal(one.X, other.X)
    return is_same and one.obs.astype(str).equals(other.obs.astype(str))


def read_cells(path):
    """Return the cells of a .h5ad or .zarr."""
    return (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)


def contents(folder):
    """Return all files below a folder, and what they hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def full_disk(n_bytes=10_000):
    """Let no file grow further, as on a disk that is full; pytest's own log neither, so only for a moment."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Canary:
    """Makes a file where pickle runs what it holds."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@functools.cache
def _trained_once(cls):
    return _make_trained(cls=cls, max_epochs=3)


def _by_name(*classes):
    """Return arguments of a fixture that is each of these classes in turn."""
    return {"params": classes, "ids": [cls.__name__ for cls in classes]}


@pytest.fixture(autouse=True)
def _one_thread():
    """Go back to one thread: what scikit-learn does (a PCA, say) leaves OpenMP with all, though torch would say one."""
    torch.set_num_threads(1)


@pytest.fixture
def seed_0():
    """Set scvi-tools' seed, from which models start and train."""
    before, scvi.settings.seed = scvi.settings.seed, 0
    yield
    scvi.settings._seed = before


@pytest.fixture(scope="module")
def small_blocks():
    """Let few cells make several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_random.BLOCK_SIZES, "cpu", 16)
        yield


@pytest.fixture(scope="session")
def make_cells():
    """Build small count data with conditions."""
    return _make_cells


@pytest.fixture(scope="session")
def tiny():
    """Return sizes that train in an instant."""
    return dict(TINY)


@pytest.fixture(scope="session")
def quick():
    """Return arguments of ``train`` for tests."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def make_model():
    """Build a small untrained model, of SCLDM or of the class ``cls``."""
    return _make_model


@pytest.fixture(scope="session")
def make_trained():
    """Build a small model whose stages were trained for an epoch, with a network that is not inert."""
    return _make_trained


@pytest.fixture(scope="session", **_by_name(SCLDM, SCRDIT, WBDIT, SCMDM))
def any_class(request):
    """Return each model of one modality in turn."""
    return request.param


@pytest.fixture(scope="session", **_by_name(SCLDM, SCRDIT))
def either_class(request):
    """Return a model of latents and one of gene space in turn."""
    return request.param


@pytest.fixture(scope="session", **_by_name(SCRDIT, WBDIT))
def gene_space_class(request):
    """Return each gene-space model in turn."""
    return request.param


@pytest.fixture(scope="session")
def trained_once():
    """Return a function of a class that returns the model of this class which tests share."""
    return _trained_once


@pytest.fixture(scope="session")
def trained():
    """Return an SCLDM with two keys that is trained once for all tests; they must not change it."""
    return _trained_once(SCLDM)


@pytest.fixture(scope="session")
def trained_gene_space(gene_space_class):
    """Return such a model of each class in gene space."""
    return _trained_once(gene_space_class)


@pytest.fixture(scope="session")
def trained_any(any_class):
    """Return such a model of each class."""
    return _trained_once(any_class)


@pytest.fixture(scope="session")
def saved_model(trained, tmp_path_factory):
    """Save the shared model once, without its cells."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    trained.save(folder)
    return folder


def _run_together(work, n_processes=2, *, timeout=120):
    """Fork processes that train together, let each do ``work(rank)``, and return its result, or exit code if it died.

    A fork has all imports behind it, which take longer than tiny trainings.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def child(rank, pipe):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        torch.set_num_threads(1)
        try:
            pipe.send(work(rank))
        except SystemExit as end:
            os._exit(end.code)
        except BaseException:  # noqa: BLE001 - whatever it is, the fork must not go on with pytest's own work
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # without the clean-up of pytest

    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(n_processes)]
    processes = [context.Process(target=child, args=(rank, end)) for rank, (_, end) in enumerate(pipes)]
    for process in processes:
        process.start()
    for _, end in pipes:
        end.close()
    results = []
    try:
        for process, (start, _) in zip(processes, pipes, strict=True):
            assert start.poll(timeout), "a process takes too long"
            try:
                results.append(start.recv())
            except EOFError:
                process.join(timeout)
                results.append(process.exitcode)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


@pytest.fixture(scope="session")
def run_together():
    """Run something in several processes that train together."""
    return _run_together


APART = multiprocessing.get_context("forkserver")
APART.set_forkserver_preload(["pytest", "scgen_diffusion.model"])


def pytest_collection_finish(session):
    """Start the server from which `start_apart` forks, which takes seconds to import, beside the first tests.

    What was imported stays: the garbage collector, which `conftest` has stopped, would look through it again and again.
    Of what the tests leave, little is in cycles, so it looks seldom.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()
    if any("start_apart" in getattr(item, "fixturenames", ()) for item in session.items):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("NUMBA_NUM_THREADS", "2")  # of which one test sees what they do to the limit
            forkserver.ensure_running()


@pytest.fixture
def without_pictures(monkeypatch):
    """Leave the pictures, which take seconds, out of reports whose words are tested."""
    monkeypatch.setattr("scgen_diffusion.report._write.draw", lambda *_, **__: {})


@pytest.fixture(scope="module")
def without_umap():
    """Embed cells by principal components in pictures: UMAP compiles for ten seconds, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scgen_diffusion.pl._embeddings.umap_of", lambda values, **_: values[:, :2])
        yield


@pytest.fixture
def start_apart(tmp_path_factory):
    """Start a script in a process that shares imports with others, and nothing else; return it and its output files."""
    processes = []

    def start(script, *arguments):
        folder = tmp_path_factory.mktemp("apart")
        path, out, err = (folder / name for name in ("script.py", "out", "err"))
        redirect = (
            f"for name in ({str(out)!r}, {str(err)!r}):\n    os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), 1 + "
            "(name[-3:] == 'err'))\n"
        )
        same = (
            "from scgen_diffusion.model import _scldm\n"
            "from scgen_diffusion.train import AutoencoderRecipe, PriorRecipe, PerturbationFlowRecipe\n"
            f"_scldm.RECIPES['default'] = {QUICK_RECIPE}\n"
        )
        path.write_text(f"import os, sys\nsys.argv = {['-c', *map(str, arguments)]}\n{redirect}{same}{script}")
        processes.append(APART.Process(target=runpy.run_path, args=(str(path),), kwargs={"run_name": "__main__"}))
        processes[-1].start()
        return processes[-1], out, err

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def run_apart(start_apart):
    """Run a script in a process of its own that has the package imported, and return what it printed, errors too."""

    def run(script, *arguments):
        process, out, err = start_apart(script, *arguments)
        process.join()
        assert process.exitcode == 0, err.read_text()[-4000:]
        return out.read_text(), err.read_text()

    return run


@pytest.fixture(scope="session")
def run_python():
    """Run a script in a fresh process, which imports for seconds, and return what it printed."""

    def run(script, *arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def dense():
    """Return a matrix as an array, sparse or not."""
    return lambda x: x.toarray() if sp.issparse(x) else np.asarray(x)


@pytest.fixture(scope="module")
def nothing_of_sparse_is_compiled():
    """Let Python run the package `sparse`: compiling its functions takes most of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for module in [module for name, module in sys.modules.items() if name.startswith("sparse.")]:
            for name, function in list(vars(module).items()):
                if isinstance(function, Dispatcher):
                    patch.setattr(module, name, function.py_func)
        yield
