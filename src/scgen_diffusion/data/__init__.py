"""AnnData and MuData in and out: checks, conditions, plain forms for saving."""

from ._annbatch import AnnbatchCells
from ._anndata import JOIN, PROVENANCE_KEY, SYNTHETIC, build_anndata, join_labels, mark_synthetic
from ._argument_names import check_argument_names, suggests_arguments
from ._cell_files import CellFiles
from ._checks import (
    LARGEST_LOG1P,
    check_conditions,
    check_expression,
    check_layer,
    check_not_empty,
    check_same_genes,
    check_values,
    checked_rows,
    is_whole_number,
    known_names,
    layer_names,
    resolve_seed,
    row_numbers,
    warn_user,
)
from ._condition_extension import extend_key, occurring, recode
from ._condition_field import ConditionField, encode_obs, keys_of_state
from ._condition_keys import OPEN, CategoricalKey, ConditionKey, ContinuousKey, SetKey
from ._condition_setup import ConditionSetup, condition_names, extended_table
from ._conditions import ConditionRequest, Conditions, categorical_keys, is_single
from ._file_registry import check_same_registry
from ._gene_padding import pad_genes
from ._many_conditions import RequestedCodes
from ._mudata import (
    JOINED,
    ModalitiesField,
    Modality,
    build_mudata,
    check_same_features,
    modalities_of,
    mudata_of,
)
from ._mudata_checks import (
    MODALITY_LIKELIHOODS,
    ModalityLikelihood,
    check_condition_columns,
    check_is_mudata,
    guess_likelihood,
    resolve_layers,
    resolve_modalities,
)
from ._plain import savable_columns, to_array, to_plain, to_table
from ._registered_cells import RegisteredCells
from ._streaming import is_generated, join_parts, read_record, remove, sync, write_part
from ._value_summary import ValueSummary

__all__ = [
    "JOIN",
    "JOINED",
    "LARGEST_LOG1P",
    "MODALITY_LIKELIHOODS",
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
    "categorical_keys",
    "check_argument_names",
    "check_condition_columns",
    "check_conditions",
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
    "extend_key",
    "extended_table",
    "guess_likelihood",
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
    "read_record",
    "recode",
    "remove",
    "resolve_layers",
    "resolve_modalities",
    "resolve_seed",
    "row_numbers",
    "savable_columns",
    "suggests_arguments",
    "sync",
    "to_array",
    "to_plain",
    "to_table",
    "warn_user",
    "write_part",
]
