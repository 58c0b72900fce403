"""SCLDM's ways to predict perturbed cells. All share one autoencoder per left-out cell type and seed, which is stored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from benchmarks.studies.perturbation_baselines import as_cells, linear_additive, mean_latent_change, scvi_arithmetic
from benchmarks.studies.perturbation_cases import CELL_TYPE, CONDITION, CONTROL, PERTURBED
from scgen_diffusion.diffusion import Generators

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata as ad

    from benchmarks.studies.perturbation_cases import Case
    from scgen_diffusion.model import SCLDM

CONDITION_KEYS = [CELL_TYPE, CONDITION]
#: What is shared: weights whose names start so.
AUTOENCODER = ("encoder.", "decoder.", "likelihood.")
#: Changes of the prior's recipe: its step on a CPU takes a third of the time, for as many steps.
PRIOR_KWARGS = {"batch_size": 128}


@dataclass(frozen=True)
class Trained:
    """A case's SCLDM, whose stages are trained when they are first needed.

    Attributes
    ----------
    case
        What is known, and what is asked.
    seed
        Seed of training and of draws.
    folder
        Where the autoencoder is stored.
    """

    case: Case
    seed: int
    folder: Path

    @cached_property
    def with_autoencoder(self) -> SCLDM:
        """The model with a trained autoencoder, that of the store if there is one."""
        import scvi

        from scgen_diffusion.model import SCLDM

        scvi.settings.seed = self.seed
        train = self.case.train.copy()
        SCLDM.setup_anndata(train, layer="counts", condition_keys=CONDITION_KEYS)
        model = SCLDM(train)
        path = stored_path(self.folder, self.case.cell_type, self.seed, "autoencoder", ".pt")
        if path.exists():
            model.module.load_state_dict(torch.load(path, weights_only=True)["state"], strict=False)
            model.trained_stages_ = ["autoencoder"]
            model.module.eval()
            return model
        started = time.process_time()
        model.train_autoencoder(accelerator="cpu", enable_progress_bar=False)
        state = {name: t for name, t in model.module.state_dict().items() if name.startswith(AUTOENCODER)}
        minutes = (time.process_time() - started) / 60
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": state, "cpu_minutes": minutes}, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
        return model

    @cached_property
    def with_prior(self) -> SCLDM:
        """The same model with a trained prior."""
        import scvi

        model = self.with_autoencoder
        scvi.settings.seed = self.seed
        model.train_prior(accelerator="cpu", enable_progress_bar=False, plan_kwargs=PRIOR_KWARGS)
        return model

    @cached_property
    def with_transport(self) -> SCLDM:
        """The same model with a trained transport."""
        import scvi

        model = self.with_autoencoder
        scvi.settings.seed = self.seed
        model.train_transport(control_values={CONDITION: CONTROL}, accelerator="cpu", enable_progress_bar=False)
        return model


def unpaired(trained: Trained) -> ad.AnnData:
    """Generate the unseen combination from noise."""
    condition = {CELL_TYPE: trained.case.cell_type, CONDITION: PERTURBED}
    n_cells = trained.case.control.n_obs
    return as_cells(trained.case, trained.with_prior.generate(n_cells, condition, seed=trained.seed).X)


def inversion(trained: Trained) -> ad.AnnData:
    """Carry control cells back to noise, and from there to the other condition."""
    return _predict(trained, trained.with_prior, method="inversion")


def transport(trained: Trained) -> ad.AnnData:
    """Carry control cells along the flow that was trained to start at them."""
    return _predict(trained, trained.with_transport, method="transport")


def transport_with_new_counts(trained: Trained) -> ad.AnnData:
    """Do the same, but draw all counts anew."""
    return _predict(trained, trained.with_transport, method="transport", residuals="new")


def latent_arithmetic(trained: Trained) -> ad.AnnData:
    """Move control cells in the autoencoder's latents by the mean change of the other types, and draw counts with the cells' own totals.

    References
    ----------
    Lotfollahi et al. 2019, scGen predicts single-cell perturbation responses. Nat Methods 16:715.
    """
    return _arithmetic(trained, keeps_residuals=False)


def arithmetic_with_own_residuals(trained: Trained) -> ad.AnnData:
    """Do the same, but keep what the latents do not explain of a cell."""
    return _arithmetic(trained, keeps_residuals=True)


#: Baselines that learn, by name; the names of all others are those of :func:`scgen_diffusion.metrics.evaluate_perturbation`.
BASELINES: dict[str, Callable[[Case, int], ad.AnnData]] = {
    "linear_additive": linear_additive,
    "scvi_arithmetic": scvi_arithmetic,
}
SCLDM_METHODS: dict[str, Callable[[Trained], ad.AnnData]] = {
    "latent_arithmetic": latent_arithmetic,
    "scldm_unpaired": unpaired,
    "scldm_inversion": inversion,
    "scldm_transport": transport,
    "scldm_transport_new_counts": transport_with_new_counts,
    "scldm_arithmetic_own_residuals": arithmetic_with_own_residuals,
}
METHODS = (*BASELINES, *SCLDM_METHODS)


def stored_path(folder: Path, cell_type: str, seed: int, name: str, suffix: str = ".h5ad") -> Path:
    """Return where something of a case and seed is stored."""
    return folder / f"{cell_type.replace(' ', '_')}-{seed}-{name}{suffix}"


def _predict(trained: Trained, model: SCLDM, **options: str) -> ad.AnnData:
    condition = {CONDITION: PERTURBED}
    predicted = model.predict_perturbation(trained.case.control, condition, seed=trained.seed, **options)
    return as_cells(trained.case, predicted.X)


def _arithmetic(trained: Trained, *, keeps_residuals: bool) -> ad.AnnData:
    case, model = trained.case, trained.with_autoencoder
    shape = (-1, *model.module.latent_shape)
    latents = model.get_latent_representation()
    z = torch.from_numpy(latents[case.rows(case.cell_type, CONTROL)]).view(shape)
    moved = z + torch.from_numpy(mean_latent_change(case, latents)).view(shape)
    counts = torch.from_numpy(case.control.X.toarray())
    totals, generators = counts.sum(1), Generators(trained.seed, range(len(counts)))
    with torch.inference_mode():
        if keeps_residuals:
            return as_cells(case, model.module.carry_over_cells(counts, z, moved, totals, generators).numpy())
        return as_cells(case, model.module.draw_cells(moved, totals, generators).numpy())
