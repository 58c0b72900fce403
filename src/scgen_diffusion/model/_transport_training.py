"""Training the transport from control cells to perturbed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from scgen_diffusion.data import ContinuousKey, warn_user
from scgen_diffusion.train import Group, PairedLatentDataModule, TransportPlan, TransportRecipe

from ._training import RunStage, stage_seed
from ._two_stage_training import TwoStageTrainingMixin

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from scgen_diffusion.train import Recipe, StageResult, TrainingCells

RECIPE = TransportRecipe()


class TransportTrainingMixin(TwoStageTrainingMixin):
    """``train_transport`` for a model with an autoencoder."""

    _stages: ClassVar[tuple[str, ...]] = (*TwoStageTrainingMixin._stages, "transport")

    def train_transport(
        self,
        max_epochs: int | None = None,
        *,
        control_values: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train what carries control cells to perturbed ones, see :meth:`predict_perturbation`; the autoencoder must be trained.

        Control and perturbed cells are paired by optimal transport of their latents, within groups of cells that have the same classes and
        sets in all other keys. A flow learns to go from one to the other, where the prior goes there from noise. See the user guide,
        "Perturbations".

        Parameters
        ----------
        max_epochs
            Default: from the number of cells.
        control_values
            What unperturbed cells have, a value for each key that perturbs: ``{"condition": "control"}``, or
            ``{"drug": "none", "dose": 0.0}``. Default: the ``control_values`` of ``setup_anndata``.
        batch_size, datamodule, checkpoint_dir, **trainer_kwargs
            As in :meth:`train`.
        plan_kwargs
            Options of the :class:`~scgen_diffusion.train.TransportRecipe`.

        Raises
        ------
        RuntimeError
            If the autoencoder is not trained.
        ValueError
            Without values of unperturbed cells, for unknown ones, or without a group that has both control and perturbed cells.
        """
        self._check_can_read_cells()
        self._train(
            "train_transport",
            ["transport"],
            trainer_kwargs,
            keep_split=True,
            max_epochs=max_epochs,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            control_values=control_values,
        )

    @property
    def _due_stages(self) -> list[str]:
        control = self.registry_["setup_args"]["control_values"]
        return super()._due_stages + (["transport"] if control and self._perturbation_groups(control) else [])

    def _why_left_out(self, stage: str) -> str:
        if stage == "transport":
            return (
                "It needs `control_values`, told to `setup_anndata`, and perturbed cells that have control cells with the same "
                "values of the other keys; `train_transport` trains it alone."
            )
        return super()._why_left_out(stage)

    def _recipe(self, stage: str) -> Recipe:
        return RECIPE if stage == "transport" else super()._recipe(stage)

    def _train_stage(self, stage: str, recipe: Any, run: RunStage, **of_stage: Any) -> StageResult:
        if stage == "transport":
            return self._train_transport(recipe, run, of_stage.get("control_values"))
        return super()._train_stage(stage, recipe, run, **of_stage)

    def _train_transport(
        self, recipe: TransportRecipe, run: RunStage, control_values: Mapping[str, Any] | None
    ) -> StageResult:
        control = self._checked_control(control_values)
        groups = self._perturbation_groups(control)
        if not groups:
            msg = f"No perturbed training cells have control cells, {control}, with the same values of the other keys."
            raise ValueError(msg)
        self._warn_of_cells_without_control(groups, control)
        seed = stage_seed() + 2
        with self._cache_latents() as cache:
            if "prior" not in self.trained_stages_:
                self._describe_training_cells(cache)
            with torch.random.fork_rng(
                devices=[]
            ):  # networks draw from the global state, of which a resumed run has taken another share
                torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
                transport = self.module.add_transport()
            transport.start_from(torch.from_numpy(self.conditions.encode(control, 1)[0]).to(self.device))
            data = PairedLatentDataModule(cache, groups, recipe, recipe.steps_per_epoch(len(self.train_indices_)))
            plan = TransportPlan(self.module, recipe, seed=seed)
            result = run(plan, data, self._autoencoder_digest, sorted(control.items()))
        self._note_trained(*self.trained_stages_, "transport")
        return result

    def _checked_control(self, control_values: Mapping[str, Any] | None) -> dict[str, Any]:
        control = dict(self.registry_["setup_args"]["control_values"] if control_values is None else control_values)
        if not control:
            msg = "What is unperturbed? Give `control_values`, here or to setup_anndata, such as {'condition': 'control'}."
            raise ValueError(msg)
        self.conditions.encode(control, 1)
        return control

    def _perturbation_groups(self, control: Mapping[str, Any]) -> list[Group]:
        """List the training cells of each perturbation, beside the control cells that have the same classes and sets in all other keys.

        Numbers that do not perturb, such as an age, make no groups: hardly two cells would share one.
        """
        rows = self.train_indices_
        codes = self._registered_codes[rows]
        discrete = [key.name for key in self.conditions.by_key if not isinstance(key, ContinuousKey)]
        perturbation = codes[:, self._columns_of(control)]
        others = codes[:, self._columns_of([name for name in discrete if name not in control])]
        is_control = self._are_control(control)
        _, number = np.unique(np.hstack([others, perturbation]), axis=0, return_inverse=True)
        groups = []
        for members in (np.flatnonzero(number.ravel() == n) for n in np.unique(number[~is_control])):
            controls = rows[is_control & (others == others[members[0]]).all(1)]
            if len(controls):
                groups.append(Group.of(controls, rows[members]))
        return groups

    def _are_control(self, control: Mapping[str, Any]) -> np.ndarray:
        """Tell which training cells are unperturbed, ``(cells,)``."""
        columns = self._columns_of(control)
        asked = self.conditions.encode(control, 1)[:, columns]
        return np.isclose(self._registered_codes[self.train_indices_][:, columns], asked).all(1)

    def _warn_of_cells_without_control(self, groups: list[Group], control: Mapping[str, Any]) -> None:
        n_perturbed = int((~self._are_control(control)).sum())
        n_paired = sum(len(group.perturbed) for group in groups)
        if n_paired < n_perturbed:
            msg = (
                f"{n_perturbed - n_paired} of {n_perturbed} perturbed cells have no control cells with the same values of the other keys, "
                "and teach the transport nothing. If keys such as the donor go with the perturbation, leave them out of the conditions."
            )
            warn_user(msg)

    def _columns_of(self, names: Iterable[str]) -> list[int]:
        slices = (self.conditions.columns(name) for name in names)
        return [column for found in slices for column in range(found.start, found.stop)]
