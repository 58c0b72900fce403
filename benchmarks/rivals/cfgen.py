"""CFGen (github.com/theislab/CFGen; Palma et al. 2025), trained and sampled by its own classes.

Settings that its repository has for ``pbmc3k``, which is as large as our sets. Labels with several keys are one
covariate. As in its notebooks, library sizes are those of real cells, and guidance weighs 1. What differs from its
scripts: it runs on a CPU, without anomaly detection, loader processes or Weights & Biases, and the tenth of the cells
that it sets aside for validation is used although it is smaller than a batch.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from benchmarks.rivals.worker import Drawn, work

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.rivals.worker import Task

#: Share of the minutes for the autoencoder; the flow has the rest.
ENCODER_SHARE = 1 / 3


class CoreTime(pl.Callback):
    """Ends the training after some minutes on this core."""

    def __init__(self, minutes: float) -> None:
        self._end = time.process_time() + 60 * minutes

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop if the time is over."""
        trainer.should_stop = trainer.should_stop or time.process_time() > self._end


def configure(task: Task, configs: str, data: Path, chosen: dict[str, str]) -> Any:
    """Return the repository's configuration for ``pbmc3k``, for our data on a CPU."""
    folder = task.repository / "configs" / configs
    files = {path.parent.name: path for path in folder.glob("*/default.yaml") if path.parent.name != "hydra"}
    files |= {part: folder / part / f"{name}.yaml" for part, name in ({"dataset": "pbmc3k"} | chosen).items()}
    config = OmegaConf.create({part: OmegaConf.load(path) for part, path in files.items()})
    config.dataset.dataset_path = str(data)
    config.dataset.covariate_keys = ["label"]
    config.dataset.theta_covariate = config.dataset.size_factor_covariate = "label"
    config.dataset.guidance_weights = {"label": 1}
    config.trainer.max_epochs = max(1, round(config.trainer.max_epochs * task.length))
    config.trainer.update({"accelerator": "cpu", "detect_anomaly": False, "enable_progress_bar": False})
    return config


def fit(estimator: Any, minutes: float) -> dict[str, float]:
    """Train one of its two networks in this process; return the number of epochs and the last loss."""
    batch_size = estimator.args.training_config.batch_size
    estimator.train_dataloader = DataLoader(estimator.train_data, batch_size, shuffle=True, drop_last=True)
    estimator.valid_dataloader = DataLoader(estimator.valid_data, batch_size)
    trainer = estimator.trainer_generative
    trainer.callbacks.append(CoreTime(minutes))
    estimator.train()
    return {"epochs": trainer.current_epoch, "valid_loss": round(float(trainer.callback_metrics["valid/loss"]), 4)}


def draw(task: Task) -> Drawn:
    """Train both networks and draw the requested cells."""
    sys.path.insert(0, str(task.repository))
    from cfgen.estimator import cfgen_estimator, encoder_estimator

    torch.autograd.set_detect_anomaly(False)  # importing the estimators turns it on
    for module in (cfgen_estimator, encoder_estimator):
        module.TRAINING_FOLDER, module.WandbLogger = task.folder, lambda **_: False
    pl.seed_everything(task.seed)
    data, checkpoint = task.folder / "train.h5ad", task.folder / "encoder.ckpt"
    task.train.write_h5ad(data)

    estimator = encoder_estimator.EncoderEstimator(configure(task, "configs_encoder", data, {}))
    settings = {"encoder": fit(estimator, task.minutes * ENCODER_SHARE)}
    estimator.trainer_generative.save_checkpoint(checkpoint)

    config = configure(task, "configs_sccfm", data, {"denoising_module": "resnet_small"})
    config.training_config.update({"batch_size": 64, "encoder_ckpt": str(checkpoint)})
    estimator = cfgen_estimator.CfgenEstimator(config)
    settings |= {"flow": fit(estimator, task.minutes * (1 - ENCODER_SHARE))}
    trained = time.process_time()

    codes = estimator.dataset.id2cov["label"]
    totals = torch.tensor(task.requested["total"].to_numpy(), dtype=torch.float32)
    counts = estimator.generative_model.eval().sample(
        batch_size=len(task.requested),
        n_sample_steps=2,
        theta_covariate="label",
        size_factor_covariate="label",
        conditioning_covariates=["label"],
        covariate_indices={"label": torch.tensor([codes[label] for label in task.requested["label"]])},
        log_size_factor={"rna": totals.log()[:, None]},
    )
    return Drawn(counts["rna"].numpy(), trained, "counts", settings)


if __name__ == "__main__":
    work(draw, "pytorch-lightning", "scvi-tools", "torchdyn")
