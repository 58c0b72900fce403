"""Layers and networks, shared by all models."""

from ._attention import CrossAttention, SelfAttention
from ._blocks import (
    LAYER_NORM_EPS,
    BlockTrace,
    CrossAttentionBlock,
    HalfTrace,
    ModulatedBlock,
    TransformerBlock,
    modulate,
)
from ._coding_rate import coding_rate, sparsity, subspace_coding_rate
from ._condition_effects import ConditionEffects
from ._condition_transfer import extended_state, row_masks
from ._conditions import (
    Classes,
    ConditionEmbedding,
    ConditionEncoding,
    ConditionSpec,
    Members,
    Number,
    classes_are_given,
    encodings_of,
    keys_of_columns,
    null_condition,
)
from ._dit import DiT
from ._embeddings import TimeEmbedding, patch_position_embedding, position_embedding
from ._feed_forward import MLP, SwiGLU
from ._gene_dit import GeneDiT
from ._gene_mlp import GeneMLP
from ._pooling import AttentionPooling, FactorPooling, GeneSet, expressed_genes
from ._set_decoder import GeneFactorDecoder, GeneQueryDecoder
from ._set_encoder import SetEncoder
from ._unet import GeneUNet
from ._white_box import SparseCoding, SubspaceAttention

__all__ = [
    "LAYER_NORM_EPS",
    "MLP",
    "AttentionPooling",
    "BlockTrace",
    "Classes",
    "ConditionEffects",
    "ConditionEmbedding",
    "ConditionEncoding",
    "ConditionSpec",
    "CrossAttention",
    "CrossAttentionBlock",
    "DiT",
    "FactorPooling",
    "GeneDiT",
    "GeneFactorDecoder",
    "GeneMLP",
    "GeneQueryDecoder",
    "GeneSet",
    "GeneUNet",
    "HalfTrace",
    "Members",
    "ModulatedBlock",
    "Number",
    "SelfAttention",
    "SetEncoder",
    "SparseCoding",
    "SubspaceAttention",
    "SwiGLU",
    "TimeEmbedding",
    "TransformerBlock",
    "classes_are_given",
    "coding_rate",
    "encodings_of",
    "expressed_genes",
    "extended_state",
    "keys_of_columns",
    "modulate",
    "null_condition",
    "patch_position_embedding",
    "position_embedding",
    "row_masks",
    "sparsity",
    "subspace_coding_rate",
]
