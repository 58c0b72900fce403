"""Given cells, encoded and decoded again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from scgen_diffusion.data import check_count, known_names, resolve_seed, row_numbers
from scgen_diffusion.diffusion import Generators
from scgen_diffusion.generation import check_finite, rows_of, stack

from ._latents import LatentMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from sparse import GCXS
    from torch import Tensor

    from scgen_diffusion.data import CellFiles


class ReconstructionMixin(LatentMixin):
    """Cells like given ones, and what is expected of them."""

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
        source = self._validated(adata)
        values = []
        for x, cells in self._expression(adata, indices, batch_size):
            generators = Generators(seed, cells.tolist(), x.device) if sample else None
            values.append(rows_of(self._reconstruct(x, generators), sparse=not keep_dense))
            check_finite(values[-1])
        stacked = stack(values)
        obs = source.obs.iloc[row_numbers(indices, source.n_obs)]
        provenance = {"model": type(self).__name__, "reconstruction": "sampled" if sample else "mean", "seed": seed}
        return self._assemble(stacked, obs.copy(), provenance, is_log1p=not self._generates_counts)

    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int = 1,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame | np.ndarray:
        r"""Return decoded expression without counting noise, as scvi-tools does.

        The decoder's frequencies :math:`\rho_g = \operatorname{softmax}(\ell(z))_g`, which add up to 1, times ``library_size``. Stray large counts
        (``outliers``) do not enter. There is no ``transform_batch``: the decoder knows no conditions; see :meth:`predict_perturbation`.

        Parameters
        ----------
        adata
            Cells; default: those of the model.
        indices
            Which of them; default: all.
        gene_list
            Which genes; they come in the model's order. Default: all.
        library_size
            What the frequencies of all genes are scaled to. ``"latent"``: expected counts at each cell's own total, stray counts included.
        n_samples
            Latents that are drawn from each cell's posterior.
        return_mean
            Whether to return the mean of several samples.
        return_numpy
            Whether to return an array. Default: only for several samples without ``return_mean``.
        batch_size
            Cells at a time. Does not change the draws.
        seed
            Seed of the draws; default ``scvi.settings.seed``, or else a random one.

        Returns
        -------
        pandas.DataFrame or numpy.ndarray
            ``(cells, genes)``; ``(n_samples, cells, genes)`` for several samples without ``return_mean``.

        Raises
        ------
        NotImplementedError
            For a Gaussian head and for models of several modalities.
        KeyError, RuntimeError, ValueError
            As :meth:`get_latent_representation`, and for unknown genes and sizes.
        """
        self._check_counts_of_one_modality("get_normalized_expression")
        columns, seed = _columns_of(gene_list, self._registered_genes), resolve_seed(seed)
        scale = _checked_scale(library_size)
        keeps_samples = check_count("n_samples", n_samples) > 1 and not return_mean
        if keeps_samples and return_numpy is False:
            msg = "`return_numpy=False` asks for a table, but several samples without `return_mean` have three dimensions."
            raise ValueError(msg)
        source = None if keeps_samples or return_numpy else self._validated(adata)  # a table needs the cells' names
        module, parts = self.module, []
        for x, rows in self._expression(adata, indices, batch_size):
            posterior = module.inference(x)["posterior"]
            generators = Generators(seed, rows.tolist(), x.device)
            drawn = []
            for _ in range(n_samples):
                z = posterior.draw(generators.normal(*module.latent_shape))
                if scale is None:
                    values = module.likelihood.mean(**module.generative(z, module.totals(x)))
                else:
                    values = module.frequencies(z) * scale
                drawn.append(values[:, columns])
            samples = torch.stack(drawn)
            parts.append((samples if keeps_samples else samples.mean(0)).cpu().numpy())
        values = np.concatenate(parts, axis=-2)
        if source is None:
            return values
        names = source.obs_names[row_numbers(indices, source.n_obs)]
        return pd.DataFrame(values, index=names, columns=self._registered_genes[columns])

    @torch.inference_mode()
    def posterior_predictive_sample(
        self,
        adata: AnnData | CellFiles | None = None,
        indices: Sequence[int] | None = None,
        *,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> GCXS:
        r"""Draw cells like given ones, as scvi-tools does, for example for :class:`scvi.criticism.PosteriorPredictiveCheck`.

        Each sample is a latent from the cell's posterior, and counts from the likelihood at the cell's own total. The first one is
        :meth:`get_reconstruction` of the same seed, which returns AnnData.

        Parameters
        ----------
        adata
            Cells, in memory or :class:`~scgen_diffusion.data.CellFiles`; default: those of the model.
        indices
            Which of them; default: all.
        n_samples
            Samples of each cell.
        gene_list
            Which genes; they come in the model's order. Default: all.
        batch_size
            Cells at a time. Does not change the draws.
        seed
            Seed of the draws; default ``scvi.settings.seed``, or else a random one.

        Returns
        -------
        sparse.GCXS
            Counts, ``(cells, genes)``; ``(cells, genes, n_samples)`` of several samples.

        Raises
        ------
        NotImplementedError
            For a Gaussian head and for models of several modalities.
        KeyError, RuntimeError, ValueError
            As :meth:`get_latent_representation`, and for unknown genes.
        """
        import sparse  # here, for it takes a second

        self._check_counts_of_one_modality("posterior_predictive_sample")
        columns, seed, n_samples = (
            _columns_of(gene_list, self._registered_genes),
            resolve_seed(seed),
            check_count("n_samples", n_samples),
        )
        parts = []
        for x, rows in self._expression(adata, indices, batch_size):
            generators = Generators(seed, rows.tolist(), x.device)
            samples = [self._reconstruct(x, generators)[:, columns].cpu().numpy() for _ in range(n_samples)]
            drawn = np.stack(samples, axis=-1)
            check_finite(drawn)
            parts.append(sparse.GCXS.from_numpy(drawn[..., 0] if n_samples == 1 else drawn))
        return sparse.concatenate(parts, axis=0)

    def _reconstruct(self, x: Tensor, generators: Generators | None) -> Tensor:
        """Draw cells like ``x (cells, genes)``; without generators, return their expected values."""
        module = self.module
        posterior = module.inference(x)["posterior"]
        if generators is None:
            totals = module.decoding_totals(x, posterior.mean, None)
            return module.likelihood.mean(**module.generative(posterior.mean, totals))
        z = posterior.draw(generators.normal(*module.latent_shape))
        return module.draw_cells(z, module.decoding_totals(x, z, generators), generators)

    def _check_counts_of_one_modality(self, method: str) -> None:
        if self.modalities or not self._generates_counts:
            has = f"has the modalities {list(self.modalities)}" if self.modalities else "has a Gaussian head"
            msg = f"`{method}` is for counts of one modality, but this model {has}. Call `get_reconstruction`."
            raise NotImplementedError(msg)


def _columns_of(gene_list: Sequence[str] | None, genes: pd.Index) -> np.ndarray:
    """Return the columns of some genes, in the order of all; None means all."""
    if gene_list is None:
        return np.arange(len(genes))
    if isinstance(gene_list, str):
        msg = f"`gene_list` must be a list of names, but found the string {gene_list!r}. Did you mean [{gene_list!r}]?"
        raise TypeError(msg)
    if unknown := [gene for gene in gene_list if gene not in genes]:
        msg = f"`gene_list` has the unknown gene {unknown[0]!r}. {known_names(unknown[0], list(genes))}"
        raise ValueError(msg)
    return np.flatnonzero(genes.isin(gene_list))


def _checked_scale(library_size: Any) -> float | None:
    """Return what frequencies are scaled to; None for each cell's own total."""
    if isinstance(library_size, str) and library_size == "latent":
        return None
    is_number = isinstance(library_size, int | float | np.number) and not isinstance(library_size, bool)
    if not is_number or not 0 < library_size < np.inf:
        msg = f"`library_size` must be a number above 0, or 'latent' for each cell's own total, but found {library_size!r}."
        raise ValueError(msg)
    return float(library_size)
