"""Warnings and errors about a gene-space model that failed, with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgen_diffusion._arguments import warn_user

if TYPE_CHECKING:
    from scgen_diffusion.data import ValueSummary

FEWEST_ZEROS = 0.5  # times the zeros of the training cell with the fewest
LARGEST_VALUE = 1.5  # times the largest training value


def warn_of_missing_zeros(values: ValueSummary, training_zeros: float, *, needs_negation: bool) -> None:
    """Warn if generated cells have far fewer exact zeros than every training cell (at least ``training_zeros``).

    The mean over training cells would say little: deep cells have far fewer than others.

    ``needs_negation`` says that the model has no option that makes zeros exact.
    """
    if values.zeros < FEWEST_ZEROS * training_zeros:
        advice = "set `zero_value` (zero negation) or `head='spike_and_slab'`" if needs_negation else "train longer"
        warn_user(
            f"{values.zeros:.0%} of the generated values are zeros, but at least {training_zeros:.0%} of the values of "
            f"every training cell. To get zeros, {advice}."
        )


def warn_of_divergence(values: ValueSummary, largest_training_value: float) -> None:
    """Warn if generated values are far larger than any training value."""
    if values.largest > LARGEST_VALUE * largest_training_value:
        warn_user(
            f"Sampling seems to have diverged: the largest generated value is {values.largest:.3g}, the largest "
            f"training value {largest_training_value:.3g}. Try more steps, another sampler or less guidance, or train "
            "longer."
        )
