"""Training the transport from control cells to perturbed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgen_diffusion.data import known_names
from scgen_diffusion.train import Group, PairedLatentDataModule, TransportPlan, TransportRecipe

from ._training import changed_recipe, checked_epochs, stage_seed
from ._two_stage_training import TwoStageTrainingMixin

if TYPE_CHECKING:
    import os

RECIPE = TransportRecipe()


class TransportTrainingMixin(TwoStageTrainingMixin):
    """``train_transport`` for a model with an autoencoder."""

    transport_is_trained_: bool
    control_values_: dict[str, Any]

    def train_transport(
        self,
        control: Mapping[str, Any],
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        recipe_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> bool:
        """Train what carries control cells to perturbed ones, see :meth:`predict_perturbation`; the autoencoder must be trained.

        Control and perturbed cells are paired by optimal transport of their latents within groups of cells that are alike in all other
        condition keys. A flow learns to go from one to the other, in place of going there from noise.

        Parameters
        ----------
        control
            What unperturbed cells are: a value for each key that perturbs, such as ``{"condition": "control"}``.
        max_epochs
            Default: from the number of cells.
        batch_size, checkpoint_dir, **trainer_kwargs
            As in :meth:`train`.
        recipe_kwargs
            Changes of the :class:`~scgen_diffusion.train.TransportRecipe`.

        Returns
        -------
        bool
            Whether it was interrupted.

        Raises
        ------
        RuntimeError
            If the autoencoder is not trained.
        ValueError
            For unknown keys and values, or without a group that has both control and perturbed cells.
        """
        self._require_cells()
        if not self.autoencoder_is_trained_:
            msg = "The transport works on latents; call train() or train_autoencoder() first."
            raise RuntimeError(msg)
        max_epochs = checked_epochs(max_epochs)
        recipe = changed_recipe(RECIPE, batch_size, recipe_kwargs)
        if not self._split_fits:
            self._split(train_size=None)
        is_perturbation, control_codes = self._checked_control(control)
        groups = self._groups(is_perturbation, control_codes)
        cache = self._cache_latents()
        if not self.prior_is_trained_:
            self._describe_training_cells(cache)
        self.module.add_transport().perturbs.copy_(torch.from_numpy(is_perturbation))
        n_cells = len(self.train_indices_)
        result = self._run(
            TransportPlan(
                self.module, recipe, seed=stage_seed() + 2, fingerprint=self._fingerprint + self._autoencoder_digest
            ),
            PairedLatentDataModule(cache, groups, recipe, recipe.steps_per_epoch(n_cells)),
            max_epochs or recipe.max_epochs(n_cells),
            checkpoint_dir,
            trainer_kwargs,
        )
        self.control_values_ = dict(control)
        self.transport_is_trained_ = self.is_trained_ = True
        return result.was_interrupted

    def _checked_control(self, control: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return which keys perturb, ``(keys,)``, and the codes of unperturbed cells."""
        if not isinstance(control, Mapping) or not control:
            msg = f"`control` must name the value of unperturbed cells, such as {{'condition': 'control'}}, but found {control!r}."
            raise ValueError(msg)
        codes = self.conditions.encode(control, 1)[0]
        return np.array([key in control for key in self.conditions.keys]), codes

    def _groups(self, is_perturbation: np.ndarray, control_codes: np.ndarray) -> list[Group]:
        """List the groups of training cells that are alike but for one perturbation."""
        codes, rows = self._registered_codes[self.train_indices_], self.train_indices_
        is_control = (codes == control_codes)[:, is_perturbation].all(1)
        perturbed = np.unique(codes[~is_control], axis=0)
        groups = []
        for combination in perturbed:
            alike = (codes == combination)[:, ~is_perturbation].all(1)
            controls = rows[alike & is_control]
            if len(controls):
                groups.append(Group.of(controls, rows[(codes == combination).all(1)]))
        if not groups:
            named = known_names("", self.conditions.keys)
            msg = f"No group of training cells has both control and perturbed cells; look at `control`. {named}"
            raise ValueError(msg)
        return groups
