"""A plain re-implementation of the published scLDM: the reference of the speed benchmark.

Written from the paper's equations, without the package's optimisations: float32, attention with its weights in memory,
gene queries projected once per cell, padding not masked, and a prior that encodes every batch again. Submodules have
the names of the published weights, so that these can be loaded and the outputs compared.

References
----------
scLDM: arXiv 2511.02986.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torchdiffeq import odeint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LAYER_NORM_EPS = 1e-8
ODE_TOLERANCE = 1e-5
N_TIME_FREQUENCIES = 256


class SwiGLU(nn.Module):
    """``W3(silu(W1 x) * W2 x)`` with the hidden width two thirds of four times the width."""

    def __init__(self, width: int, multiple_of: int = 4) -> None:
        super().__init__()
        hidden = math.ceil(int(8 * width / 3) / multiple_of) * multiple_of
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(width, hidden, bias=False)
        self.c_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.silu(self.w1(x)) * self.w2(x))


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, n_heads: int) -> Tensor:
    """Attend with the whole matrix of weights in memory, ``(cells, tokens, width)`` each."""
    query, key, value = (x.unflatten(-1, (n_heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(dim=-1)  # (cells, heads, queries, tokens)
    return (weights @ value).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention among tokens, one matrix for queries, keys and values."""

    def __init__(self, width: int, n_heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(softmax_attention(*self.c_attn(x).chunk(3, dim=-1), self.n_heads))


class CrossAttention(nn.Module):
    """Attention of queries to tokens."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.c_attn = nn.Linear(width, 2 * width, bias=False)
        self.c_attn_q = nn.Linear(width, width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        return self.c_proj(
            softmax_attention(self.c_attn_q(queries), *self.c_attn(tokens).chunk(2, dim=-1), self.n_heads)
        )


class Block(nn.Module):
    """Pre-norm self-attention and SwiGLU."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(width, n_heads)
        self.mlp = SwiGLU(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CrossBlock(nn.Module):
    """Multi-head cross-attention block (MCAB); with ``n_queries`` it brings its own learned queries."""

    def __init__(self, width: int, n_heads: int, n_queries: int | None = None) -> None:
        super().__init__()
        self.ln_1q = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = CrossAttention(width, n_heads)
        self.mlp = SwiGLU(width)
        if n_queries is not None:
            self.inducing_points = nn.Parameter(torch.randn(n_queries, width) * 0.02)

    def forward(self, tokens: Tensor, queries: Tensor | None = None) -> Tensor:
        """Update ``queries`` (the learned ones if none are given) from ``tokens``, both ``(cells, ..., width)``."""
        if queries is None:
            queries = self.inducing_points.expand(len(tokens), -1, -1)
        queries = queries + self.attn(self.ln_1q(queries), self.ln_1(tokens))
        return queries + self.mlp(self.ln_2(queries))


class Encoder(nn.Module):
    """From gene tokens to normalised latent tokens."""

    def __init__(
        self, width: int, n_tokens: int, n_latent: int, n_layers: int, n_heads: int, n_heads_cross: int
    ) -> None:
        super().__init__()
        self.ca_layer = CrossBlock(width, n_heads_cross, n_tokens)
        self.encoder_layers = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        norm = nn.LayerNorm(n_latent, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.encoder_latent_input = nn.Sequential(nn.Linear(width, n_latent, bias=False), norm)

    def forward(self, gene_tokens: Tensor) -> Tensor:
        tokens = self.ca_layer(gene_tokens)
        for layer in self.encoder_layers:
            tokens = layer(tokens)
        return self.encoder_latent_input(tokens)


class Decoder(nn.Module):
    """From latent tokens to one vector per gene query."""

    def __init__(self, width: int, n_latent: int, n_layers: int, n_heads: int, n_heads_cross: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(n_latent, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.decoder_latent_input = nn.Sequential(norm, nn.Linear(n_latent, width, bias=False))
        self.decoder_layers = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.decoder_cross_attention = CrossBlock(width, n_heads_cross)

    def forward(self, z: Tensor, gene_queries: Tensor) -> Tensor:
        tokens = self.decoder_latent_input(z)
        for layer in self.decoder_layers:
            tokens = layer(tokens)
        return self.decoder_cross_attention(tokens, gene_queries)


class Autoencoder(nn.Module):
    """The set autoencoder with a negative-binomial head and one dispersion per gene; published sizes by default.

    Genes are 1-based, and 0 pads; they and their counts are ``(cells, expressed)``.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        width: int = 32,
        n_tokens: int = 16,
        n_latent: int = 16,
        n_layers: int = 8,
        n_heads: int = 8,
        n_heads_cross: int = 4,
    ) -> None:
        super().__init__()
        self.input_layer = nn.ModuleDict({"gene_embedding": nn.Embedding(n_genes + 1, width)})
        self.encoder = Encoder(width, n_tokens, n_latent, n_layers, n_heads, n_heads_cross)
        self.decoder = Decoder(width, n_latent, n_layers, n_heads, n_heads_cross)
        self.decoder_head = nn.ModuleDict({"params": nn.Linear(width, 1), "theta": nn.Embedding(n_genes + 1, 1)})
        nn.init.ones_(self.decoder_head["theta"].weight)

    def encode(self, genes: Tensor, counts: Tensor) -> Tensor:
        return self.encoder(self.input_layer["gene_embedding"](genes) * counts.log1p()[..., None])

    def decode(self, z: Tensor, library_size: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and inverse dispersion of all genes, ``(cells, genes)``; ``library_size`` is ``(cells, 1)``."""
        n_genes = self.input_layer["gene_embedding"].num_embeddings - 1
        genes = torch.arange(1, n_genes + 1, device=z.device).expand(len(z), -1)
        decoded = self.decoder(z, self.input_layer["gene_embedding"](genes))
        share = self.decoder_head["params"](decoded).squeeze(-1).softmax(dim=-1)
        return share * library_size, self.decoder_head["theta"](genes).squeeze(-1).exp()

    def loss(self, genes: Tensor, expressed_counts: Tensor, counts: Tensor) -> Tensor:
        """Return the negative log-likelihood per cell; ``counts`` is ``(cells, all genes)``."""
        mean, theta = self.decode(self.encode(genes, expressed_counts), counts.sum(dim=1, keepdim=True))
        return -negative_binomial_log_likelihood(counts, mean, theta).sum(dim=1)


def negative_binomial_log_likelihood(counts: Tensor, mean: Tensor, theta: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the log-likelihood per cell and gene."""
    log_total = (theta + mean + eps).log()
    return (
        theta * ((theta + eps).log() - log_total)
        + counts * ((mean + eps).log() - log_total)
        + torch.lgamma(counts + theta)
        - torch.lgamma(theta)
        - torch.lgamma(counts + 1)
    )


class ModulatedBlock(nn.Module):
    """DiT block; its six chunks are scale, shift and gate, twice."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(width, n_heads, bias=True)
        self.mlp = SwiGLU(width)
        self.adaln_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        nn.init.zeros_(self.adaln_modulation[1].weight)
        nn.init.zeros_(self.adaln_modulation[1].bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = self.adaln_modulation(context)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.attn(self.ln(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.ln(x) * (1 + scale_m) + shift_m)


class FinalLayer(nn.Module):
    """Modulated output; its two chunks are shift and scale."""

    def __init__(self, width: int, n_latent: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.adaln_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, n_latent)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        shift, scale = self.adaln_modulation(context)[:, None].chunk(2, dim=-1)
        return self.linear(self.ln(x) * (1 + scale) + shift)


class TimeEmbedder(nn.Module):
    """Cosines and sines of the raw time in [0, 1], then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(N_TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = N_TIME_FREQUENCIES // 2
        angles = t[:, None] * torch.exp(-math.log(1e4) / half * torch.arange(half, device=t.device))
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Prior(nn.Module):
    """The diffusion transformer over latent tokens, trained as a flow along straight lines; published sizes by default.

    `n_classes` are those of each condition; index ``n_classes[key]`` means none.
    """

    def __init__(
        self,
        n_classes: Mapping[str, int],
        *,
        n_tokens: int = 16,
        n_latent: int = 16,
        width: int = 256,
        n_layers: int = 8,
        n_heads: int = 8,
    ) -> None:
        super().__init__()
        self.input_proj = nn.Linear(n_latent, width)
        self.pos_embed = nn.Parameter(sin_cos_positions(n_tokens, width)[None], requires_grad=False)
        self.t_embedder = TimeEmbedder(width)
        self.class_embeddings = nn.ModuleDict({key: nn.Embedding(n + 1, width) for key, n in n_classes.items()})
        self.blocks = nn.ModuleList(ModulatedBlock(width, n_heads) for _ in range(n_layers))
        self.final_layer = FinalLayer(width, n_latent)

    def forward(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        context = self.t_embedder(t) + sum(embed(condition[key]) for key, embed in self.class_embeddings.items())
        x = self.input_proj(x_t) + self.pos_embed
        for block in self.blocks:
            x = block(x, context)
        return self.final_layer(x, context)

    def loss(self, z: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared error of the velocity at random times."""
        noise, t = torch.randn_like(z), torch.rand(len(z), device=z.device)
        x_t = t[:, None, None] * z + (1 - t[:, None, None]) * noise
        return F.mse_loss(self(x_t, t, condition), z - noise)

    def sample(self, noise: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Carry ``noise`` to latents by dopri5."""
        times = torch.tensor([0.0, 1.0], device=noise.device)
        path = odeint(
            lambda t, x: self(x, t.expand(len(x)), condition),
            noise,
            times,
            rtol=ODE_TOLERANCE,
            atol=ODE_TOLERANCE,
            method="dopri5",
        )
        return path[-1]


def sin_cos_positions(n_tokens: int, width: int) -> Tensor:
    """Return fixed position embeddings, sines in the first half, ``(n_tokens, width)``."""
    frequencies = 1e4 ** -(torch.arange(width // 2) / (width // 2))
    angles = torch.arange(n_tokens)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
