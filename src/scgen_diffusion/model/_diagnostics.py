"""Warnings about cells of a gene-space model that cannot be right, with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgen_diffusion._arguments import warn_user
from scgen_diffusion.module import GeneSpaceModule

if TYPE_CHECKING:
    from scgen_diffusion.data import ValueSummary
    from scgen_diffusion.module import SCLDMModule
    from scgen_diffusion.nn import InputValues

FEWEST_ZEROS = 0.5  # times the zeros of the training cell with the fewest
LARGEST_VALUE = 1.5  # times the largest training value


def warn_of_odd_values(module: GeneSpaceModule | SCLDMModule, values: ValueSummary, output: InputValues) -> None:
    """Warn if log-normalised cells have values far above those of training, or far fewer exact zeros.

    The mean zeros of training cells would say little: deep cells have far fewer than others. So the fewest count.
    """
    if output != "log1p" or not isinstance(module, GeneSpaceModule):
        return
    largest, zeros, a = module.largest_value.item(), module.training_zeros.item(), module.architecture
    if values.largest > LARGEST_VALUE * largest:
        warn_user(
            f"Sampling seems to have diverged: the largest generated value is {values.largest:.3g}, the largest "
            f"training value {largest:.3g}. Try more steps, another sampler or less guidance, or train longer."
        )
    if values.zeros < FEWEST_ZEROS * zeros:
        needs_negation = a.head == "regression" and a.zero_value is None
        advice = "set `zero_value` (zero negation) or `head='spike_and_slab'`" if needs_negation else "train longer"
        warn_user(
            f"{values.zeros:.0%} of the generated values are zeros, but at least {zeros:.0%} of the values of every "
            f"training cell. To get zeros, {advice}."
        )
