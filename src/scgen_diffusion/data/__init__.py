"""AnnData, MuData and files of cells: checks, conditions, and plain values for saving."""

from ._anndata_file import open_anndata_files
from ._cell_files import CellFiles, ComparedFiles, Paths, ReadTables, check_same_registry
from ._checks import (
    LARGEST_COUNT,
    LARGEST_LOG1P,
    are_whole_numbers,
    check_expression,
    check_is_anndata,
    check_layer,
    check_names,
    check_natural_logarithms,
    check_not_empty,
    check_rows,
    check_unique_names,
    check_values,
    layer_names,
    layer_of,
    make_indexable,
    obs_column,
    resolve_seed,
    row_numbers,
    values_in,
)
from ._condition_keys import (
    CategoricalKey,
    ConditionKey,
    ContinuousKey,
    SetKey,
    are_same_codes,
    have_labels,
    mark_occurring,
    recode,
    with_columns,
)
from ._condition_setup import (
    SEPARATOR,
    ConditionField,
    ConditionSetup,
    encode_conditions,
    expression_state,
    extend_tables,
    registered_genes,
    registered_keys,
)
from ._conditions import (
    FEWEST_TRAINING_CELLS,
    OPEN,
    ConditionRequest,
    Conditions,
    RequestedCodes,
    check_order,
)
from ._fold_changes import plant_fold_changes
from ._gene_names import check_same_genes, pad_genes
from ._generated import OF_CONTROL, PROVENANCE_KEY, build_anndata, build_mudata, drop_unused_categories
from ._labels import JOIN, NO_LABEL, as_label, as_labels, join_labels
from ._matrices import Rows, check_storage, check_structure, read_rows, stack_rows, to_csr
from ._mudata import (
    JOINED,
    ModalitiesField,
    Modality,
    ModalityLikelihood,
    check_is_mudata,
    check_modalities,
    check_same_features,
    join_expression,
    modalities_of,
    mudata_of,
    resolve_modalities,
)
from ._parts import join_parts, part_of, read_record
from ._plain import digest_of, savable_columns, to_array, to_plain, to_table
from ._registered_cells import GivenCells, RegisteredCells, evenly

__all__ = [
    "CategoricalKey",
    "CellFiles",
    "ConditionField",
    "ConditionKey",
    "ConditionRequest",
    "ConditionSetup",
    "Conditions",
    "ContinuousKey",
    "Modality",
    "RegisteredCells",
    "SetKey",
    "build_anndata",
    "build_mudata",
    "plant_fold_changes",
]


def __dir__() -> list[str]:
    return sorted(__all__)
