"""The engine between a request for cells and the network: no AnnData goes in or out, and no files."""

from ._generator import CellGenerator
from ._request import CellRequest, PredictionRequest, SamplingOptions, check_batch_size, describe_condition
from ._rows import check_sampled, rows_of
from ._support import Corrections, PerturbedGroups, Support, support_columns

__all__ = ["CellGenerator", "CellRequest", "PredictionRequest", "SamplingOptions"]
