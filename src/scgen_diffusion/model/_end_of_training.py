"""How training ended: what a model records of it, and what the user is told and advised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scgen_diffusion._arguments import warn_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scgen_diffusion.train import StagePlan, StageResult

    from ._base import DiffusionModel
    from ._training import StageJob

STOPPED, STOPPED_EARLY, TOO_SHORT = "stopped", "stopped far too early", "far too short"  # of a stage, in saved models
TRAIN_ON = "Train on, or train again without `max_epochs`."
N_PARTS = 5  # parts of a run whose mean validation losses are compared
FEWEST_VALIDATION_CELLS = 20  # the loss of fewer hangs on a cell or two
CHANGE = 0.1  # share of the total fall of the validation loss that counts as a change


# --- what the model records -------------------------------------------------------------------------------------------


def how_cut_short(job: StageJob, result: StageResult) -> str:
    """Say how the training of a stage was cut short, or "" if it was not.

    A stage is short if it ended far before its default, unless validation losses ended it, or it goes on from long
    training.
    """
    plan, watched = result.plan, result.trainer.early_stopping_callbacks
    n_epochs = job.n_epochs if watched else job.n_epochs * plan.n_epochs_done / plan.n_epochs
    is_short = (job.is_new or job.was_cut_short in (STOPPED_EARLY, TOO_SHORT)) and job.are_few(n_epochs)
    if result.stopped_by:
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
    fixed = {"autoencoder", "transport"} if model._keeps_autoencoder else set()  # those of the reference
    short = [s for s in model.trained_stages_ if model.cut_short_.get(s) == TOO_SHORT and s not in fixed]
    if not short:
        return ""
    calls = ["train()"] if short[0] == model._stages[0] else [f"train_{stage}()" for stage in short]
    return f"{' and '.join(f'model.{call}' for call in calls)}, as the training so far was far too short"


def describe_short(model: DiffusionModel, stages: Iterable[str]) -> str:
    """Say which of the stages were stopped or far too short; empty if none."""
    found = [f"of the {name} was {model.cut_short_[name]}" for name in stages if name in model.cut_short_]
    return f"the training {' and that '.join(found)}" if found else ""


def record_of_short(model: DiffusionModel, stages: Iterable[str]) -> dict[str, str]:
    """Return what generated cells record if stages were far too short; a stop near the end counts for nothing."""
    short = [stage for stage in stages if model.cut_short_.get(stage) in (STOPPED_EARLY, TOO_SHORT)]
    return {"short_training": describe_short(model, short)} if short else {}


def verdict_table(model: DiffusionModel, columns: Mapping[str, Any], stages: Sequence[str]) -> pd.DataFrame:
    """Return verdicts as a table; warn, and add to each reason, if the training of one of the stages was short."""
    table = pd.DataFrame(columns)
    if short := describe_short(model, stages):
        table["reason"] += f"; but {short}"
        warn_user(f"Too few epochs: {short}. Do not trust the effects, whatever their verdict. {TRAIN_ON}")
    return table


# --- the last sentences of `train` ------------------------------------------------------------------------------------


def closing_message(
    results: Sequence[StageResult],
    jobs: Sequence[StageJob],
    *,
    next_step: str,
    is_resumable: bool,
    is_fine_tuned: bool,
    n_validation_cells: int,
) -> str:
    """Return two sentences: how the validation of the trained stages went, and what to do next.

    ``jobs`` are the stages that were to be trained, ``results`` those of the trained ones, in the same order.
    ``next_step`` is what to do with a well-trained model; ``is_resumable`` says that there are checkpoints, and
    ``is_fine_tuned`` that the model started from a reference.
    """
    validated = [result.plan for result in results if result.plan.name != "transport"]
    trends = {  # the rounds of a stage have their own sentence
        plan.name: "settled" if plan.recipe.max_rounds > 1 else validation_trend(plan.validation_losses)
        for plan in validated
    }
    advice, anew = next_step, "build a new model by load_query_data" if is_fine_tuned else "build the model again"
    if results[-1].stopped_by:
        seen, advice = _describe_stop(results, is_resumable=is_resumable)
    elif is_resumable and all(result.device is None for result in results):
        seen = (
            "Nothing was trained: the model has the weights of the checkpoints, whose training is finished. To train "
            "again, use another `checkpoint_dir`"
        )
    elif len(results) < len(jobs):
        seen = f"You stopped training after the {results[-1].plan.name}"
    elif early := [result for result in results if result.plan in validated and result.plan.is_within_round]:
        seen = _describe_early_end(early)
    elif {"rose", "fell"} & {*trends.values()} and n_validation_cells < FEWEST_VALIDATION_CELLS:
        seen = f"Training is done; so few validation cells ({n_validation_cells}) do not show how well it went"
    elif rose := [plan for plan in validated if trends[plan.name] == "rose" and plan.loss_judges_cells]:
        seen, advice = _describe_overfitting(rose, jobs, anew)
    elif fell := [job for job in jobs if trends.get(job.name) == "fell"]:
        seen, advice = _describe_unfinished(fell, anew, is_resumable=is_resumable)
    else:
        is_short = "unknown" in trends.values() or any(job.is_short for job in jobs)
        seen = _describe_finished(validated, jobs, is_short=is_short)
    return f"{seen}. Next: {advice}."


def _describe_stop(results: Sequence[StageResult], *, is_resumable: bool) -> tuple[str, str]:
    """Say which stage was stopped, where, and which weights are kept; and how to go on."""
    first, last = results[0].plan, results[-1].plan
    n_rounds, n_done = last.recipe.max_rounds, last.n_epochs_done
    where = last.describe_epoch(n_done - 1 if last.has_settled else min(n_done, n_rounds * last.n_epochs - 1))
    kept = f"{last.best_weights}, the best so far," if last.best_round else "its weights"
    seen = f"{results[-1].stopped_by} stopped the {last.name} in {where}; {kept} are kept"
    if is_resumable:
        return seen, "make the same call again to resume from the last checkpoint"
    if last.name == "transport":
        return seen, "model.train_transport() to train it from the start"
    if last is first:
        return seen, "make the same call again to continue training"
    left = last.n_epochs - n_done % last.n_epochs
    return seen, f"model.train_{last.name}({left}); the same call would train the {first.name} again, too"


def _describe_early_end(results: Sequence[StageResult]) -> str:
    """Say which stages ended within a round, and by what."""
    ends = [f"the {r.plan.name} after {r.plan.describe_epoch(r.plan.n_epochs_done - 1)}" for r in results]
    watched = all(result.trainer.early_stopping_callbacks for result in results)
    return f"{'Early stopping' if watched else 'An option'} ended {' and '.join(ends)}"


def _describe_overfitting(plans: Sequence[StagePlan], jobs: Sequence[StageJob], anew: str) -> tuple[str, str]:
    """Say after which epoch the validation loss rose; and to train for so many."""
    lengths = {job.name: job.n_epochs for job in jobs}
    shares = {plan.name: (plan.validation_losses.argmin() + 1) / len(plan.validation_losses) for plan in plans}
    best = {name: max(round(share * lengths[name]), 1) for name, share in shares.items()}
    where = " and ".join(f"epoch {epoch} of {lengths[name]} of the {name}" for name, epoch in best.items())
    again = f"{anew} and train it for fewer epochs, max_epochs={best}, or on more cells"
    return f"The validation loss rose after {where}, which is overfitting", again


def _describe_unfinished(jobs: Sequence[StageJob], anew: str, *, is_resumable: bool) -> tuple[str, str]:
    """Say that the validation loss still fell; and to train for longer."""
    longer = {job.name: max(2 * job.n_epochs, job.default_epochs) for job in jobs}
    again = f"{anew} and train it with max_epochs={longer}"
    if list(longer) == ["prior"] and not is_resumable:
        again = f"train on, model.train_prior({longer['prior'] - jobs[0].n_epochs}), or {again}"
    which = " and ".join(f"the {name}" for name in longer)
    return f"The validation loss of {which} was still falling at the end", again


def _describe_finished(validated: Sequence[StagePlan], jobs: Sequence[StageJob], *, is_short: bool) -> str:
    """Say what the validation losses show of stages that ran to their end and need no other training."""
    if not validated:
        return "Training is done; the transport has no validation"
    if not any(len(plan.validation_losses) for plan in validated):
        return "Training is done, without validation cells to show how well it went"
    if not all(plan.loss_judges_cells for plan in validated):
        return (
            "Training is done. The validation loss does not show how good the cells are; "
            "scgen_diffusion.metrics.evaluate does"
        )
    if is_short:
        return "Training is done, but was too short to show how well it went"
    if former := [plan.name for plan in validated if plan.best_round and not plan.n_rounds_done]:
        names = " and the ".join(former)
        return f"More training did not lower the validation loss of the {names}, so the weights from before are kept"
    falls = [
        f"round {plan.n_rounds_done} still lowered the {plan.name}'s validation loss by {plan.best_round['gain']:.1%}"
        for plan in validated
        if plan.recipe.max_rounds > 1 and not plan.has_settled
    ]
    if falls:
        return f"Training is done; {' and '.join(falls)} (`max_rounds` allows more)"
    fewer = [
        f"{job.n_epochs} of the {job.name}'s usual {job.default_epochs} epochs"
        for job in jobs
        if job.is_validated and job.is_new and job.n_epochs < job.default_epochs
    ]
    if fewer:  # the schedule flattens every loss at its end
        return (
            f"Training is done. The validation loss was flat after {' and '.join(fewer)}; with more it may fall further"
        )
    return "Training is done, and the validation loss has settled"


def validation_trend(losses: np.ndarray) -> Literal["fell", "settled", "rose", "unknown"]:
    """Return how the validation losses of a run ended.

    The run is cut into fifths. The loss rose if the last fifth is worse than the best one. It still fell if the last
    fifth is better than the third. In both cases the change must exceed a tenth of the total fall and twice the
    fluctuation between two validations. The comparison is with the middle because the cosine schedule flattens every
    loss at the end.
    """
    if len(losses) < N_PARTS:
        return "unknown"
    means = np.array([part.mean() for part in np.array_split(losses, N_PARTS)])
    steps = np.diff(losses[len(losses) // 2 :])
    fluctuation = (np.abs(steps).sum() - np.abs(steps.sum())) / len(steps)
    least = max(CHANGE * (losses[0] - means.min()), 2 * fluctuation)
    if means[-1] - means.min() > least:
        return "rose"
    return "fell" if means[N_PARTS // 2] - means[-1] > least else "settled"
