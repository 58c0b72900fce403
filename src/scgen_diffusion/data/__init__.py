"""AnnData and MuData in and out: checks, conditions, plain forms for saving."""

from scgen_diffusion._arguments import (
    check_argument_names,
    check_count,
    is_whole_number,
    known_names,
    suggests_arguments,
    warn_user,
)

from ._annbatch import AnnbatchCells
from ._anndata import JOIN, PROVENANCE_KEY, SYNTHETIC, build_anndata, join_labels, mark_synthetic, pad_genes
from ._cell_files import CellFiles
from ._checks import (
    LARGEST_LOG1P,
    check_expression,
    check_layer,
    check_not_empty,
    check_same_genes,
    check_values,
    checked_rows,
    layer_names,
    resolve_seed,
    row_numbers,
)
from ._condition_keys import OPEN, CategoricalKey, ConditionKey, ContinuousKey, SetKey, occurring, recode
from ._condition_setup import (
    ConditionField,
    ConditionSetup,
    check_conditions,
    condition_names,
    encode_obs,
    extended_table,
    keys_of_state,
)
from ._conditions import ConditionRequest, Conditions, RequestedCodes, is_single
from ._file_registry import check_same_registry
from ._mudata import (
    JOINED,
    ModalitiesField,
    Modality,
    ModalityLikelihood,
    build_mudata,
    check_is_mudata,
    check_same_features,
    modalities_of,
    mudata_of,
    resolve_modalities,
)
from ._plain import savable_columns, to_array, to_plain, to_table
from ._registered_cells import RegisteredCells
from ._streaming import is_generated, join_parts, part_of, read_record
from ._value_summary import ValueSummary

__all__ = [
    "JOIN",
    "JOINED",
    "LARGEST_LOG1P",
    "OPEN",
    "PROVENANCE_KEY",
    "SYNTHETIC",
    "AnnbatchCells",
    "CategoricalKey",
    "CellFiles",
    "ConditionField",
    "ConditionKey",
    "ConditionRequest",
    "ConditionSetup",
    "Conditions",
    "ContinuousKey",
    "ModalitiesField",
    "Modality",
    "ModalityLikelihood",
    "RegisteredCells",
    "RequestedCodes",
    "SetKey",
    "ValueSummary",
    "build_anndata",
    "build_mudata",
    "check_argument_names",
    "check_conditions",
    "check_count",
    "check_expression",
    "check_is_mudata",
    "check_layer",
    "check_not_empty",
    "check_same_features",
    "check_same_genes",
    "check_same_registry",
    "check_values",
    "checked_rows",
    "condition_names",
    "encode_obs",
    "extended_table",
    "is_generated",
    "is_single",
    "is_whole_number",
    "join_labels",
    "join_parts",
    "keys_of_state",
    "known_names",
    "layer_names",
    "mark_synthetic",
    "modalities_of",
    "mudata_of",
    "occurring",
    "pad_genes",
    "part_of",
    "read_record",
    "recode",
    "resolve_modalities",
    "resolve_seed",
    "row_numbers",
    "savable_columns",
    "suggests_arguments",
    "to_array",
    "to_plain",
    "to_table",
    "warn_user",
]
