"""From control to perturbed cells: the flow, the expected mean change and its uncertainty."""

from ._change_error import ChangeError
from ._expected_shift import ExpectedShift, Suggestion
from ._flow import PerturbationFlow
from ._groups import PerturbationGroup, perturbation_groups
from ._missed_changes import MissedChanges
from ._sums import ProfileSums, add_sums, strengths, variance_of_sums

__all__ = ["ChangeError", "ExpectedShift", "MissedChanges", "PerturbationFlow"]
