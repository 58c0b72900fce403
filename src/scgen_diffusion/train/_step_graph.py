"""Record the work of a training step on a CUDA GPU once and replay it, as the GPU waits for Python otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

N_WARM_UPS = 3  # steps before recording, in which libraries choose their kernels


class StepGraph:
    """A CUDA graph of a step's losses and gradients.

    A replay computes the same numbers as the step, also random ones, but the host launches one graph in place of a
    thousand kernels.

    Parameters
    ----------
    compute
        ``(batch, generator) -> losses``; ``"loss"`` is the one to differentiate. It must not ask the GPU for a value.
    parameters
        What the loss is differentiated by.
    batch
        A batch. Only batches of the same shapes can be replayed.
    generator
        Generator of the step's random numbers. It stays as it is.

    Attributes
    ----------
    generator
        Generator of the random numbers of replays, in the state of the given one. It can be seeded again in between.

    Raises
    ------
    RuntimeError
        If the step cannot be recorded.
    """

    def __init__(
        self,
        compute: Callable[[Mapping[str, Tensor], torch.Generator], dict[str, Tensor]],
        parameters: Sequence[Tensor],
        batch: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        self._batch = {name: values.clone() for name, values in batch.items()}
        self._parameters = list(parameters)
        self.generator = torch.Generator(generator.device)  # after a failed recording, it cannot be used any more
        start = generator.get_state()

        def step() -> tuple[dict[str, Tensor], Sequence[Tensor | None]]:
            losses = compute(self._batch, self.generator)
            return losses, torch.autograd.grad(losses["loss"], self._parameters, allow_unused=True)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(N_WARM_UPS):
                self.generator.set_state(start)
                step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self.generator)
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # other threads may load cells
            losses, self._gradients = step()
        self._losses = {name: loss.detach() for name, loss in losses.items()}
        self.generator.set_state(start)

    def fits(self, batch: Mapping[str, Tensor]) -> bool:
        """Return whether a batch has the shapes of the recorded one."""
        return all(values.shape == self._batch[name].shape for name, values in batch.items())

    def replay(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a batch, which the next replay overwrites."""
        for name, values in batch.items():
            self._batch[name].copy_(values, non_blocking=True)
        self._graph.replay()
        return self._losses

    def set_gradients(self) -> None:
        """Give the parameters the gradients of the last replay."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
