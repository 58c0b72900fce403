"""The engine between a request for cells and the network: no AnnData goes in or out, and no files."""

from ._counterfactual import Counterfactual
from ._generator import Block, CellGenerator
from ._library_sizes import LibrarySizes
from ._request import DIGEST, CellRequest, SamplingOptions, check_batch_size, differences, identity_of, name_of
from ._rows import check_finite, rows_of
from ._support import LackingChanges, MeanChange, PerturbedGroups, Support, support_columns

__all__ = [
    "DIGEST",
    "Block",
    "CellGenerator",
    "CellRequest",
    "Counterfactual",
    "LackingChanges",
    "LibrarySizes",
    "MeanChange",
    "PerturbedGroups",
    "SamplingOptions",
    "Support",
    "check_batch_size",
    "check_finite",
    "differences",
    "identity_of",
    "name_of",
    "rows_of",
    "support_columns",
]
