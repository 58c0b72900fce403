"""``train`` of every model: what is asked for is checked first, then the stages are trained in turn."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import torch
from scvi import settings

from scgen_diffusion._compat import parse_device_args
from scgen_diffusion.data import ContinuousKey, check_argument_names, is_whole_number, known_names, warn_user
from scgen_diffusion.train import (
    RECIPES,
    AutoencoderPlan,
    AutoencoderRecipe,
    CellData,
    DiffusionPlan,
    DiffusionRecipe,
    LatentData,
    PairData,
    PriorPlan,
    PriorRecipe,
    Recipe,
    StageData,
    StagePlan,
    StageResult,
    TransportPlan,
    TransportRecipe,
    describe_predicted_profile_totals,
    describe_predicted_totals,
    describe_totals,
    encode_cells,
    perturbation_groups,
    run_stage,
    standardise_latents,
    start_autoencoder,
    start_gene_space,
    trainer_options,
)

from ._description import describe
from ._registration import RegistrationMixin

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    import lightning.pytorch as pl
    import pandas as pd
    from torch import Tensor, nn

    from scgen_diffusion.module import GeneSpaceArchitecture, SCLDMArchitecture
    from scgen_diffusion.train import LatentCache, TrainingCells

logger = logging.getLogger(__name__)

MAX_VALIDATION_CELLS = 2000
LATENTS_IN_MEMORY = 2 << 30  # bytes
LATENTS_IN_MEMORY_WITH_FILES = 64 << 20  # whoever leaves cells in files wants little in memory
LEARNING_RATE = "learning_rate"
AUTOENCODER_STAYS = "The autoencoder stays that of the reference; load_query_data(..., trainable='all') trains it too."
OTHER_NAMES = {
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs"), "max_epochs"),
    **{
        name: f"It is an option of the training plan: `plan_kwargs={{{option!r}: ...}}`."
        for name, option in {"lr": LEARNING_RATE, **{field.name: field.name for field in fields(Recipe)}}.items()
        if name not in ("batch_size", "n_epochs")
    },
}
"""What other packages call the arguments of ``train``, and the options that it takes elsewhere."""
RecipeT = TypeVar("RecipeT", bound=Recipe)
Run: TypeAlias = Callable[..., StageResult]
"""Runs a stage: ``run(plan, data, *made_with)``; a checkpoint is resumed if it was ``made_with`` the same."""


class TrainingMixin(RegistrationMixin):
    """``train``, and what its stages have in common. A class names its stages, and has a method ``_train_<stage>`` for each.

    ``trained_stages_`` says what is trained, in the order of ``_stages``; ``is_trained_`` whether that is enough to generate.
    """

    architecture: Any
    var_: pd.DataFrame
    _stages: ClassVar[tuple[str, ...]]
    """Stages of the training, in their order."""
    _stages_to_generate: ClassVar[frozenset[str]]
    trained_stages_: list[str]
    is_trained_: bool
    history_: dict[str, pd.DataFrame] | None
    trainer: pl.Trainer

    def train(
        self,
        max_epochs: int | Mapping[str, int] | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int | None = None,
        early_stopping: bool = False,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model, stage by stage.

        SCLDM has the stages ``"autoencoder"``, ``"prior"`` and, if ``setup_anndata`` was told what is unperturbed and there are
        such cells, ``"transport"``. SCRDIT and WBDIT have one, ``"diffusion"``. Afterwards ``trained_stages_`` names those that
        are trained, ``history`` holds the losses of each epoch, and ``trainer`` is that of the last stage.

        Ctrl-C stops after the current step and keeps the weights; a second one aborts.

        Parameters
        ----------
        max_epochs
            Epochs of every stage, or a mapping from stages to epochs: ``{"prior": 500}``. Default: from the number of cells,
            see the user guide.
        accelerator, devices
            Where to train; passed to Lightning.
        train_size
            Share of cells to train on. Default: what ``validation_size`` leaves, or else nine tenths, or all but 2 000 cells.
        validation_size
            Share of cells to validate on. Default: all that are not trained on.
        batch_size
            Cells per step; at most as many as there are, or as the default of the stage. It does not hold for the transport,
            which draws pairs of cells. Default: 512 for the prior, 128 for the others.
        early_stopping
            Whether to stop a stage when its validation loss falls no more; the transport has none.
        plan_kwargs
            Options of the training of every stage, such as ``{"learning_rate": 1e-3}``, or a mapping from stages to options:
            ``{"prior": {"learning_rate": 1e-3}}``. See :class:`~scgen_diffusion.train.AutoencoderRecipe`,
            :class:`~scgen_diffusion.train.PriorRecipe`, :class:`~scgen_diffusion.train.TransportRecipe` and
            :class:`~scgen_diffusion.train.DiffusionRecipe`.
        datamodule
            Cells in files, :class:`~scgen_diffusion.data.CellFiles`, in place of those that the model was built with. They are the model's
            cells from then on, also for later calls without this argument, until ``model.adata`` is set. Default: the cells that the model has.
        checkpoint_dir
            Folder for checkpoints of the stages. After an interruption the same call, also in a new process, resumes from the
            last one.
        compile
            Whether to compile the networks with ``torch.compile``.
        **trainer_kwargs
            Passed to Lightning's trainer: ``precision``, ``strategy``, ``callbacks``, ``enable_progress_bar`` ...

        Raises
        ------
        TypeError
            For an unknown argument or option.
        ValueError
            For values that are not allowed, cells that were changed after ``setup_anndata``, and checkpoints of other cells.
        """
        self._train(
            "train",
            self._due_stages,
            {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping, **trainer_kwargs},
            max_epochs=max_epochs,
            train_size=train_size,
            validation_size=validation_size,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            compile=compile,
        )

    def _train(
        self,
        method: str,
        stages: Callable[[], Sequence[str]],
        trainer_kwargs: Mapping[str, Any],
        *,
        max_epochs: int | Mapping[str, int] | None,
        batch_size: int | None,
        plan_kwargs: Mapping[str, Any] | None,
        datamodule: TrainingCells | None,
        checkpoint_dir: str | os.PathLike[str] | None,
        train_size: float | None = None,
        validation_size: float | None = None,
        keep_split: bool = False,
        **of_stage: Any,
    ) -> None:
        """Check all that is asked for, and train the stages until the user stops one."""
        trainer_kwargs = dict(trainer_kwargs)
        known = {*inspect.signature(getattr(self, method)).parameters, *trainer_options()} - {"trainer_kwargs"}
        check_argument_names(method, trainer_kwargs, sorted(known), OTHER_NAMES)
        early_stopping = trainer_kwargs.pop("early_stopping", False)
        self._take_cells(datamodule)
        self._cells.check()
        self._count_combinations(self._registered_codes)
        if not (keep_split and self._split_fits):
            self._split(train_size, validation_size)
        n_cells, names = len(self.train_indices_), stages()
        epochs = self._by_stage("max_epochs", max_epochs, names)
        changes = self._by_stage("plan_kwargs", plan_kwargs, names)
        recipes, lengths = {}, {}
        for name in names:
            size = None if name == "transport" and len(names) > 1 else batch_size
            recipes[name] = changed_recipe(self._recipe(name), name, size, changes[name], n_cells)
            length = epochs[name]
            if length is not None and not (is_whole_number(length) and length >= 1):
                msg = f"`max_epochs` must be a whole number of at least 1, but found {length!r}."
                raise ValueError(msg)
            lengths[name] = length or recipes[name].max_epochs(n_cells)
        validated = [name for name in names if name != "transport" and len(self.validation_indices_)]
        if early_stopping and not validated:
            msg = (
                "`early_stopping` watches the loss of validation cells, but there are none. Set `train_size` below 1, or leave "
                "`early_stopping` out; the transport cannot be stopped early."
            )
            raise ValueError(msg)
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        for name in names:
            options = {**trainer_kwargs, "early_stopping": early_stopping and name in validated}
            run = partial(self._run, max_epochs=lengths[name], checkpoint_dir=folder, **options)
            if getattr(self, f"_train_{name}")(recipes[name], run, **of_stage).was_interrupted:
                return

    def _run(
        self,
        plan: StagePlan,
        data: StageData,
        *made_with: object,
        max_epochs: int,
        checkpoint_dir: Path | None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        **options: Any,
    ) -> StageResult:
        """Run a stage; its checkpoint is resumed if the cells, the split and whatever it is ``made_with`` are the same."""
        logger.info("Training the %s for %d epochs.", plan.name, max_epochs)
        plan.trained_rows = self._trained_rows()
        if checkpoint_dir is not None:
            plan.fingerprint = digest_of(self._fingerprint, self.train_indices_, *made_with)
        accelerator, devices, device = parse_device_args(accelerator, devices, return_device="torch")
        where = {"accelerator": accelerator, "devices": devices}
        result = run_stage(plan, data, max_epochs=max_epochs, checkpoint_dir=checkpoint_dir, **where, **options)
        self.to_device(result.device or device)  # as scvi-tools' models stay where they were trained
        self.trainer = result.trainer
        self.history_ = {**(self.history_ or {}), **result.history}
        return result

    def _due_stages(self) -> Sequence[str]:
        """Stages that ``train`` trains."""
        return self._stages

    def _recipe(self, stage: str) -> Recipe:
        """Return the default recipe of a stage."""
        raise NotImplementedError

    def _by_stage(self, argument: str, given: Any, stages: Sequence[str]) -> dict[str, Any]:
        """Return what an argument says for each stage: the same for all, or, of a mapping from stages, what each is given."""
        names_stages = isinstance(given, Mapping) and (
            argument == "max_epochs" or any(name in self._stages or isinstance(given[name], Mapping) for name in given)
        )
        if not names_stages:
            return dict.fromkeys(stages, given)
        for name in given:
            if name not in self._stages:
                msg = f"`{argument}` names the unknown stage {name!r}. {known_names(name, self._stages)}"
                raise ValueError(msg)
            if name not in stages:
                msg = f"`{argument}` names the stage {name!r}, which is not trained. {self._why_left_out(name)}"
                raise ValueError(msg)
        return {stage: given.get(stage) for stage in stages}

    def _why_left_out(self, stage: str) -> str:
        return f"`train_{stage}` trains it."

    def _note_trained(self, *stages: str) -> None:
        """Take note of which stages are trained, and whether the model can generate with them."""
        self.trained_stages_ = [stage for stage in self._stages if stage in stages]
        self.is_trained_ = self._stages_to_generate <= set(stages)

    def __repr__(self) -> str:
        return describe(self)

    @property
    def summary_string(self) -> str:
        """What ``print(model)`` shows."""
        return describe(self)

    @property
    def _recipe_name(self) -> str:
        return "published" if self.init_params_["non_kwargs"]["size"] == "published" else "default"

    def _trained_rows(self) -> Mapping[nn.Parameter, Tensor | None] | None:
        """Return what may be trained, each with a mask of its rows or None for all; None for everything."""
        return None

    @property
    def _keeps_scale(self) -> bool:
        """Whether the scale on which the network works was decided before, on other cells."""
        return False

    def _cell_data(self, recipe: Recipe) -> CellData:
        return CellData(self._cells, self.train_indices_, self.validation_indices_, recipe.batch_size)

    @property
    def _split_fits(self) -> bool:
        """Whether there is a split, and of as many cells as the model has."""
        parts = (self.train_indices_, self.validation_indices_, self.test_indices_)
        return all(part is not None for part in parts) and sum(map(len, parts)) == self._cells.n_cells

    def _split(self, train_size: float | None = None, validation_size: float | None = None) -> None:
        """Split the cells, always in the same way for the same seed; all stages use the split."""
        for name, size in {"train_size": train_size, "validation_size": validation_size}.items():
            if size is not None and not (isinstance(size, Real) and 0 <= size <= 1):
                msg = f"`{name}` must be a number from 0 to 1, a share of the cells, but found {size!r}."
                raise ValueError(msg)
        n_cells = self._cells.n_cells
        if train_size is None:
            default = max(0.9, 1 - MAX_VALIDATION_CELLS / n_cells)
            train_size = default if validation_size is None else 1 - validation_size
        if train_size == 0:
            msg = "There must be cells to train on, but `train_size` is 0, or `validation_size` 1."
            raise ValueError(msg)
        if train_size + (validation_size or 0) > 1 + 1e-9:
            msg = f"`train_size` and `validation_size` must add up to at most 1, but {train_size} and {validation_size} were given."
            raise ValueError(msg)
        order = np.random.default_rng(settings.seed or 0).permutation(n_cells)
        n_train = max(round(train_size * n_cells), 1)
        end = n_cells if validation_size is None else min(n_train + round(validation_size * n_cells), n_cells)
        self.train_indices_, self.validation_indices_ = np.sort(order[:n_train]), np.sort(order[n_train:end])
        self.test_indices_ = np.sort(order[end:])

    @property
    def _fingerprint(self) -> str:
        """Tell this model and its cells, with their values and conditions, from others."""
        cells, arguments = self._cells, self.registry_["setup_args"]
        tables = arguments["condition_embeddings"]
        vectors = [part for name in sorted(tables) for part in (list(tables[name].index), tables[name].to_numpy())]
        layer = arguments["layers"] if "layers" in arguments else arguments["layer"]
        what = (self.architecture, self._condition_keys, self._input_values, layer, list(self.var_.index))
        return digest_of(*what, cells.digest, np.asarray(cells.codes, dtype=float), *vectors)


