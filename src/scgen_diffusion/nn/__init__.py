"""Layers and networks, shared by all models."""

from ._condition_embedding import (
    Classes,
    ConditionEmbedding,
    ConditionEncoding,
    Members,
    Number,
    classes_are_given,
    extended_state,
    keys_of_columns,
    null_condition,
    row_masks,
)
from ._expression import TARGET_SUM, InputValues, log_profile, total_counts
from ._gene_networks import GeneDiT, GeneMLP
from ._sets import AttentionPooling, FactorPooling, GeneFactorDecoder, GeneQueryDecoder, expressed_genes
from ._transformer import (
    LAYER_NORM_EPS,
    MLP,
    BlockTrace,
    DiT,
    HalfTrace,
    ModulatedBlock,
    SelfAttention,
    SwiGLU,
    TimeEmbedding,
)
from ._unet import GeneUNet
from ._white_box import SparseCoding, SubspaceAttention, coding_rate, sparsity, subspace_coding_rate

__all__ = [
    "MLP",
    "BlockTrace",
    "Classes",
    "ConditionEmbedding",
    "DiT",
    "GeneDiT",
    "GeneMLP",
    "GeneUNet",
    "HalfTrace",
    "Members",
    "ModulatedBlock",
    "Number",
    "SelfAttention",
    "SparseCoding",
    "SubspaceAttention",
    "TimeEmbedding",
    "coding_rate",
    "keys_of_columns",
    "null_condition",
    "sparsity",
    "subspace_coding_rate",
]
