"""What modules over all genes share: a network that diffuses them, and the average of its weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch.optim.swa_utils import AveragedModel

from scgen_diffusion.nn import GeneDiT, GeneMLP, GeneUNet, total_counts

from ._conditioned import ConditionedModule
from ._library_size import LibrarySizeModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from scgen_diffusion.diffusion import Path
    from scgen_diffusion.nn import ConditionEncoding, InputValues

    from ._architecture import GeneSpaceArchitecture

N_PATCHES = 10
LARGEST_PATCH = 200


class GeneSpaceModule(ConditionedModule):
    """Diffusion over all genes of a cell, without latents. Subclasses say what diffuses.

    Parameters
    ----------
    n_input
        Number of genes.
    conditions
        Encoding of each condition key, see :class:`~scgen_diffusion.nn.ConditionEmbedding`.
    network
        A backbone with a head, and a path.
    architecture
        Sizes and parts.
    n_features
        Number of features that total counts follow from besides the condition.
    """

    input_values: InputValues = "counts"
    """Kind of values that cells have."""

    def __init__(
        self,
        n_input: int,
        conditions: Sequence[ConditionEncoding],
        network: nn.Module,
        architecture: GeneSpaceArchitecture,
        n_features: int,
    ) -> None:
        super().__init__(conditions)
        self.n_input, self.architecture = n_input, architecture
        self.network: Any = network
        self.averaged_network = AveragedModel(network).requires_grad_(requires_grad=False)
        self.library_size = LibrarySizeModel(conditions, n_features)

    @property
    def network_and_average(self) -> tuple[nn.Module, AveragedModel]:
        """The network, and the average of its weights."""
        return self.network, self.averaged_network

    @property
    def both_networks(self) -> tuple[Any, Any]:
        """The network, and the one with averaged weights."""
        return self.network, self.averaged_network.module

    @property
    def path(self) -> Path:
        """How data becomes noise."""
        return self.network.path

    @abstractmethod
    def start_from(self, batches: Iterable[Tensor]) -> None:
        """Initialise from training cells, batches of expression ``(cells, genes)`` that are read once."""

    @abstractmethod
    def whole_cells(self, x: Tensor) -> Tensor:
        """Return what the backbone sees of cells ``x (cells, genes)`` without noise, ``(cells, genes)``."""

    def start_reading(self, directions: Tensor) -> None:
        """Initialise what reads all genes as coordinates along ``directions (k, genes)``."""
        for network in self.both_networks:
            network.backbone.start_reading(directions)

    def gene_loadings(self) -> list[nn.Parameter]:
        """List the weight matrices with one row or column per gene."""
        return getattr(self.network.backbone, "gene_weights", [])

    def dispersions(self) -> list[nn.Parameter]:
        """List the parameters of the genes' dispersions, if there are any."""
        return [self.network.log_theta] if hasattr(self.network, "log_theta") else []

    # --- training, as scvi-tools calls it -----------------------------------------------------------------------------

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Tensor], **_: Any
    ) -> dict[str, Tensor]:
        return {"data": inference_outputs["data"]}

    @abstractmethod
    def draw_for_training(self, x: Tensor, generator: torch.Generator, *, training: bool) -> dict[str, Tensor]:
        """Draw times and noise for cells ``x (cells, genes)``: arguments of :meth:`generative`."""

    @auto_move_data
    def generative(
        self, data: Tensor, t: Tensor, condition: Tensor, *, averaged: bool = False, **drawn: Tensor
    ) -> dict[str, Tensor]:
        """Return each cell's error ``(cells,)`` in predicting the target from noised data, and its conditions.

        Parameters
        ----------
        data
            Data that diffuse, ``(cells, ...)``.
        t
            Times, ``(cells,)``.
        condition
            ``(cells, columns)``.
        averaged
            Whether to use the averaged weights.
        **drawn
            What else :meth:`draw_for_training` returns.
        """
        network = self.averaged_network.module if averaged else self.network
        return {"error": network.loss(data, t=t, condition=condition, **drawn), "condition": condition}

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: Mapping[str, Tensor],
        generative_outputs: Mapping[str, Tensor],
    ) -> LossOutput:
        """Return the mean error of the target, plus the loss of the total counts if there are any."""
        error = generative_outputs["error"]
        losses = {"denoising_loss": error.mean()}
        if self.input_values == "counts":
            log_totals = total_counts(tensors[REGISTRY_KEYS.X_KEY])[:, 0].log()
            condition, features = generative_outputs["condition"], inference_outputs["features"]
            losses["library_size_loss"] = self.library_size.loss(condition, features, log_totals).mean()
        return LossOutput(loss=sum(losses.values()), extra_metrics=losses, n_obs_minibatch=len(error))


def build_backbone(
    n_genes: int, conditions: Sequence[ConditionEncoding], a: GeneSpaceArchitecture, n_outputs: int
) -> nn.Module:
    """Build the network that an architecture names, without its head."""
    options: Any = a
    sizes = {"n_layers": a.n_layers, "n_outputs": n_outputs}
    if a.backbone == "mlp":
        return GeneMLP(n_genes, conditions, width=a.width or 256, n_axes=options.n_axes, **sizes)
    if a.backbone == "unet":
        return GeneUNet(n_genes, conditions, width=options.unet_width, n_outputs=n_outputs)
    return GeneDiT(
        n_genes,
        conditions,
        patch_size=a.patch_size or min(LARGEST_PATCH, -(-n_genes // N_PATCHES)),
        width=a.width or 128,
        n_heads=a.n_heads,
        block="white_box" if a.backbone == "white_box" else "transformer",
        n_global_tokens=a.n_global_tokens,
        **sizes,
    )