class LatentTrainingMixin(TrainingMixin):
    """The stages of a model with an autoencoder, a prior over its latents, and a transport between them."""

    architecture: SCLDMArchitecture
    _stages: ClassVar[tuple[str, ...]] = ("autoencoder", "prior", "transport")
    _stages_to_generate: ClassVar[frozenset[str]] = frozenset({"autoencoder", "prior"})

    def train_autoencoder(
        self,
        max_epochs: int | None = None,
        *,
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the autoencoder alone; the other stages, which knew other latents, are void then. Parameters as in :meth:`train`."""
        if self._keeps_autoencoder:
            raise ValueError(AUTOENCODER_STAYS)
        self._train(
            "train_autoencoder",
            lambda: ["autoencoder"],
            trainer_kwargs,
            max_epochs=max_epochs,
            train_size=train_size,
            validation_size=validation_size,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            compile=compile,
        )

    def train_prior(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the prior alone, on latents computed once, with the split of the autoencoder. Parameters as in :meth:`train`."""
        self._check_can_read_cells()
        self._train(
            "train_prior",
            lambda: ["prior"],
            trainer_kwargs,
            keep_split=True,
            max_epochs=max_epochs,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            compile=compile,
        )

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
            lambda: ["transport"],
            trainer_kwargs,
            keep_split=True,
            max_epochs=max_epochs,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            control_values=control_values,
        )

    def _train_autoencoder(self, recipe: AutoencoderRecipe, run: Run, *, compile: bool) -> StageResult:
        if "autoencoder" not in self.trained_stages_:
            start_autoencoder(self.module, self._cells, self.train_indices_)
        if compile:
            self.module.encoder.compile()
            self.module.decoder.compile()
        self._note_trained(*{"autoencoder"} & {*self.trained_stages_})  # the latents that the others knew are gone
        result = run(AutoencoderPlan(self.module, recipe, seed=stage_seed()), self._cell_data(recipe))
        self._note_trained("autoencoder")
        return result

    def _train_prior(self, recipe: PriorRecipe, run: Run, *, compile: bool) -> StageResult:
        with self._encode_cells() as cache:
            self._describe_cells_of(cache)
            if compile:
                self.module.prior.compile()
            split = self.train_indices_, self.validation_indices_
            data = LatentData(cache, *split, recipe.batch_size, recipe.smallest_epoch)
            result = run(PriorPlan(self.module, recipe, seed=stage_seed() + 1), data, self._autoencoder_digest)
            describe_predicted_totals(self.module, cache)
        self._note_trained(*self.trained_stages_, "prior")
        self.library_head_is_trained_ = True
        return result

    def _train_transport(
        self,
        recipe: TransportRecipe,
        run: Run,
        *,
        control_values: Mapping[str, Any] | None = None,
        compile: bool = False,  # the transport is too small for it
    ) -> StageResult:
        control = dict(self.registry_["setup_args"]["control_values"] if control_values is None else control_values)
        if not control:
            msg = "What is unperturbed? Give `control_values`, here or to setup_anndata, such as {'condition': 'control'}."
            raise ValueError(msg)
        code = self.conditions.encode(control, 1)
        groups = self._perturbation_groups(control)
        if not groups:
            msg = f"No perturbed training cells have control cells, {control}, with the same values of the other keys."
            raise ValueError(msg)
        n_perturbed = int((~self._are_control(control)).sum())
        n_paired = sum(len(group.perturbed) for group in groups)
        if n_paired < n_perturbed:
            msg = (
                f"{n_perturbed - n_paired} of {n_perturbed} perturbed cells have no control cells with the same values of the other keys, "
                "and teach the transport nothing. If keys such as the donor go with the perturbation, leave them out of the conditions."
            )
            warn_user(msg)
        seed = stage_seed() + 2
        with self._encode_cells() as cache:
            if "prior" not in self.trained_stages_:
                self._describe_cells_of(cache)
            with torch.random.fork_rng(devices=[]):  # a resumed run has drawn less from the global state by now
                torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
                transport = self.module.add_transport()
            transport.start_from(torch.from_numpy(code[0]).to(self.device))
            data = PairData(cache, groups, recipe, recipe.steps_per_epoch(len(self.train_indices_)))
            plan = TransportPlan(self.module, recipe, seed=seed)
            result = run(plan, data, self._autoencoder_digest, sorted(control.items()))
        self._note_trained(*self.trained_stages_, "transport")
        return result

    def _due_stages(self) -> Sequence[str]:
        control = self.registry_["setup_args"]["control_values"]
        stages = ["prior"] if self._keeps_autoencoder else ["autoencoder", "prior"]
        return [*stages, "transport"] if control and self._perturbation_groups(control) else stages

    def _why_left_out(self, stage: str) -> str:
        if stage == "transport":
            return (
                "It needs `control_values`, told to `setup_anndata`, and perturbed cells that have control cells with the same "
                "values of the other keys; `train_transport` trains it alone."
            )
        return AUTOENCODER_STAYS if stage == "autoencoder" and self._keeps_autoencoder else super()._why_left_out(stage)

    def _recipe(self, stage: str) -> Recipe:
        return getattr(RECIPES[self._recipe_name], stage)

    def _encode_cells(self) -> LatentCache:
        in_files = self._file_cells is not None
        limit = LATENTS_IN_MEMORY_WITH_FILES if in_files else LATENTS_IN_MEMORY
        return encode_cells(self.module, self._cells, limit)

    def _describe_cells_of(self, cache: LatentCache) -> None:
        """Keep what generating needs to know of the cells: library sizes and the latents' scale."""
        self.module.library_size.fit(cache.arrays["log_total"], cache.arrays["condition"])
        if not self._keeps_scale:
            standardise_latents(self.module, cache)

    def _perturbation_groups(self, control: Mapping[str, Any]) -> list[Any]:
        """Group the training cells by perturbation. Numbers that do not perturb, such as an age, tell no groups apart: hardly two cells share one."""
        rows = self.train_indices_
        codes = self._registered_codes[rows]
        discrete = [key.name for key in self.conditions.by_key if not isinstance(key, ContinuousKey)]
        others = self._columns_of([name for name in discrete if name not in control])
        return perturbation_groups(
            rows, self._are_control(control), codes[:, self._columns_of(control)], codes[:, others]
        )

    def _are_control(self, control: Mapping[str, Any]) -> np.ndarray:
        """Tell which training cells are unperturbed, ``(cells,)``."""
        columns = self._columns_of(control)
        asked = self.conditions.encode(control, 1)[:, columns]
        return np.isclose(self._registered_codes[self.train_indices_][:, columns], asked).all(1)

    def _columns_of(self, names: Iterable[str]) -> list[int]:
        slices = (self.conditions.columns(name) for name in names)
        return [column for found in slices for column in range(found.start, found.stop)]

    @property
    def _keeps_autoencoder(self) -> bool:
        """Whether the autoencoder is that of a reference, and not trained."""
        return False

    @property
    def _autoencoder_digest(self) -> str:
        """Tell the autoencoder's weights, by which the latents were computed, from others."""
        parts = (self.module.encoder, self.module.decoder, self.module.likelihood)
        return digest_of(*(tensor.cpu().numpy() for part in parts for tensor in part.state_dict().values()))


