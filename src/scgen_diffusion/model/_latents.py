"""What a trained autoencoder says about given cells: latents and likelihoods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi import REGISTRY_KEYS

from scgen_diffusion.data import resolve_seed
from scgen_diffusion.diffusion import Generators

from ._cells import CellsMixin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.data import CellFiles


class LatentMixin(CellsMixin):
    """Latents and likelihoods of cells."""

    trained_stages_: list[str]

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | None = None,
        *,
        give_mean: bool = True,
        return_dist: bool = False,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the latent of each cell, as scvi-tools does.

        Parameters
        ----------
        adata
            Cells, in memory or :class:`~scgen_diffusion.data.CellFiles`; default: those of the model.
        indices
            Which of them; default: all.
        give_mean
            True: the mean of the cell's posterior. False: one draw from it.
        return_dist
            Whether to return mean and variance of the posterior instead. ``give_mean`` is then without effect.
        batch_size
            Cells encoded at a time. Does not change the draws.
        seed
            Seed of the draws; default ``scvi.settings.seed``, or else a random one.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            ``(cells, n_latent_tokens * n_latent)``, tokens side by side; with ``return_dist`` means and variances, each of this
            shape. With ``latent="deterministic"`` the latent is one point: variances are zero, and a draw is the mean.

        Raises
        ------
        KeyError
            For cells without the layer or a condition column of the training.
        RuntimeError
            If the autoencoder is not trained.
        ValueError
            For other genes, values that are not what the model learned from, and unknown conditions.
        """
        seed = resolve_seed(seed)
        parts = []
        for x, rows in self._expression(adata, indices, batch_size):
            posterior = self.module.inference(x)["posterior"]
            if return_dist:
                values = torch.stack([posterior.mean, posterior.std.square()])
            else:
                values = (posterior.mean if give_mean else posterior.draw(self._noise(rows, seed)))[None]
            parts.append(values.flatten(2).float().cpu())
        latents = torch.cat(parts, dim=1).numpy()
        return (latents[0], latents[1]) if return_dist else latents[0]

    @torch.inference_mode()
    def get_elbo(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | None = None,
        *,
        return_mean: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> float | np.ndarray:
        r"""Return the evidence lower bound of the autoencoder, as scvi-tools does: higher is better.

        .. math::

            \log p(x \mid z, l) - \mathrm{KL}\bigl(q(z \mid x) \,\|\, \mathcal{N}(0, I)\bigr), \qquad z \sim q(z \mid x)

        with one draw of ``z`` per cell and its own total ``l``. The divergence has the weight 1, whatever ``kl_weight`` the stage
        was trained with: ``autoencoder_loss_validation`` in ``history`` is the reconstruction error plus ``kl_weight`` (0.75) times the
        divergence. The bound holds for standard normal latents; the diffusion prior, from which :meth:`generate` draws, does
        not enter. With a Gaussian head, :math:`\log p` is minus the squared error, a density up to a constant.

        Parameters
        ----------
        adata
            Cells, in memory or :class:`~scgen_diffusion.data.CellFiles`; default: those of the model.
        indices
            Which of them; default: all.
        return_mean
            True: the mean of the cells. False: one value per cell.
        batch_size
            Cells at a time. Does not change the draws.
        seed
            Seed of the draws; default ``scvi.settings.seed``, or else a random one.

        Returns
        -------
        float or numpy.ndarray
            In nats; ``(cells,)`` without ``return_mean``.

        Raises
        ------
        NotImplementedError
            If the latent is deterministic, for then there is no bound.
        KeyError, RuntimeError, ValueError
            As :meth:`get_latent_representation`.
        """
        if self.module.architecture.latent == "deterministic":
            msg = (
                "`get_elbo` needs a posterior, but `latent` is 'deterministic'. Call `get_reconstruction_error`, the negative "
                "log-likelihood of cells given their latents."
            )
            raise NotImplementedError(msg)
        error, kl = self._losses(adata, indices, batch_size, seed)
        return _mean_or_all(-(error + kl), return_mean=return_mean)

    @torch.inference_mode()
    def get_reconstruction_error(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | None = None,
        *,
        return_mean: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> dict[str, float | np.ndarray]:
        r"""Return the negative log-likelihood of cells given their latents, as scvi-tools does: lower is better.

        This is :math:`-\log p(x \mid z, l) = -\sum_g \log p(x_g \mid z, l)` with one draw of :math:`z \sim q(z \mid x)` per cell and its own total ``l``; of a cell
        with several modalities, over those that it has. With a Gaussian head it is the squared error of log-normalised values.
        :meth:`get_likelihood` differs in sign, and takes the mean of the posterior in place of a draw.

        Parameters
        ----------
        adata, indices, return_mean, batch_size, seed
            As for :meth:`get_elbo`.

        Returns
        -------
        dict
            ``{"reconstruction_loss": value}``, in nats: a float, or ``(cells,)`` without ``return_mean``.

        Raises
        ------
        KeyError, RuntimeError, ValueError
            As :meth:`get_latent_representation`.
        """
        error, _ = self._losses(adata, indices, batch_size, seed)
        return {"reconstruction_loss": _mean_or_all(error, return_mean=return_mean)}

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

    def _losses(
        self,
        adata: AnnData | CellFiles | None,
        indices: Sequence[int] | None,
        batch_size: int | None,
        seed: int | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each cell's negative log-likelihood at a draw of its latent, and its divergence, both ``(cells,)``."""
        seed = resolve_seed(seed)
        errors, divergences = [], []
        for tensors, rows in self._batches(adata, indices, batch_size):
            _, _, losses = self.module(tensors, inference_kwargs={"noise": self._noise(rows, seed)})
            errors.append(losses.reconstruction_loss["reconstruction_loss"].cpu())
            divergences.append(losses.kl_local["kl_local"].cpu())
        return torch.cat(errors).numpy(), torch.cat(divergences).numpy()

    def _noise(self, rows: np.ndarray, seed: int) -> Tensor:
        """Draw standard normal numbers for the latents of cells of these row numbers, ``(cells, tokens, n_latent)``."""
        return Generators(seed, rows.tolist(), self.device).normal(*self.module.latent_shape)

    def _expression(
        self, adata: AnnData | CellFiles | None, indices: Sequence[int] | None, batch_size: int | None
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield expression on the model's device, and the cells' row numbers."""
        return ((tensors[REGISTRY_KEYS.X_KEY], rows) for tensors, rows in self._batches(adata, indices, batch_size))

    def _check_can_read_cells(self) -> None:
        if "autoencoder" not in self.trained_stages_:
            msg = "The autoencoder is not trained; call train() or train_autoencoder() first."
            raise RuntimeError(msg)


def _mean_or_all(values: np.ndarray, *, return_mean: bool) -> float | np.ndarray:
    return float(values.mean(dtype=float)) if return_mean else values
