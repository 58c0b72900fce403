"""From control to perturbed cells: the flow, the expected shift of latents, and mean changes of genes."""

from ._changes import Changes, GeneChanges, MissedChanges
from ._expected_shift import ExpectedShift
from ._flow import PerturbationFlow
from ._groups import (
    PerturbationGroup,
    ProfileSums,
    add_sums,
    perturbation_groups,
    sampling_covariance,
    variance_of_sums,
)

__all__ = ["ExpectedShift", "GeneChanges", "MissedChanges", "PerturbationFlow"]
