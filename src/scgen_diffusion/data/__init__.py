"""AnnData and MuData in and out: checks, conditions, plain forms for saving."""

from ._annbatch import AnnbatchCells
from ._anndata import JOIN, PROVENANCE_KEY, build_anndata, join_labels, synthetic_names
from ._cell_files import CellFiles
from ._checks import (
    LARGEST_LOG1P,
    check_conditions,
    check_expression,
    check_same_genes,
    is_whole_number,
    known_names,
    layer_names,
    row_numbers,
)
from ._condition_extension import extend_key, occurring, recode
from ._condition_field import ConditionField, encode_obs, keys_of_state
from ._condition_keys import OPEN, CategoricalKey, ConditionKey, ContinuousKey, SetKey
from ._condition_setup import ConditionSetup, extended_table
from ._conditions import ConditionRequest, Conditions, categorical_keys, is_single
from ._file_registry import check_same_registry
from ._gene_padding import pad_genes
from ._many_conditions import RequestedCodes, SeenCodes, with_categories
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
from ._plain import from_plain, to_plain
from ._registered_cells import RegisteredCells, digest_of_names
from ._value_summary import ValueSummary
from ._writers import Extent, Piece, read_record, sync, write_cells
from ._writers_claim import Turn
from ._writers_goal import check_writable, checked_goal, put_in_place, told
from ._writers_parts import DamagedPartError, Part, PartFolder, read_manifest, remove, remove_parts

__all__ = [
    "AnnbatchCells",
    "CategoricalKey",
    "CellFiles",
    "ConditionField",
    "ConditionKey",
    "ConditionRequest",
    "ConditionSetup",
    "Conditions",
    "ContinuousKey",
    "DamagedPartError",
    "Extent",
    "JOIN",
    "JOINED",
    "LARGEST_LOG1P",
    "MODALITY_LIKELIHOODS",
    "ModalitiesField",
    "Modality",
    "ModalityLikelihood",
    "OPEN",
    "PROVENANCE_KEY",
    "Part",
    "PartFolder",
    "Piece",
    "RegisteredCells",
    "RequestedCodes",
    "SeenCodes",
    "SetKey",
    "Turn",
    "ValueSummary",
    "build_anndata",
    "build_mudata",
    "categorical_keys",
    "check_condition_columns",
    "check_conditions",
    "check_expression",
    "check_is_mudata",
    "check_same_features",
    "check_same_genes",
    "check_same_registry",
    "check_writable",
    "checked_goal",
    "digest_of_names",
    "encode_obs",
    "extend_key",
    "extended_table",
    "from_plain",
    "guess_likelihood",
    "is_single",
    "is_whole_number",
    "join_labels",
    "keys_of_state",
    "known_names",
    "layer_names",
    "modalities_of",
    "mudata_of",
    "occurring",
    "pad_genes",
    "put_in_place",
    "read_manifest",
    "read_record",
    "recode",
    "remove",
    "remove_parts",
    "resolve_layers",
    "resolve_modalities",
    "row_numbers",
    "sync",
    "synthetic_names",
    "to_plain",
    "told",
    "with_categories",
    "write_cells",
]
