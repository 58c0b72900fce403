"""AnnData and MuData in and out: checks, conditions, plain forms for saving."""

from ._anndata import JOIN, PROVENANCE_KEY, build_anndata, join_labels, synthetic_names
from ._checks import check_conditions, check_expression, check_same_genes, is_whole_number, known_names
from ._condition_extension import extend_key, occurring, recode
from ._condition_field import ConditionField, encode_obs, keys_of_state
from ._condition_keys import OPEN, CategoricalKey, ConditionKey, ContinuousKey, SetKey
from ._condition_setup import ConditionSetup, extended_table
from ._conditions import ConditionRequest, Conditions, categorical_keys, is_single
from ._gene_padding import pad_genes
from ._mudata import (
    JOINED,
    ModalitiesField,
    Modality,
    build_mudata,
    check_same_features,
    modalities_of,
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

__all__ = [
    "CategoricalKey",
    "ConditionField",
    "ConditionKey",
    "ConditionRequest",
    "ConditionSetup",
    "Conditions",
    "ContinuousKey",
    "JOIN",
    "JOINED",
    "MODALITY_LIKELIHOODS",
    "ModalitiesField",
    "Modality",
    "ModalityLikelihood",
    "OPEN",
    "PROVENANCE_KEY",
    "RegisteredCells",
    "SetKey",
    "build_anndata",
    "build_mudata",
    "categorical_keys",
    "check_condition_columns",
    "check_conditions",
    "check_expression",
    "check_is_mudata",
    "check_same_features",
    "check_same_genes",
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
    "occurring",
    "pad_genes",
    "recode",
    "modalities_of",
    "resolve_layers",
    "resolve_modalities",
    "synthetic_names",
    "to_plain",
]
