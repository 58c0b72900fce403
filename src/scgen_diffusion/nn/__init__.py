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
from ._dit import DiT
from ._embeddings import ConditionEmbedding, TimeEmbedding, patch_position_embedding, position_embedding
from ._feed_forward import MLP, SwiGLU
from ._gene_dit import GeneDiT
from ._gene_layout import GeneLayout
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
    "ConditionEmbedding",
    "CrossAttention",
    "CrossAttentionBlock",
    "DiT",
    "FactorPooling",
    "GeneDiT",
    "GeneFactorDecoder",
    "GeneLayout",
    "GeneQueryDecoder",
    "GeneSet",
    "GeneUNet",
    "HalfTrace",
    "ModulatedBlock",
    "SelfAttention",
    "SetEncoder",
    "SparseCoding",
    "SubspaceAttention",
    "SwiGLU",
    "TimeEmbedding",
    "TransformerBlock",
    "coding_rate",
    "expressed_genes",
    "modulate",
    "patch_position_embedding",
    "position_embedding",
    "sparsity",
    "subspace_coding_rate",
]
