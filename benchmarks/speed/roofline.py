"""The arithmetic limit: what a step has to compute and to move, and how fast the device can do so.

``limit = max(matrix FLOPs / matrix rate, bytes / bandwidth)``. The FLOPs are those of matrix products, convolutions and attention, two for each multiply-add;
all other operators are bound by memory, and counted in bytes. Of these there are two:

- at least: each number that was there before the step (weights, optimiser's moments, cells) read once, and each that the step changes in place written once.
  A step that keeps all else in registers and caches would move no more;
- unfused: every operator reads its inputs from memory and writes its outputs there, as eager PyTorch does. An upper bound: caches spare some of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.speed.meters import clock, synchronise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

aten = torch.ops.aten

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
#: Side of the matrices whose product is timed, and numbers that are copied: well beyond the last cache.
MATRIX_SIDES = {"cpu": 2048, "cuda": 8192}
COPIED_NUMBERS = {"cpu": 1 << 26, "cuda": 1 << 30}
N_REPEATS = 5

#: Operators that look some rows up, and do not read the whole table.
LOOK_UPS = {
    aten.index.Tensor,
    aten.index_select.default,
    aten.embedding.default,
    aten.gather.default,
    aten.take.default,
}
#: Operators that make a tensor and touch no memory.
EMPTY = {aten.empty_like.default, aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default}


@dataclass(frozen=True)
class Work:
    """What one call of a step does."""

    flops: int
    least_bytes: int
    unfused_bytes: int

    def limit(self, rates: Rates, *, dtype: str = "float32") -> float:
        """Return the seconds that a perfect program takes on the device."""
        return max(self.flops / rates.flops_per_second[dtype], self.least_bytes / rates.bytes_per_second)

    def unfused_limit(self, rates: Rates, *, dtype: str = "float32") -> float:
        """Return the seconds that it takes if every operator goes through memory."""
        return max(self.flops / rates.flops_per_second[dtype], self.unfused_bytes / rates.bytes_per_second)


@dataclass(frozen=True)
class Rates:
    """What a device reached, with as many threads as the measurements beside it."""

    flops_per_second: dict[str, float]
    bytes_per_second: float

    @classmethod
    def measure(cls, device: str, dtypes: Sequence[str] = ("float32", "bf16")) -> Rates:
        """Time the product of large matrices, and a copy that no cache holds; the best of some."""
        kind = torch.device(device).type
        flops = {name: _matrix_rate(device, MATRIX_SIDES[kind], DTYPES[name]) for name in dtypes}
        return cls(flops, _bandwidth(device, COPIED_NUMBERS[kind]))


class WorkCounter(TorchDispatchMode):
    """Count FLOPs and bytes of all operators that run inside a ``with`` block, by torch's own formulas for the former."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.unfused_bytes = 0
        self._made: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice
        self._read: dict[int, tuple[torch.UntypedStorage, int]] = {}
        self._written: dict[int, torch.UntypedStorage] = {}

    @property
    def least_bytes(self) -> int:
        """Bytes of what was there before and was read, and of what was there before and was changed."""
        return sum(n_bytes for _, n_bytes in self._read.values()) + sum(s.nbytes() for s in self._written.values())

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count what it reads and writes."""
        kwargs = kwargs or {}
        if not operator.is_view and not _has_kernel(operator):
            with self:  # in inference mode some operators arrive here that are made of others
                parts = operator.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = operator(*args, **kwargs)
        if operator in EMPTY:
            self._made[result.untyped_storage()._cdata] = result.untyped_storage()
        if operator in EMPTY or operator in VIEWS or operator.is_view:
            return result
        if operator._overloadpacket in FLOPS:
            self.flops += FLOPS[operator._overloadpacket](*args, **kwargs, out_val=result)
        self._count_bytes(operator, args, kwargs, _tensors(result))
        return result

    def _count_bytes(
        self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Sequence[Tensor]
    ) -> None:
        inputs, changed = _inputs_of(operator, args, kwargs)
        if operator in LOOK_UPS:
            looked_up, *others = inputs
            n_looked_up = sum(tensor.nbytes for tensor in outputs)
            self._reads(looked_up, min(n_looked_up, looked_up.nbytes))
        else:
            others = inputs
        for tensor in others:
            self._reads(tensor, _n_bytes(tensor))
        in_place = {tensor.untyped_storage()._cdata for tensor in changed}
        for tensor in changed:
            self._writes(tensor, is_new=False)
        for tensor in outputs:
            if tensor.untyped_storage()._cdata not in in_place:
                self._writes(tensor, is_new=True)

    def _reads(self, tensor: Tensor, n_bytes: int) -> None:
        storage = tensor.untyped_storage()
        self.unfused_bytes += n_bytes
        if storage._cdata in self._made:
            return
        _, before = self._read.get(storage._cdata, (storage, 0))
        self._read[storage._cdata] = storage, min(before + n_bytes, storage.nbytes())

    def _writes(self, tensor: Tensor, *, is_new: bool) -> None:
        storage = tensor.untyped_storage()
        self.unfused_bytes += _n_bytes(tensor)
        if storage._cdata not in self._made:
            (self._made if is_new else self._written)[storage._cdata] = storage


def count_work(step: Callable[[], object]) -> Work:
    """Run ``step`` once, eagerly, and count what it computes and moves."""
    with WorkCounter() as counter:
        step()
    return Work(counter.flops, counter.least_bytes, counter.unfused_bytes)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


#: Formulas by operator: torch's, and those of attention on a CPU, which torch's own counter does not know.
FLOPS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    **flop_registry,
}


def _has_kernel(operator: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CPU")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _inputs_of(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """List the tensors that an operator reads, and those that it changes (which it reads too, unless it is told to fill an ``out``)."""
    inputs, changed = [], []
    for number, argument in enumerate(operator._schema.arguments):
        value = kwargs.get(argument.name) if argument.kwarg_only or number >= len(args) else args[number]
        tensors = _tensors(value)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        changed += tensors if writes else []
        inputs += [] if writes and (argument.is_out or operator in FILLS) else tensors
    return inputs, changed


#: Views that do not say so.
VIEWS = {aten._unsafe_view.default}
#: Operators that change a tensor without reading it.
FILLS = {
    aten.fill_.Scalar,
    aten.fill_.Tensor,
    aten.zero_.default,
    aten.copy_.default,
    aten.normal_.default,
    aten.uniform_.default,
}


def _n_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor's numbers take, those of a repeated one once."""
    if tensor.layout != torch.strided:
        return tensor.values().nbytes
    repeated = math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride == 0 and size
    )
    return tensor.nbytes // max(repeated, 1)


def _matrix_rate(device: str, side: int, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)  # numbers of zeros alone would flatter some devices
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    return 2 * side**3 / _best_seconds(lambda: a @ b, device)


def _bandwidth(device: str, n_numbers: int) -> float:
    source = torch.ones(n_numbers, device=device)
    goal = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: goal.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: str) -> float:
    work()
    best = math.inf
    for _ in range(N_REPEATS):
        synchronise(device)
        started = clock(device)
        work()
        synchronise(device)
        best = min(best, clock(device) - started)
    return best
