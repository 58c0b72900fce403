"""Methods that need an autoencoder: latents, ELBO and reconstructions of given cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS, settings

from scgen_diffusion._arguments import check_count, is_number, known_names
from scgen_diffusion.data import (
    drop_unused_categories,
    registered_genes,
    resolve_seed,
    row_numbers,
    stack_rows,
)
from scgen_diffusion.diffusion import Generators
from scgen_diffusion.generation import check_batch_size, check_sampled, rows_of

from ._base import DiffusionModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from sparse import GCXS
    from torch import Tensor

    from scgen_diffusion.data import CellFiles


class AutoencoderModel(DiffusionModel):
    """Base class of latent diffusion models, with scvi-tools' methods for latents and the ELBO."""

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        give_mean: bool = True,
        return_dist: bool = False,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the latent of each cell, as scvi-tools does. It depends on expression alone.

        Parameters
        ----------
        adata
            Cells, in memory or :class:`~scgen_diffusion.data.CellFiles`; default: the model's cells. Cells in memory
            need no conditions.
        indices
            Rows of the cells to use; default: all.
        give_mean
            True: the mean of the cell's posterior. False: one draw from it.
        return_dist
            Whether to return mean and variance of the posterior instead, whatever ``give_mean``.
        batch_size
            Cells encoded at a time. It does not change the draws.
        seed
            Seed of the draws. Default: ``scvi.settings.seed``, or else random.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            ``(cells, n_latent_tokens * n_latent)``, tokens side by side; with ``return_dist`` means and variances of
            this shape. With ``latent="deterministic"`` variances are zero, and a draw is the mean.

        Raises
        ------
        KeyError
            If the cells lack the layer, or cells in files a condition.
        RuntimeError
            If the autoencoder is not trained.
        TypeError, ValueError
            For what is not cells, other genes, another kind of values, and unknown conditions of cells in files.
        """
        parts = []
        for x, generators in self._batches(adata, indices, batch_size, seed):
            posterior = self.module.inference(x)["posterior"]
            if return_dist:
                values = torch.stack([posterior.mean, posterior.std.square()])
            elif give_mean:
                values = posterior.mean[None]
            else:
                values = posterior.draw(generators.normal(*self.module.latent_shape))[None]
            parts.append(values.flatten(2).float().cpu())
        latents = torch.cat(parts, dim=1).numpy()
        return (latents[0], latents[1]) if return_dist else latents[0]

    @torch.inference_mode()
    def get_elbo(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        return_mean: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> float | np.ndarray:
        r"""Return the evidence lower bound of the autoencoder, as scvi-tools does: higher is better.

        .. math::

            \log p(x \mid z, l) - \mathrm{KL}\bigl(q(z \mid x) \,\|\, \mathcal{N}(0, I)\bigr), \qquad z \sim q(z \mid x)

        with one draw of ``z`` per cell, and the cell's own total ``l``. The divergence always has weight 1. In training
        its weight is ``kl_weight`` of ``recipes_["autoencoder"]``, so ``autoencoder_loss_validation`` in ``history``
        differs. The bound assumes standard normal latents; it ignores the diffusion prior, from which :meth:`generate`
        draws. With a Gaussian head, :math:`\log p` is minus the squared error, a log-density up to a constant.

        Parameters
        ----------
        adata
            Cells, in memory or :class:`~scgen_diffusion.data.CellFiles`; default: the model's cells.
        indices
            Rows of the cells to use; default: all.
        return_mean
            True: the mean over cells. False: one value per cell.
        batch_size
            Cells at a time. It does not change the draws.
        seed
            Seed of the draws. Default: ``scvi.settings.seed``, or else random.

        Returns
        -------
        float or numpy.ndarray
            In nats; ``(cells,)`` without ``return_mean``.

        Raises
        ------
        NotImplementedError
            If the latent is deterministic: there is no bound then.
        KeyError, RuntimeError, TypeError, ValueError
            As :meth:`get_latent_representation`.
        """
        if self.module.architecture.latent == "deterministic":
            msg = (
                "`get_elbo` needs a posterior, but `latent` is 'deterministic'. Call `get_reconstruction_error`, the "
                "negative log-likelihood of cells given their latents."
            )
            raise NotImplementedError(msg)
        error, kl = self._losses(adata, indices, batch_size, seed)
        return _mean_or_all(-(error + kl), return_mean=return_mean)

    @torch.inference_mode()
    def get_reconstruction_error(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        return_mean: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> dict[str, float | np.ndarray]:
        r"""Return the negative log-likelihood of cells given their latents, as scvi-tools does: lower is better.

        This is :math:`-\log p(x \mid z, l) = -\sum_g \log p(x_g \mid z, l)` with one draw of :math:`z \sim q(z \mid x)`
        per cell, and the cell's own total ``l``. With several modalities, the sum is over those that the cell has. With
        a Gaussian head it is the squared error of log-normalised values.

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
        KeyError, RuntimeError, TypeError, ValueError
            As :meth:`get_latent_representation`.
        """
        error, _ = self._losses(adata, indices, batch_size, seed)
        return {"reconstruction_loss": _mean_or_all(error, return_mean=return_mean)}

    @torch.inference_mode()
    def get_reconstruction(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        sample: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Encode cells and decode them again, each with its own library size.

        A MULTISCLDM returns all modalities. It predicts those that a cell lacks, and their library sizes, from the
        others.

        Parameters
        ----------
        adata
            Cells; default: the model's cells.
        indices
            Rows of the cells to use; default: all.
        sample
            True: draw a latent from each cell's posterior, and values from the likelihood. False: return expected
            values at the posterior mean.
        batch_size
            Cells at a time.
        seed
            Seed of the draws. Default: ``scvi.settings.seed``, or else random.

        Returns
        -------
        AnnData
            The cells with their ``obs``, in the same order; MuData from a MULTISCLDM.

        Raises
        ------
        KeyError, RuntimeError, TypeError, ValueError
            As :meth:`get_latent_representation`.
        """
        seed, source, output = resolve_seed(seed), self.given_cells(adata, "adata"), self._outputs[0]
        parts = []
        for x, generators in self._batches(adata, indices, batch_size, seed):
            decoded = self._reconstruct(x, generators if sample else None)
            parts.append(rows_of(decoded, sparse=sample and output == "counts"))
        obs = drop_unused_categories(source.obs.iloc[row_numbers(indices, source.n_obs)])
        how = {"reconstruction": "sampled" if sample else "mean", "values": output, "seed": seed}
        return self._build(stack_rows(parts), obs, {"model": type(self).__name__, **how})

    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int = 1,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame | np.ndarray:
        r"""Return expected expression, decoded from a draw of each cell's latent, as scvi-tools does.

        These are the decoder's frequencies :math:`\rho_g = \operatorname{softmax}(\ell(z))_g`, which add up to 1, times
        ``library_size``. Stray large counts (``outliers``) are left out. There is no ``transform_batch``, because the
        decoder does not depend on conditions; use :meth:`predict_perturbation`.

        Parameters
        ----------
        adata
            Cells; default: the model's cells.
        indices
            Rows of the cells to use; default: all.
        gene_list
            Genes to return, in the model's order; default: all.
        library_size
            Sum of a cell's frequencies after scaling. ``"latent"``: expected counts at each cell's own total, with
            stray counts.
        n_samples
            Number of latents drawn from each cell's posterior.
        return_mean
            Whether to average over samples.
        return_numpy
            Whether to return an array instead of a table. Default: only for several samples without ``return_mean``.
        batch_size
            Cells at a time. It does not change the draws.
        seed
            Seed of the draws. Default: ``scvi.settings.seed``, or else random.

        Returns
        -------
        pandas.DataFrame or numpy.ndarray
            ``(cells, genes)``; ``(n_samples, cells, genes)`` for several samples without ``return_mean``.

        Raises
        ------
        NotImplementedError
            For a Gaussian head.
        KeyError, RuntimeError, TypeError, ValueError
            As :meth:`get_latent_representation`, and for unknown genes and sizes, or one string as genes.
        """
        self._check_gives_expression("get_normalized_expression")
        scale, genes = check_scale(library_size), registered_genes(self.registry_)
        how = n_samples, return_mean, return_numpy, batch_size, seed
        return self._decode_draws(0, genes, gene_list, scale, adata, indices, *how)

    @torch.inference_mode()
    def posterior_predictive_sample(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> GCXS:
        r"""Sample counts of given cells, as scvi-tools does.

        :class:`scvi.criticism.PosteriorPredictiveCheck` uses this method (give it dense or integer counts). Each sample
        draws a latent from the cell's posterior, and counts from the likelihood at the cell's own total. The first
        sample equals :meth:`get_reconstruction` with the same seed.

        Parameters
        ----------
        adata
            Cells, in memory or :class:`~scgen_diffusion.data.CellFiles`; default: the model's cells.
        indices
            Rows of the cells to use; default: all.
        n_samples
            Samples per cell.
        gene_list
            Genes to return, in the model's order; default: all.
        batch_size
            Cells at a time. It does not change the draws.
        seed
            Seed of the draws. Default: ``scvi.settings.seed``, or else random.

        Returns
        -------
        sparse.GCXS
            Counts, ``(cells, genes)``; ``(cells, genes, n_samples)`` for several samples.

        Raises
        ------
        NotImplementedError
            For a Gaussian head.
        KeyError, RuntimeError, TypeError, ValueError
            As :meth:`get_latent_representation`, and for unknown genes.
        """
        self._check_gives_expression("posterior_predictive_sample")
        columns = gene_columns(gene_list, registered_genes(self.registry_))
        return self._sample_counts(columns, adata, indices, n_samples, batch_size, seed)

    def _losses(
        self,
        adata: AnnData | CellFiles | None,
        indices: Sequence[int] | np.ndarray | None,
        batch_size: int | None,
        seed: int | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each cell's negative log-likelihood at one draw of the latent, and its KL divergence, ``(cells,)``."""
        errors, divergences = [], []
        for x, generators in self._batches(adata, indices, batch_size, seed):
            noise = generators.normal(*self.module.latent_shape)
            _, _, losses = self.module({REGISTRY_KEYS.X_KEY: x}, inference_kwargs={"noise": noise})
            errors.append(losses.reconstruction_loss["reconstruction_loss"].cpu())
            divergences.append(losses.kl_local["kl_local"].cpu())
        return torch.cat(errors).numpy(), torch.cat(divergences).numpy()

    def _batches(
        self,
        adata: AnnData | CellFiles | None,
        indices: Sequence[int] | np.ndarray | None,
        batch_size: int | None,
        seed: int | None,
    ) -> Iterator[tuple[Tensor, Generators]]:
        """Yield expression ``(cells, genes)`` on the model's device, with the cells' random numbers."""
        self._check_has_autoencoder()
        seed = resolve_seed(seed)
        batch_size = check_batch_size(settings.batch_size if batch_size is None else batch_size)
        source = self.open_cells(adata, "adata", indices, with_labels=False)
        for tensors, rows in self.read_cells(*source, self._engine.round_to_blocks(batch_size)):
            yield tensors[REGISTRY_KEYS.X_KEY], Generators(seed, rows.tolist(), self.device)

    def _check_has_autoencoder(self) -> None:
        if "autoencoder" not in self.trained_stages_:
            msg = "The autoencoder is not trained; call train() or train_autoencoder() first."
            raise RuntimeError(msg)

    def _reconstruct(self, x: Tensor, generators: Generators | None, number: int = 0) -> Tensor:
        """Draw reconstructions of ``x (cells, genes)``; without generators, return expected values."""
        module = self.module
        posterior = module.inference(x)["posterior"]
        if generators is None:
            totals = module.decoding_totals(x, posterior.mean, None)
            return module.likelihood.mean(**module.generative(posterior.mean, totals))
        z = posterior.draw(generators.normal(*module.latent_shape))
        decoded = module.generative(z, module.decoding_totals(x, z, generators).reshape(len(z), -1))
        return module.draw_cells(decoded, generators, number=number)

    def _decode_draws(
        self,
        modality: int,
        features: pd.Index,
        gene_list: Sequence[str] | None,
        scale: float | None,
        adata: AnnData | CellFiles | None,
        indices: Sequence[int] | np.ndarray | None,
        n_samples: int,
        return_mean: bool,
        return_numpy: bool | None,
        batch_size: int | None,
        seed: int | None,
    ) -> pd.DataFrame | np.ndarray:
        """Decode features of a modality from draws of the cells' latents, as ``get_normalized_expression`` does."""
        columns = gene_columns(gene_list, features)
        keeps_samples = check_count("n_samples", n_samples) > 1 and not return_mean
        source = None if keeps_samples or return_numpy else self.given_cells(adata, "adata")  # a table needs names
        parts = []
        for x, generators in self._batches(adata, indices, batch_size, seed):
            posterior = self.module.inference(x)["posterior"]
            # one sample after another: the mean needs no memory for all of them
            draws = (posterior.draw(generators.normal(*self.module.latent_shape)) for _ in range(n_samples))
            samples = (self.module.expected_values(x, z, scale, modality)[:, columns] for z in draws)
            values = torch.stack([each.cpu() for each in samples]) if keeps_samples else sum(samples) / n_samples
            parts.append(values.cpu().numpy())
        values = np.concatenate(parts, axis=-2)
        if source is None:
            return values
        return pd.DataFrame(values, source.obs_names[row_numbers(indices, source.n_obs)], features[columns])

    def _sample_counts(
        self,
        columns: np.ndarray,
        adata: AnnData | CellFiles | None,
        indices: Sequence[int] | np.ndarray | None,
        n_samples: int,
        batch_size: int | None,
        seed: int | None,
    ) -> GCXS:
        """Draw reconstructions of cells, and keep some columns, as ``posterior_predictive_sample`` does."""
        import sparse  # imported here because it takes a second

        n_samples, parts = check_count("n_samples", n_samples), []
        for x, generators in self._batches(adata, indices, batch_size, seed):
            samples = [self._reconstruct(x, generators, n)[:, columns].cpu().numpy() for n in range(n_samples)]
            check_sampled(drawn := np.stack(samples, axis=-1))
            parts.append(sparse.GCXS.from_numpy(drawn[..., 0] if n_samples == 1 else drawn))
        return sparse.concatenate(parts, axis=0)

    def _check_gives_expression(self, method: str) -> None:
        """Raise unless decoded cells are counts."""
        if self._outputs[0] != "counts":
            msg = f"`{method}` needs counts, but this model has a Gaussian head. Call `get_reconstruction`."
            raise NotImplementedError(msg)


def _mean_or_all(values: np.ndarray, *, return_mean: bool) -> float | np.ndarray:
    return float(values.mean(dtype=float)) if return_mean else values


def gene_columns(gene_list: Sequence[str] | None, genes: pd.Index) -> np.ndarray:
    """Return the columns of some genes, in the model's order; None means all."""
    if gene_list is None:
        return np.arange(len(genes))
    if isinstance(gene_list, str):
        msg = f"`gene_list` must be a list of names, but found the string {gene_list!r}. Did you mean [{gene_list!r}]?"
        raise TypeError(msg)
    gene_list = list(gene_list)
    if unknown := [gene for gene in gene_list if gene not in genes]:
        msg = f"`gene_list` has the unknown name {unknown[0]!r}. {known_names(unknown[0], list(genes))}"
        raise ValueError(msg)
    return np.flatnonzero(genes.isin(gene_list))


def check_scale(library_size: Any) -> float | None:
    """Return the total that frequencies are scaled to; None for each cell's own."""
    if isinstance(library_size, str) and library_size == "latent":
        return None
    if not is_number(library_size) or not 0 < library_size <= torch.finfo(torch.float32).max:
        msg = (
            f"`library_size` must be a number above 0, or 'latent' for each cell's own total, but found "
            f"{library_size!r}."
        )
        raise ValueError(msg)
    return float(library_size)
