"""AnnData, MuData and files of cells: checks, conditions, and plain values for saving.

``__all__`` names what users call; the other imports are for the packages beside this one.
"""

from ._anndata import (
    JOIN,
    NO_LABEL,
    OF_CONTROL,
    PROVENANCE_KEY,
    SYNTHETIC,
    ValueSummary,
    as_label,
    as_labels,
    build_anndata,
    drop_unused_categories,
    join_labels,
    pad_genes,
    widen,
)
from ._anndata_file import Rows, open_anndata_files, stack_rows
from ._cell_files import CellFiles, ComparedFiles, Paths, ReadTables, check_same_registry, read_columns
from ._checks import (
    LARGEST_LOG1P,
    advice_on_raw,
    are_whole_numbers,
    check_distinct_columns,
    check_expression,
    check_is_anndata,
    check_layer,
    check_natural_logarithms,
    check_not_empty,
    check_one_modality,
    check_rows,
    check_same_genes,
    check_storage,
    check_unique_names,
    check_values,
    layer_names,
    layer_of,
    make_indexable,
    obs_column,
    resolve_seed,
    row_numbers,
)
from ._condition_keys import (
    OPEN,
    ArrayKey,
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
    check_conditions,
    check_names,
    encode_conditions,
    extend_tables,
    names_and_arrays,
    owner_of,
)
from ._conditions import (
    FEWEST_TRAINING_CELLS,
    ConditionRequest,
    Conditions,
    RequestedCodes,
    check_order,
    check_order_of_totals,
)
from ._fold_changes import plant_fold_changes
from ._mudata import (
    JOINED,
    ModalitiesField,
    Modality,
    ModalityLikelihood,
    build_mudata,
    check_is_mudata,
    check_modalities,
    check_same_features,
    join_expression,
    modalities_of,
    mudata_of,
    resolve_modalities,
)
from ._mudata_files import MuDataFiles
from ._plain import digest_of, savable_columns, to_array, to_plain, to_table
from ._registered_cells import GivenCells, RegisteredCells, evenly
from ._registry import expression_state, registered_genes, registered_keys
from ._streaming import check_cells_writable, check_writable, join_parts, part_of, read_record

__all__ = ["CellFiles", "MuDataFiles", "plant_fold_changes"]