class GeneSpaceTrainingMixin(TrainingMixin):
    """The one stage of a model that diffuses profiles themselves."""

    architecture: GeneSpaceArchitecture
    _stages: ClassVar[tuple[str, ...]] = ("diffusion",)
    _stages_to_generate: ClassVar[frozenset[str]] = frozenset(_stages)
    _recipes: ClassVar[Mapping[str, DiffusionRecipe]]

    def _train_diffusion(self, recipe: DiffusionRecipe, run: Run, *, compile: bool) -> StageResult:
        module, cells, has_counts = self.module, self._cells, self._input_values == "counts"
        is_first = not self.is_trained_
        if is_first:
            start_gene_space(module, cells, self.train_indices_, self._gene_order())
        if has_counts:
            describe_totals(module, cells)
        if compile:
            module.network.backbone.compile()
        start = [tensor.cpu().numpy() for tensor in (module.shift, module.scale, module.training_zeros)]
        result = run(DiffusionPlan(module, recipe, seed=stage_seed()), self._cell_data(recipe), recipe, *start)
        self._note_trained("diffusion")
        if has_counts:
            describe_predicted_profile_totals(module, cells)
            self.library_head_is_trained_ = True
        if is_first:  # whoever trains on starts where the loss had fallen to
            self._warn_if_nothing_was_learned()
        return result

    def _gene_order(self) -> np.ndarray | None:
        """Return the numbers of the genes in the order in which they are patched; None for that of their correlations."""
        order = self.architecture.gene_order
        if order == "correlation":
            return None
        n_genes = self.summary_stats.n_vars
        return np.arange(n_genes) if order == "given" else self._registered_genes.get_indexer(list(order))

    def _recipe(self, stage: str) -> Recipe:
        return self._recipes[self._recipe_name]


