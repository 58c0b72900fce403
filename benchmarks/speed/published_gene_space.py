"""Plain re-implementations of the published scRDiT and white-box diffusion transformer, for the speed benchmark.

Written from the papers' equations, without the package's optimisations: float32, eager, attention with its weights in
memory. One unconditional model per cell type. Submodules have the names of the published weights, so that these can be
loaded and the outputs compared.

References
----------
scRDiT: arXiv 2404.06153. White-Box Diffusion Transformer: arXiv 2411.06785.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed.published import TimeEmbedder, sin_cos_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

N_TIMESTEPS = 1_000
STEP_SIZE, THRESHOLD = 0.1, 0.1  # eta and lambda of the white-box block

#: The timesteps of the samplers; a step between two evaluates the network at the first.
DDPM_TIMESTEPS = tuple(range(N_TIMESTEPS - 1, -1, -1))
DDIM_TIMESTEPS = (*range(990, 0, -10), 1, 0)


class Attention(nn.Module):
    """Multi-head attention whose weights are held in memory."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(attend(query, key, value))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class SubspaceAttention(nn.Module):
    """White-box attention: one projection without bias is query, key and value."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        projected = self.qkv(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return self.to_out(attend(projected, projected, projected))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with the whole matrix of weights in memory; ``(cells, heads, tokens, width / heads)`` each."""
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """Two linear maps around a tanh-approximated GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ShrinkageStep(nn.Module):
    r"""White-box feed-forward half, :math:`\operatorname{relu}(z + \eta (D^\top z - D^\top D z) - \eta \lambda)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, z: Tensor) -> Tensor:
        correlated = F.linear(z, self.weight.t())
        explained = F.linear(F.linear(z, self.weight), self.weight.t())
        return F.relu(z + STEP_SIZE * (correlated - explained) - STEP_SIZE * THRESHOLD)


class Block(nn.Module):
    """adaLN-zero block; its six chunks are shift, scale and gate, twice."""

    def __init__(self, width: int, n_heads: int, *, white_box: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = (SubspaceAttention if white_box else Attention)(width, n_heads)
        self.mlp = (ShrinkageStep if white_box else MLP)(width)
        self.adaLN_modulation = zero_modulation(width, 6)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(context)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.attn(self.norm(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)


class FinalLayer(nn.Module):
    """Modulated map back to patches; starts at zero."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.adaLN_modulation = zero_modulation(width, 2)
        self.linear = nn.Linear(width, patch_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(context)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


def zero_modulation(width: int, n_chunks: int) -> nn.Sequential:
    """Build SiLU and a linear map that starts at zero."""
    linear = nn.Linear(width, n_chunks * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


class GenePatches(nn.Module):
    """Patches of genes to tokens."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.unflatten(1, (-1, self.patch_size)))


class NoisePredictor(nn.Module):
    """The diffusion transformer over gene patches, which predicts the noise; published sizes by default."""

    def __init__(
        self,
        n_genes: int,
        *,
        patch_size: int = 10,
        width: int = 768,
        n_layers: int = 3,
        n_heads: int = 8,
        white_box: bool = False,
    ) -> None:
        super().__init__()
        self.x_embedder = GenePatches(patch_size, width)
        self.pos_embed = nn.Parameter(patch_positions(n_genes // patch_size, width)[None], requires_grad=False)
        self.t_embedder = TimeEmbedder(width)
        self.blocks = nn.ModuleList(Block(width, n_heads, white_box=white_box) for _ in range(n_layers))
        self.final_layer = FinalLayer(width, patch_size)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        context = self.t_embedder(t)
        x = self.x_embedder(x_t) + self.pos_embed
        for block in self.blocks:
            x = block(x, context)
        return self.final_layer(x, context).flatten(1)


def patch_positions(n_patches: int, width: int) -> Tensor:
    """Return the embedding of a column that is always 0, then that of the patch's number, ``(patches, width)``."""
    columns = sin_cos_positions(1, width // 2).expand(n_patches, -1)
    return torch.cat([columns, sin_cos_positions(n_patches, width // 2)], dim=-1)


class Diffusion:
    """Linear noise schedule, its loss, and the two samplers."""

    def __init__(self, device: str = "cpu") -> None:
        self.beta = torch.linspace(1e-4, 0.02, N_TIMESTEPS, device=device)
        self.alpha_bar = (1 - self.beta).cumprod(0)

    def noised(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mix data and noise, ``(cells, genes)``, at timesteps ``(cells,)``."""
        alpha_bar = self.alpha_bar[t][:, None]
        return alpha_bar.sqrt() * data + (1 - alpha_bar).sqrt() * noise

    def loss(self, network: nn.Module, data: Tensor) -> Tensor:
        """Return the mean squared error of the noise at random timesteps from 1 to 999."""
        noise, t = torch.randn_like(data), torch.randint(1, N_TIMESTEPS, (len(data),), device=data.device)
        return F.mse_loss(network(self.noised(data, noise, t), t), noise)

    def ddpm(self, network: nn.Module, x: Tensor, timesteps: Sequence[int] = DDPM_TIMESTEPS) -> Tensor:
        """Sample by ancestral steps, one for each timestep but the last."""
        for t in timesteps[:-1]:
            predicted, beta = network(x, x.new_full((len(x),), t)), self.beta[t]
            mean = (x - beta / (1 - self.alpha_bar[t]).sqrt() * predicted) / (1 - beta).sqrt()
            x = mean + beta.sqrt() * torch.randn_like(x) if t > 1 else mean
        return x

    def ddim(
        self, network: nn.Module, x: Tensor, timesteps: Sequence[int] = DDIM_TIMESTEPS, *, eta: float = 1.0
    ) -> Tensor:
        """Sample by steps between the timesteps."""
        for t, following in zip(timesteps[:-1], timesteps[1:], strict=True):
            predicted, now, later = network(x, x.new_full((len(x),), t)), self.alpha_bar[t], self.alpha_bar[following]
            std = eta * ((1 - later) / (1 - now) * (1 - now / later)).sqrt()
            data = (x - (1 - now).sqrt() * predicted) / now.sqrt()
            x = later.sqrt() * data + (1 - later - std.square()).sqrt() * predicted + std * torch.randn_like(x)
        return x
