"""scDiffusion (github.com/EperLuo/scDiffusion; Luo et al. 2024), trained and sampled by its own scripts.

Settings are the defaults of its scripts and README. All requested cells are decoded together, because its decoder
normalises by the batch. What differs: the autoencoder learns from these cells alone, not from SCimilarity's weights;
genes are not filtered a second time; the learning rate of the denoiser falls to zero over the steps that the time
allows. On a CPU, without MPI: batches come from memory, `DistributedDataParallel` returns the classifier itself, and
`mpi4py` is one process. The authors' fixed seed is replaced by ours.
"""

from __future__ import annotations

import os
import random
import sys
import time
import types
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import scanpy as sc
import torch

from benchmarks.rivals.worker import Drawn, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from benchmarks.rivals.worker import Task

#: Published training steps and our share of the minutes, by network.
STEPS = {"autoencoder": 150_000, "denoiser": 600_000, "classifier": 200_000}
SHARES = {"autoencoder": 1 / 3, "denoiser": 1 / 2, "classifier": 1 / 6}
#: Steps of two short trainings that tell the speed of a network.
TRIALS = (20, 120)
BATCH_SIZE = 128
NEVER = {"log_interval": sys.maxsize, "save_interval": sys.maxsize}


def batches(cells: NDArray, classes: NDArray) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Yield shuffled batches without end, as the repository's loader does."""
    cells, classes = torch.from_numpy(cells), torch.from_numpy(classes)
    while True:
        order = torch.randperm(len(cells))
        for rows in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            yield cells[rows], {"y": classes[rows]}


def set_options(**options: Any) -> None:
    """Set the options that the next script reads from the command line."""
    sys.argv = ["", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def affordable_steps(train: Callable[[int], Any], task: Task, network: str) -> int:
    """Return how many steps of a network fit into its share of the minutes, but at most its published number."""
    times = [time.process_time()]
    for n_steps in TRIALS:
        train(n_steps)
        times.append(time.process_time())
    seconds = (times[2] - 2 * times[1] + times[0]) / (TRIALS[1] - TRIALS[0])  # without building and saving
    affordable = task.minutes * SHARES[network] * 60 / max(seconds, 1e-4)
    return max(2, round(min(STEPS[network] * task.length, affordable)))


def draw(task: Task) -> Drawn:
    """Train the three networks and draw the requested cells."""
    alone = {"rank": 0, "size": 1, "Get_rank": lambda: 0, "Get_size": lambda: 1, "bcast": lambda value, **_: value}
    communicator = types.SimpleNamespace(COMM_WORLD=types.SimpleNamespace(**alone))
    sys.modules["mpi4py"] = types.SimpleNamespace(MPI=communicator)  # one process
    sys.path[:0] = [str(task.repository), str(task.repository / "VAE")]
    os.environ |= {"OPENAI_LOG_FORMAT": "", "OPENAI_LOGDIR": str(task.folder)}
    os.chdir(task.folder)  # its scripts write beside the working directory
    torch.distributed.init_process_group("gloo", init_method=f"file://{task.folder}/group", rank=0, world_size=1)

    import cell_train
    import classifier_sample
    import classifier_train
    import VAE_train

    torch.autograd.set_detect_anomaly(False)  # importing VAE_train turns it on
    classifier_train.DDP = lambda model, **_: model
    random.seed(task.seed)
    np.random.seed(task.seed)  # noqa: NPY002 - its scripts draw from the global generator
    torch.manual_seed(task.seed)

    cells = ad.AnnData(task.train.X.copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    values = np.asarray(cells.X.toarray() if hasattr(cells.X, "toarray") else cells.X, dtype=np.float32)
    known, classes = np.unique(task.train.obs["label"].astype(str), return_inverse=True)

    def train_autoencoder(n_steps: int) -> Any:
        VAE_train.load_data = lambda **_: batches(values, classes)
        options = {"data_dir": "", "batch_size": BATCH_SIZE, "num_genes": values.shape[1], "seed": task.seed}
        options |= {"loss_ae": "mse", "decoder_activation": "ReLU", "state_dict": None, "save_dir": "autoencoder"}
        options |= {"max_steps": n_steps, "max_minutes": np.inf, "checkpoint_freq": sys.maxsize}
        return VAE_train.train_vae(options, return_model=True)[0]

    n_steps = {"autoencoder": affordable_steps(train_autoencoder, task, "autoencoder")}
    autoencoder = train_autoencoder(n_steps["autoencoder"])
    with torch.no_grad():
        latents = autoencoder(torch.from_numpy(values), return_latent=True).numpy()

    for script in (cell_train, classifier_train):
        script.load_data, script.setup_seed = lambda **_: batches(latents, classes), lambda _: None

    def train_denoiser(n_steps: int) -> None:
        set_options(lr_anneal_steps=n_steps, model_name="denoiser", save_dir=".", **NEVER)
        cell_train.main()

    def train_classifier(n_steps: int) -> None:
        set_options(iterations=n_steps, num_class=len(known), model_path="classifier", **NEVER)
        classifier_train.main()

    for network, train in (("denoiser", train_denoiser), ("classifier", train_classifier)):
        n_steps[network] = affordable_steps(train, task, network)
        train(n_steps[network])
    trained = time.process_time()

    drawn: list[NDArray] = []
    classifier_sample.save_data = lambda cells, *_: drawn.append(cells)
    requested = torch.from_numpy(np.searchsorted(known, task.requested["label"].astype(str)))
    set_options(
        num_samples=len(requested),
        batch_size=len(requested),
        num_class=len(known),
        model_path=f"denoiser/model{n_steps['denoiser']:06d}.pt",
        classifier_path=f"classifier/model{n_steps['classifier'] - 1:06d}.pt",
    )
    classifier_sample.main(cell_type=[requested])  # it multiplies a label by ones: labels of all cells work too
    with torch.no_grad():
        profiles = autoencoder(torch.from_numpy(drawn[0]), return_decoded=True).numpy()
    return Drawn(profiles, trained, "log-normalised", {"steps": n_steps})


if __name__ == "__main__":
    work(draw, "scanpy")