def digest_of(*parts: object) -> str:
    """Tell these parts from others: dataclasses, plain values and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def changed_recipe(
    recipe: RecipeT, stage: str, batch_size: int | None, changes: Mapping[str, Any] | None, n_cells: int
) -> RecipeT:
    """Apply a user's changes to the recipe of a stage with ``n_cells`` training cells."""
    if not (changes is None or isinstance(changes, Mapping)):
        msg = f"`plan_kwargs` must be a mapping from options to values, but found {changes!r}."
        raise TypeError(msg)
    changes = ({} if batch_size is None else {"batch_size": batch_size}) | dict(changes or {})
    known = [field.name for field in fields(recipe)]
    for name, value in changes.items():
        if name not in known:
            advice = f"Did you mean {LEARNING_RATE!r}?" if name == "lr" else known_names(name, known)
            msg = f"`plan_kwargs`: the {stage} has no option {name!r}. {advice}"
            raise TypeError(msg)
        if isinstance(getattr(recipe, name), Real) and not isinstance(value, Real):
            msg = f"`plan_kwargs`: {name!r} must be a number, but found {value!r}."
            raise TypeError(msg)
    size = changes.get("batch_size", recipe.batch_size)
    if not (is_whole_number(size) and size >= 1):
        msg = f"`batch_size` must be a whole number of at least 1, but found {size!r}."
        raise ValueError(msg)
    return replace(recipe, **{**changes, "batch_size": min(size, max(n_cells, recipe.batch_size))})


def stage_seed() -> int:
    """Take scvi-tools' seed, or else a random one."""
    return settings.seed if settings.seed is not None else int(torch.randint(2**31, (1,)))
