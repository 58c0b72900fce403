"""How training ended: what a model records of it, and what the user is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgen_diffusion._arguments import warn_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scgen_diffusion.train import StagePlan

    from ._base import DiffusionModel
    from ._training import StageJob

STOPPED, STOPPED_EARLY, TOO_SHORT = "stopped", "stopped far too early", "far too short"  # of a stage, in saved models


def how_cut_short(job: StageJob, plan: StagePlan, *, is_stopped: bool) -> str:
    """Say how the training of a stage was cut short, or "" if it was not.

    A stage is short if it ended far before its default, unless validation losses ended it, or it goes on from long
    training.
    """
    watched = plan.trainer.early_stopping_callbacks
    n_epochs = job.n_epochs if watched else job.n_epochs * plan.n_epochs_done / plan.n_epochs
    is_short = (job.is_new or job.was_cut_short in (STOPPED_EARLY, TOO_SHORT)) and job.are_few(n_epochs)
    if is_stopped:
        return STOPPED_EARLY if is_short else STOPPED
    return TOO_SHORT if is_short else ""


def was_stopped(model: DiffusionModel, stage: str) -> bool:
    """Return whether the last training of a stage was stopped."""
    return model.cut_short_.get(stage) in (STOPPED, STOPPED_EARLY)


def advise_to_train_on(model: DiffusionModel) -> str:
    """Say which call makes up for training that was cut short; "" if none was."""
    if stopped := [stage for stage in model.trained_stages_ if was_stopped(model, stage)]:
        again = "make the same call again, which trains on"
        if stopped[0] == model._stages[0]:
            return again
        return f"with `checkpoint_dir`, {again}; without, model.train_{stopped[0]}()"
    fixed = {"autoencoder", "perturbation_flow"} if model._keeps_autoencoder else set()  # those of the reference
    short = [s for s in model.trained_stages_ if model.cut_short_.get(s) == TOO_SHORT and s not in fixed]
    if not short:
        return ""
    calls = ["train()"] if short[0] == model._stages[0] else [f"train_{stage}()" for stage in short]
    return f"{' and '.join(f'model.{call}' for call in calls)}, as the training so far was far too short"


def warn_of_short_stages(cut_short: Mapping[str, str], stages: Iterable[str]) -> None:
    """Warn if stages that cells need were far too short; a stop near the end counts not."""
    if short := [stage for stage in stages if cut_short.get(stage) in (STOPPED_EARLY, TOO_SHORT)]:
        trained = " and that ".join(f"of the {stage} was {cut_short[stage]}" for stage in short)
        warn_user(f"Too few epochs: the training {trained}. Cells and effects may be unlike real ones.")


def describe_training(plans: Sequence[StagePlan], seconds: float, *, is_stopped: bool) -> str:
    """Return one line: how long training took, and the epochs and the last validation loss of each stage."""
    stages = []
    for plan in plans:
        losses = plan.validation_losses
        loss = f", validation loss {losses[-1]:.4g}" if losses else ""
        stages.append(f"{plan.name}: epochs {plan.n_epochs_done}{loss}")
    verb = "was stopped after" if is_stopped else "took"
    return f"Training {verb} {seconds / 60:.1f} minutes ({'; '.join(stages)})."
