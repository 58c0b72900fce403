"""What a stage takes from a checkpoint, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from scgen_diffusion.diffusion import sample_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ResumedState:
    """Random numbers of a checkpoint, which go on where a device of the same kind draws them, and where in which order of cells it is."""

    device: str
    generator_state: Tensor
    epoch: int
    n_batches: int = 0
    order: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> Self:
        """Take what a checkpoint holds."""
        epoch, n_batches = checkpoint["position"]
        state = checkpoint["generator_state"].cpu()
        return cls(checkpoint["generator_device"], state, epoch, n_batches, checkpoint.get("order", {}))

    def check_same_order(self, stage: str, found: Mapping[str, Any]) -> None:
        """Raise if an epoch was begun with its cells in another order: some would come twice, and others never.

        Raises
        ------
        ValueError
            If what the order depends on differs.
        """
        names = sorted({*self.order, *found})
        differing = [name for name in names if self.order.get(name) != found.get(name)]
        if self.n_batches == 0 or not differing:
            return
        found_there = ", ".join(f"`{name}` of {self.order.get(name)!r}, not {found.get(name)!r}" for name in differing)
        msg = (
            f"The checkpoint of the {stage} is in the middle of an epoch, whose cells came in an order of {found_there} (None: it has no part "
            "in the order); go on with the same, at least to the end of an epoch, or use another `checkpoint_dir`."
        )
        raise ValueError(msg)

    def continue_with(self, generator: torch.Generator) -> None:
        """Set a generator to where the checkpoint left off; on a device of another kind, to numbers that it has not drawn yet."""
        if generator.device.type == self.device:
            generator.set_state(self.generator_state)
        else:
            generator.manual_seed(sample_seed(generator.initial_seed(), 1 + self.epoch))


def check_same_options(stage: str, made_with: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint was made with the recipe that goes on from it.

    Raises
    ------
    ValueError
        If an option differs. Of the batch size, what counts are the cells of all processes together.
    """
    differing = [name for name in found if made_with.get(name) != found[name]]
    if not differing:
        return
    found_there = ", ".join(f"`{name}` of {made_with.get(name)!r}, not {found[name]!r}" for name in differing)
    msg = f"The checkpoint of the {stage} was made with {found_there}; go on with the same, or use another `checkpoint_dir`."
    if "batch_size" in differing:
        msg += " (Of the batch size, the cells of all processes together count.)"
    raise ValueError(msg)
