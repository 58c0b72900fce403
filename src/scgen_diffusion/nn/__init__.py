"""Layers and networks, shared by all models."""

from ._attention import CrossAttention, SelfAttention
from ._blocks import LAYER_NORM_EPS, CrossAttentionBlock, ModulatedBlock, TransformerBlock, modulate
from ._dit import DiT
from ._embeddings import ConditionEmbedding, TimeEmbedding, position_embedding
from ._feed_forward import SwiGLU
from ._pooling import AttentionPooling, FactorPooling, GeneSet, expressed_genes
from ._set_decoder import GeneFactorDecoder, GeneQueryDecoder
from ._set_encoder import SetEncoder

__all__ = [
    "LAYER_NORM_EPS",
    "AttentionPooling",
    "ConditionEmbedding",
    "CrossAttention",
    "CrossAttentionBlock",
    "DiT",
    "FactorPooling",
    "GeneFactorDecoder",
    "GeneQueryDecoder",
    "GeneSet",
    "ModulatedBlock",
    "SelfAttention",
    "SetEncoder",
    "SwiGLU",
    "TimeEmbedding",
    "TransformerBlock",
    "expressed_genes",
    "modulate",
    "position_embedding",
]
