"""Cells that lie where they are trained on: sparse in the device's memory, made dense batch by batch there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ._transfer import sent_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

DEVICE_SHARE = 0.25  # of a GPU's free memory
BYTES_PER_COUNT = 8  # number of the gene, and value


class ResidentCells(Dataset):
    """Rows of sparse expression, and of whatever else belongs to a cell, in a device's memory.

    A batch costs its non-zero values alone, and neither copies from the host nor makes it wait: how many values a row has is known there.

    Parameters
    ----------
    expression_key
        Name of the expression in a batch.
    lengths
        Number of non-zero values of each cell, ``(cells,)``, in the host's memory.
    genes, values
        Their genes and themselves, cell by cell.
    n_genes
        Size of the panel.
    others
        What else a batch holds, one row per cell.
    """

    def __init__(
        self,
        expression_key: str,
        lengths: Tensor,
        genes: Tensor,
        values: Tensor,
        n_genes: int,
        others: Mapping[str, Tensor],
    ) -> None:
        self.expression_key, self.n_genes = expression_key, n_genes
        self.lengths, self.genes, self.values, self.others = lengths, genes, values, dict(others)
        self.starts = (lengths.cumsum(0) - lengths).to(values.device)

    @classmethod
    def of(
        cls,
        batches: Iterable[Mapping[str, Tensor]],
        expression_key: str,
        device: torch.device,
        *,
        n_cells: int,
        limit: float,
    ) -> ResidentCells | None:
        """Read all batches once and keep them on ``device``; None as soon as they seem to need more than ``limit`` bytes there."""
        lengths, genes, values, others, n_bytes, n_read = [], [], [], [], 0, 0
        for batch in batches:
            x = batch[expression_key]
            rows, columns = x.nonzero(as_tuple=True)
            n_bytes, n_read = n_bytes + BYTES_PER_COUNT * len(rows), n_read + len(x)
            if n_bytes > limit or n_bytes / n_read * n_cells > 2 * limit:
                return None
            lengths.append(torch.bincount(rows, minlength=len(x)))
            genes.append(columns.int().to(device))
            values.append(x[rows, columns].to(device))
            others.append({name: rest.to(device) for name, rest in batch.items() if name != expression_key})
        joined = {name: torch.cat([part[name] for part in others]) for name in others[0]}
        return cls(expression_key, torch.cat(lengths), torch.cat(genes), torch.cat(values), x.shape[1], joined)

    def free(self) -> None:
        """Let go of the cells; there is no reading them any more."""
        self.genes, self.values, self.others = self.genes[:0].clone(), self.values[:0].clone(), {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        chosen = torch.as_tensor(rows)
        lengths = self.lengths[chosen]
        n_values, device = int(lengths.sum()), self.values.device  # of the host's: nobody waits
        chosen, lengths = sent_to(torch.stack([chosen, lengths]), device)
        cells = torch.repeat_interleave(lengths, output_size=n_values)
        first = lengths.cumsum(0) - lengths
        places = torch.arange(n_values, device=device) + (self.starts[chosen] - first)[cells]
        x = torch.zeros(len(chosen), self.n_genes, dtype=self.values.dtype, device=device)
        x[cells, self.genes[places].long()] = self.values[places]
        return {self.expression_key: x, **{name: rest[chosen] for name, rest in self.others.items()}}


def room_for_cells(device: torch.device) -> float:
    """Return how many bytes of a device's memory cells may take: none on a CPU, where they are already."""
    return DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0.0
