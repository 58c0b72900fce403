"""AnnData in and out: checks, conditions, plain forms for saving."""

from ._anndata import JOIN, PROVENANCE_KEY, build_anndata, join_labels, synthetic_names
from ._checks import check_conditions, check_expression, check_same_genes, is_whole_number, known_names
from ._conditions import OPEN, ConditionRequest, Conditions
from ._plain import from_plain, to_plain

__all__ = [
    "JOIN",
    "OPEN",
    "PROVENANCE_KEY",
    "ConditionRequest",
    "Conditions",
    "build_anndata",
    "check_conditions",
    "check_expression",
    "check_same_genes",
    "from_plain",
    "is_whole_number",
    "join_labels",
    "known_names",
    "synthetic_names",
    "to_plain",
]
