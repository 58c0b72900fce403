"""What a trained autoencoder says about given cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor

from scgen_diffusion.data import row_numbers
from scgen_diffusion.diffusion import SampleGenerators

from ._blocks import rows_of, stack
from ._cells import CellsMixin
from ._diagnostics import check_finite
from ._request import resolve_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from anndata import AnnData

    from scgen_diffusion.data import CellFiles


class LatentMixin(CellsMixin):
    """Latents, reconstructions and likelihoods of cells."""

    trained_stages_: list[str]

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return the latent of each cell, the mean of its posterior.

        Parameters
        ----------
        adata
            Cells, in memory or :class:`~scgen_diffusion.data.CellFiles`; default: those of the model.
        indices
            Which of them; default: all.
        batch_size
            Cells encoded at a time.

        Returns
        -------
        numpy.ndarray
            ``(cells, n_latent_tokens * n_latent)``, tokens side by side.
        """
        batches = self._expression(adata, indices, batch_size)
        means = [self.module.inference(x)["posterior"].mean.flatten(1).float().cpu() for x, _ in batches]
        return torch.cat(means).numpy()

    @torch.inference_mode()
    def get_likelihood(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return the log-likelihood of each cell given the mean of its latent, summed over genes (of the modalities that it has).

        Parameters
        ----------
        adata
            Cells, in memory or :class:`~scgen_diffusion.data.CellFiles`; default: those of the model.
        indices
            Which of them; default: all.
        batch_size
            Cells encoded at a time.

        Returns
        -------
        numpy.ndarray
            ``(cells,)``, in nats.
        """
        module = self.module
        values = []
        for x, _ in self._expression(adata, indices, batch_size):
            decoded = module.generative(module.inference(x)["z"], module.totals(x))
            values.append(module.likelihood.log_likelihood(module.target(x), **decoded).cpu())
        return torch.cat(values).numpy()

    @torch.inference_mode()
    def get_reconstruction(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        sample: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Encode cells and decode them again, each with its own library size.

        From a model of MuData, all modalities come out, also those that a cell lacks, or that are absent altogether: they are
        predicted from those that it has, their library sizes included.

        Parameters
        ----------
        adata
            Cells; default: those of the model.
        indices
            Which of them; default: all.
        sample
            True: draw a latent from each cell's posterior, and a cell from the likelihood. False: expected values at the
            posterior mean.
        batch_size
            Cells at a time.
        seed
            Seed of the draws.

        Returns
        -------
        AnnData
            The cells with their ``obs``, aligned by row; MuData from a model of MuData.
        """
        seed = resolve_seed(seed)
        keep_dense = not sample or not self._generates_counts
        values = []
        for x, cells in self._expression(adata, indices, batch_size):
            values.append(rows_of(self._reconstruct(x, cells, seed if sample else None), sparse=not keep_dense))
            check_finite(values[-1])
        stacked = stack(values)
        source = self._validated(adata)
        obs = source.obs.iloc[row_numbers(indices, source.n_obs)]
        provenance = {"model": type(self).__name__, "reconstruction": "sampled" if sample else "mean", "seed": seed}
        return self._assemble(stacked, obs.copy(), provenance, is_log1p=not self._generates_counts)

    def _reconstruct(self, x: Tensor, cells: np.ndarray, seed: int | None) -> Tensor:
        module = self.module
        posterior = module.inference(x)["posterior"]
        if seed is None:
            totals = module.decoding_totals(x, posterior.mean, None)
            return module.likelihood.mean(**module.generative(posterior.mean, totals))
        generators = SampleGenerators(seed, cells.tolist(), x.device)
        z = posterior.draw(generators.normal(*module.latent_shape))
        return module.draw_cells(z, module.decoding_totals(x, z, generators), generators)

    def _expression(
        self, adata: AnnData | CellFiles | None, indices: Sequence[int] | None, batch_size: int | None
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield expression on the model's device, and the cells' row numbers."""
        return ((tensors[REGISTRY_KEYS.X_KEY], rows) for tensors, rows in self._batches(adata, indices, batch_size))

    def _check_can_read_cells(self) -> None:
        if "autoencoder" not in self.trained_stages_:
            msg = "The autoencoder is not trained; call train() or train_autoencoder() first."
            raise RuntimeError(msg)
