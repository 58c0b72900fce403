"""The base class of all models: registering cells, training, generating, saving and fine-tuning."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from itertools import compress, repeat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from scvi.model.base import BaseModelClass

from scgen_diffusion._arguments import known_names, list_first, warn_user
from scgen_diffusion._compat import parse_device_args, respect_thread_limit, separate_copy
from scgen_diffusion.data import (
    OPEN,
    PROVENANCE_KEY,
    CellFiles,
    ConditionField,
    ConditionKey,
    Conditions,
    ConditionSetup,
    GivenCells,
    ReadTables,
    RegisteredCells,
    SetKey,
    build_anndata,
    check_expression,
    check_is_anndata,
    check_layer,
    check_natural_logarithms,
    check_not_empty,
    check_order,
    check_rows,
    check_same_genes,
    check_same_registry,
    check_storage,
    check_values,
    digest_of,
    encode_conditions,
    extend_tables,
    layer_of,
    mark_occurring,
    pad_genes,
    recode,
    registered_genes,
    registered_keys,
    resolve_seed,
    savable_columns,
    to_plain,
    values_in,
)
from scgen_diffusion.diffusion import check_sampler
from scgen_diffusion.generation import (
    CellGenerator,
    CellRequest,
    PerturbedGroups,
    PredictionRequest,
    check_batch_size,
    describe_condition,
)
from scgen_diffusion.module import (
    CONDITIONS,
    TRAINABLE,
    Trainable,
    change_options,
    copy_reference,
    perturbation_flow_fits,
    trained_masks,
)
from scgen_diffusion.nn import Classes, ConditionEncoding, Members, Number
from scgen_diffusion.train import CellData, RunOptions, StagePlan, run_stage, show

from ._jobs import Generation, Prediction, check_learned, request_of_cells, writable
from ._model_file import (
    ADATA_FILE,
    MODEL_FILE,
    MUDATA_FILE,
    check_can_save,
    find_cells,
    init_options,
    model_content,
    name_damaged_file,
    read_model_file,
    write_cells,
    write_model,
    write_together,
)
from ._streaming import write_stream
from ._training import (
    StageRun,
    describe_training,
    plan_runs,
    split_cells,
    warn_of_busy_cores,
    warn_of_rare_labels,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning.pytorch.strategies import Strategy
    from torch import Tensor

    from scgen_diffusion.data import ConditionRequest, Modality, Paths
    from scgen_diffusion.diffusion import GuidanceScale, Sampler
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.train import Recipe, StageData, TrainingCells


class History(dict[str, "pd.DataFrame"]):
    """Losses by name; the error for a name of another model lists those of this one."""

    def __missing__(self, name: str) -> pd.DataFrame:
        msg = f"`history` has no {name!r}. {known_names(name, [*self])}"
        raise KeyError(msg)


class DiffusionModel(BaseModelClass):
    """Base class: a scvi-tools model that generates cells under conditions.

    A subclass builds the module and trains its stages.
    """

    _architectures: ClassVar[Mapping[str, Any]]
    """Architectures by size."""
    registry_: dict[str, Any]
    var_: pd.DataFrame
    train_indices_: Any
    validation_indices_: Any
    test_indices_: Any
    combinations_: np.ndarray
    combination_sizes_: np.ndarray
    trained_stages_: list[str]
    history_: dict[str, pd.DataFrame] | None
    default_sampler: str
    recipes_: Mapping[str, Mapping[str, Any]] = MappingProxyType({})  # training options and seed of each trained stage
    cut_short_: Mapping[str, str] = MappingProxyType({})  # stages that the user stopped
    _file_cells: TrainingCells | None = None  # the `datamodule` given to `train`
    split_digest_: str | None = None  # of the names of the cells that were split into training and validation cells
    reference_: Mapping[str, Any] | None = None  # what a fine-tuned model keeps of its reference
    _prediction_methods: ClassVar[tuple[str, ...]] = ("inversion",)
    """Allowed values of ``method`` in ``predict_perturbation``."""
    _stages: ClassVar[tuple[str, ...]]
    """Training stages in order; a method ``_train_<stage>`` trains each."""
    _stages_to_generate: ClassVar[frozenset[str]]

    # --- registering cells --------------------------------------------------------------------------------------------

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        size: Literal["default", "published"] = "default",
        **architecture: Any,
    ) -> None:
        if not isinstance(adata, AnnData | MuData | None):
            msg = f"`adata` must be cells in memory (AnnData; MuData for MULTISCLDM), but found {type(adata).__name__}."
            raise TypeError(msg)
        if adata is None and registry is not None:
            check_registry(registry, type(self))
            registry = {**registry, "model_name": type(self).__name__}  # the registry of CellFiles names no model
        super().__init__(adata, registry)
        self.trained_stages_ = []
        self.architecture = change_options(self._architectures, size, architecture)
        self.module = self._build_module()
        self._describe_cells(adata)
        architecture = asdict(self.architecture)  # save all values, so that later versions may change defaults
        self.init_params_ = self._get_init_params(locals())

    @abstractmethod
    def _build_module(self) -> Any:
        """Return the untrained module of the registered cells; raise if it cannot learn them."""

    @property
    def adata(self) -> Any:
        """The model's cells in memory (AnnData or MuData), or None. Setting it replaces cells in files.

        New cells need the genes of the model in its order, and known conditions.
        """
        return BaseModelClass.adata.fget(self)

    @adata.setter
    def adata(self, adata: AnnData | MuData) -> None:
        registry = self.registry_
        self._check_same_features(adata, registry)
        separate_copy(type(self), adata)
        BaseModelClass.adata.fset(self, adata)
        # scvi-tools drops the name of the setup method, without which a saved model cannot be loaded
        self.registry_ = {**registry, "field_registries": self.registry_["field_registries"]}
        self._file_cells = None
        self._drop_split_of_others()

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        condition_keys: Sequence[str] | None = None,
        continuous_condition_keys: Sequence[str] | None = None,
        set_condition_keys: Sequence[str] | Mapping[str, str] | None = None,
        control_values: Mapping[str, Any] | None = None,
        condition_embeddings: Mapping[str, pd.DataFrame] | None = None,
        unlabeled_category: str | None = None,
        values: Literal["counts", "log1p"] = "counts",
        **kwargs: Any,
    ) -> None:
        """Register an AnnData: where the counts are, and what the conditions are.

        Parameters
        ----------
        adata
            Cells by genes.
        layer
            Layer with the counts; default ``adata.X``.
        condition_keys
            Categorical columns of ``obs`` to condition on, such as cell type or perturbation. Leave all keys out for an
            unconditional model.
        continuous_condition_keys
            Numeric columns to condition on, such as dose, time or age. You can generate values between the measured
            ones; outside the training range, or in a hole of it, you get a warning. Give a dose that spans decades as
            its logarithm.

            A name may also be that of an array of ``obsm`` with up to 50 columns, such as ``"spatial"`` (positions),
            a pseudotime with branch probabilities, or an embedding of an image. Its columns are one condition. They
            share one scale, so that distances keep their proportions; bring columns of different kinds to similar
            spreads first.
        set_condition_keys
            Columns with combinations, such as ``"A+B"`` for two perturbations; their order does not matter. The members
            are learned across combinations, so you can generate combinations that were never measured. A list of
            columns (separator ``"+"``), or a mapping from column to separator.
        control_values
            The value of unperturbed cells in each column that perturbs: ``{"perturbation": "control"}``, or
            ``{"drug": "none", "dose": 0.0}`` with a column of numbers. In a set column it means the empty set, also
            inside ``"A+control"``. Without it the control is an ordinary member.
        condition_embeddings
            Known embeddings of classes or set members, such as drug fingerprints or protein language model vectors. For
            each column a table with one row per class or member. You can also generate rows of the table that no
            training cell has.
        unlabeled_category
            Value of cells whose label is not known, such as ``"Unknown"``, in the columns of ``condition_keys``. With
            it, missing values (NaN) have no label either; without it, every cell needs a label. Cells without a label
            train the model like the others, except that what is not known is not shown, as guidance does with cells of
            every label. They are no class: the model never generates the value, and conditions that you leave out are
            drawn from the cells with all labels. Numbers and sets are always needed.
        values
            ``"counts"`` for raw counts, or ``"log1p"`` for log-normalised values (natural logarithm). SCRDIT, WBDIT and
            SCLDM with ``likelihood="gaussian"`` accept ``"log1p"``. Models trained on it cannot draw library sizes.
        **kwargs
            Passed to scvi-tools.

        Raises
        ------
        KeyError
            For an unknown layer, column, array or entry of ``uns``.
        TypeError
            For an unknown argument, or a single string in place of a list of names.
        ValueError
            For values that contradict ``values``, cells without counts or labels, no cell with all labels, duplicate
            genes, a condition key that is in both ``obs`` and ``obsm``, and condition columns, arrays, control values
            or embeddings that do not fit the data.

        Warns
        -----
        UserWarning
            If a column in ``condition_keys`` looks like numbers, cell names or missing labels instead of classes,
            or ``unlabeled_category`` is given but all cells have labels.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        refuse_unknown(kwargs)
        check_is_anndata(adata, "adata")
        setup = ConditionSetup.of(setup_method_args["setup_args"])
        setup_method_args["setup_args"] |= vars(setup)
        check_expression(adata, layer, values)
        fields = [
            # is_count_data=False: we check counts ourselves; scvi-tools refuses sparse arrays
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            ConditionField(setup),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_annbatch(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: this method of scvi-tools 1.5 does not support conditions."""
        msg = "`setup_annbatch` knows no conditions; open files and annbatch's collections by `data.CellFiles`."
        raise NotImplementedError(msg)

    def _describe_cells(self, adata: AnnData | None) -> None:
        """Keep the columns of ``var``, and count the cells of each combination of conditions."""
        self.var_ = (
            pd.DataFrame(index=registered_genes(self.registry_)) if adata is None else savable_columns(adata.var)
        )
        self._count_combinations(self._registered_codes)

    def _take_cells(self, datamodule: TrainingCells) -> None:
        """Let these cells replace the model's cells."""
        if not isinstance(datamodule, CellFiles):
            msg = f"`datamodule` must be scgen_diffusion.data.CellFiles, but found {type(datamodule).__name__}."
            raise TypeError(msg)
        check_same_registry(datamodule.registry, self.registry_)
        self._file_cells, self._adata = datamodule, None
        var = savable_columns(datamodule.var)
        self.var_ = pd.DataFrame({**self.var_, **var}, index=var.index)

    def _drop_split_of_others(self) -> None:
        """Drop the split into training and validation cells, which are row numbers, unless it is that of the cells."""
        if self.train_indices_ is not None and self.split_digest_ != self._digest_of_names():
            self.train_indices_ = self.validation_indices_ = self.test_indices_ = self.split_digest_ = None

    def _digest_of_names(self) -> str:
        return digest_of("\n".join(map(str, self._cells.obs_names)))

    @classmethod
    def _register_like(cls, cells: Any, registry: Mapping[str, Any], **options: Any) -> None:
        """Register cells as those of a registry were, with other ``options`` of the setup."""
        cls._check_same_features(cells, registry)
        separate_copy(cls, cells)
        setup = getattr(cls, "setup_mudata", cls.setup_anndata)
        setup(cells, source_registry=registry, **{**registry["setup_args"], **options})

    @staticmethod
    def _check_same_features(cells: Any, registry: Mapping[str, Any]) -> None:
        """Raise unless cells are of the kind that a model reads, with the features of its registry."""
        check_is_anndata(cells, "adata")
        check_same_genes(cells.var_names, registered_genes(registry))

    def _build(self, x: sp.csr_matrix | np.ndarray, obs: pd.DataFrame, uns: Mapping[str, Any], obsm: Any = None) -> Any:
        """Build what ``generate`` returns, from values, ``obs`` and provenance."""
        return build_anndata(x, obs, self.var_, uns, obsm)

    @property
    def _seen_indices(self) -> np.ndarray:
        """Rows of the training and validation cells of which training learns the conditions, in order."""
        rows, reference = np.sort(np.concatenate([self.train_indices_, self.validation_indices_])), self.reference_
        if reference is None or reference["trainable"] != "new_conditions":
            return rows
        # the reference's combinations count, and those with a new class or member; numbers far from its own do not
        codes = self._registered_codes[rows]
        before = Conditions(self._condition_keys, reference["combinations"], reference["combination_sizes"])
        parts = zip(before.parts, self._new_values, strict=True)
        have_new = [np.isin(codes[:, columns], np.flatnonzero(new)).any(1) for (_, columns), new in parts]
        return rows[np.any(have_new, axis=0) | ~before.are_unseen(codes)]

    def _count_combinations(self, codes: np.ndarray) -> None:
        """Count the cells of each combination of conditions, including those of the reference."""
        conditions = Conditions.from_codes(self._condition_keys, codes)
        if self.reference_ is not None:
            conditions = conditions.joined(self.reference_["combinations"], self.reference_["combination_sizes"])
        self.combinations_, self.combination_sizes_ = conditions.combinations, conditions.n_cells

    @property
    def conditions(self) -> Conditions:
        """Condition keys, their classes, and the number of training and validation cells of each combination."""
        return Conditions(self._condition_keys, self.combinations_, self.combination_sizes_)

    @property
    def modalities(self) -> dict[str, Modality]:
        """Features and likelihood of each modality; empty if there is only one."""
        return {}

    @property
    def _input_values(self) -> InputValues:
        return self.registry_["setup_args"].get("values", "counts")  # of MuData, only counts

    @property
    def _condition_keys(self) -> list[ConditionKey]:
        return registered_keys(self.registry_)

    @property
    def _condition_encodings(self) -> list[ConditionEncoding]:
        """What the networks need to know about each key."""
        tables, encodings = self.registry_["setup_args"]["condition_embeddings"], list[ConditionEncoding]()
        for key in self._condition_keys:
            table = tables.get(key.name)
            vectors = None if table is None else torch.from_numpy(table.to_numpy(dtype=np.float32))
            if key.is_numeric:
                encodings.append(Number(key.n_columns))
            elif isinstance(key, SetKey):
                encodings.append(Members(key.n_values, key.largest, vectors))
            else:
                encodings.append(Classes(key.n_values, vectors))
        return encodings

    @property
    def _registered_codes(self) -> np.ndarray:
        """Condition codes of the model's cells, ``(cells, columns)``; no rows if it has no cells."""
        if not self._has_cells:
            return np.zeros((0, sum(key.n_columns for key in self._condition_keys)))
        return self._cells.codes

    @property
    def _has_cells(self) -> bool:
        return self._file_cells is not None or self.adata is not None

    @property
    def _cells(self) -> TrainingCells:
        """The cells that the model trains on."""
        if not self._has_cells:
            msg = (
                "The model has no cells to train on. Construct it with an AnnData, set model.adata, or give cells in "
                "files: `datamodule=scgen_diffusion.data.CellFiles(...)`."
            )
            raise ValueError(msg)
        return self._file_cells or RegisteredCells(self.adata_manager)

    # --- training -----------------------------------------------------------------------------------------------------

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
        """Train the model, stage by stage; a trained model is trained on.

        SCLDM has the stages ``"autoencoder"`` and ``"prior"``. It adds ``"perturbation_flow"`` if ``setup_anndata``
        was given ``control_values`` and some perturbed cells have controls with the same values of the other keys.
        SCRDIT, WBDIT and SCMDM have one stage, ``"diffusion"``. Afterwards ``trained_stages_`` lists the trained
        stages, ``history`` holds the losses of each epoch of a stage's last training, ``recipes_`` the training options
        of each stage and ``scvi.settings.seed`` (None if there was none), with the perturbation flow's control values
        and match keys, and ``trainer`` is the trainer of the last stage.

        Press Ctrl-C to stop and keep the weights. After an error, the model is as it was before the stage.
        ``cut_short_`` names the stages that were stopped, also in a saved model.

        A progress bar has the time left of all stages; a log file gets a line now and then. One line at the end has the
        epochs, the validation losses and the minutes. ``enable_progress_bar=False`` switches all this off.

        Parameters
        ----------
        max_epochs
            Epochs of every stage, or a mapping from stage to epochs: ``{"prior": 500}``. Default, also of stages that a
            mapping leaves out: as many as the number of cells suggests; SCLDM's autoencoder, SCRDIT and WBDIT end
            earlier once their validation loss no longer falls (``patience`` of :class:`~scgen_diffusion.train.Recipe`).
            A trained model is trained on, all its stages; ``train_prior`` trains the prior alone.
        accelerator, devices
            Where to train; passed to Lightning.
        train_size
            Share of cells to train on. Default: what ``validation_size`` leaves, or else 90 % (all but 2,000 cells in
            larger data). If you train a model again, it keeps its split, unless you give a share.
        validation_size
            Share of cells to validate on. Default: all cells that are not trained on.
        batch_size
            Cells per step, of all processes together. Default: 128 for autoencoder and diffusion, 256 for the prior.
            For the flow it counts pairs of a control and a perturbed cell: by default 512 pairs, so 1,024 cells.
            The flow ignores it unless trained alone. A value above both the default and the number of training
            cells is reduced.
        early_stopping
            Whether other stages, and those with ``max_epochs``, end early too, once the validation loss no longer
            falls; ``{"patience": 20}`` in ``plan_kwargs`` waits longer. The flow has no validation. For SCMDM, whose
            loss does not judge the cells, it is an error.
        plan_kwargs
            Training options of every stage, such as ``{"learning_rate": 1e-3}``, or a mapping from stage to options:
            ``{"prior": {"learning_rate": 1e-3}}``. See :class:`~scgen_diffusion.train.AutoencoderRecipe`,
            :class:`~scgen_diffusion.train.PriorRecipe`, :class:`~scgen_diffusion.train.PerturbationFlowRecipe` and
            :class:`~scgen_diffusion.train.DiffusionRecipe`.
        datamodule
            Cells in files, :class:`~scgen_diffusion.data.CellFiles` (not for MULTISCLDM). They replace the model's
            cells, also in later calls, until you set ``model.adata``. Default: the model's cells.
        checkpoint_dir
            Folder for checkpoints. After an interruption, make the same call again to resume, also in a new process.
        compile
            Whether to compile the networks and, on a GPU, SCLDM's likelihood with ``torch.compile``.
        **trainer_kwargs
            Passed to Lightning's trainer: ``precision``, ``strategy``, ``callbacks``, ``enable_progress_bar`` ...

        Raises
        ------
        OSError
            If ``checkpoint_dir`` is a file or cannot be written to.
        TypeError
            For an unknown argument or option.
        ValueError
            For values that are not allowed, cells that changed after ``setup_anndata``, and checkpoints of other cells.

        Warns
        -----
        UserWarning
            For labels with fewer than 10 training cells.
        """
        shares = train_size, validation_size
        how: dict[str, Any] = {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping}
        how |= {"checkpoint_dir": checkpoint_dir, "compile": compile, **trainer_kwargs}
        self._train(None, max_epochs, shares, batch_size, plan_kwargs, datamodule, **how)

    def _train(
        self,
        stages: Sequence[str] | None,
        max_epochs: int | Mapping[str, int] | None = None,
        shares: tuple[float | None, float | None] = (None, None),
        batch_size: int | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        *,
        of_stage: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        """Check all arguments, then train the stages (None: those that are due) until the user stops one.

        After an error the model is as it was before, but for stages whose training has ended.
        """
        respect_thread_limit()
        warn_of_busy_cores()
        started, how, before, plans = time.monotonic(), RunOptions.of(**options), self._snapshot(), list[StagePlan]()
        how = replace(how, enable_progress_bar=how.is_first_process() and how.enable_progress_bar)
        try:
            if datamodule is not None:
                self._take_cells(datamodule)
            if isinstance(cells := self._cells, RegisteredCells):
                cells.check()
            self._split(*shares)
            if stages is None or self._stages_to_generate & {*stages}:  # else what the model can generate stays
                if not self.trained_stages_:
                    warn_of_rare_labels(self._condition_keys, self._registered_codes, self.train_indices_)
                self._count_combinations(self._registered_codes[self._seen_indices])
            stages = self._due_stages() if stages is None else stages
            recipes = {stage: self._recipe(stage) for stage in stages}
            n_cells = len(self.train_indices_), len(self.validation_indices_)
            runs = plan_runs(recipes, how, max_epochs, batch_size, plan_kwargs, *n_cells)
            if how.checkpoint_dir is not None:
                how.checkpoint_dir.mkdir(parents=True, exist_ok=True)
            for run in runs:
                plans.append(getattr(self, f"_train_{run.stage}")(run, **of_stage))
                before = self._snapshot()
                if plans[-1].was_stopped:
                    break
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        if how.enable_progress_bar:
            show(describe_training(runs, plans, time.monotonic() - started))

    def _fit(
        self, run: StageRun, plan_class: type[StagePlan], data: StageData, *depends_on: object, **arguments: Any
    ) -> StagePlan:
        """Train a stage, record its recipe and further ``arguments``, and return its plan.

        A checkpoint is resumed only if model, cells and what the result ``depends_on`` besides are the same.
        """
        plan = plan_class(self.module, run.recipe, seed=run.seed)
        plan.trained_rows = self._trained_rows(plan.name)
        history, loss = self.history_ or {}, f"{plan.name}_loss_train"
        if run.options.checkpoint_dir is not None:
            # total counts come from both parts of the split
            plan.fingerprint = digest_of(self._fingerprint, self.train_indices_, self.validation_indices_, *depends_on)
            plan.losses_before = history[loss][loss].dropna().to_dict() if loss in history else {}
        self.trainer = run_stage(plan, data, run.options, max_epochs=run.n_epochs)
        self.to_device(self.trainer.strategy.root_device)  # like scvi-tools' models, it stays where it was trained
        self.history_ = {**history, **plan.history}
        recorded = {**asdict(run.recipe), **arguments, "seed": settings.seed}
        self.recipes_ = {**self.recipes_, run.stage: to_plain(recorded)}
        others = {stage: how for stage, how in self.cut_short_.items() if stage != run.stage}
        self.cut_short_ = {**others, run.stage: "stopped"} if plan.was_stopped else others
        return plan

    def _snapshot(self) -> dict[str, Any]:
        """Return the model's attributes, which training replaces, with a copy of the module, which it changes."""
        return {**self.__dict__, "module": deepcopy(self.module)}

    def _split(self, train_size: float | None, validation_size: float | None) -> None:
        """Split the cells; by default, a trained model keeps its split."""
        if train_size is None and validation_size is None:
            self._drop_split_of_others()
            if self.trained_stages_ and self.train_indices_ is not None:
                return
        parts = split_cells(self._cells.n_cells, train_size, validation_size)
        self.train_indices_, self.validation_indices_, self.test_indices_ = parts
        self.split_digest_ = self._digest_of_names()

    def _due_stages(self) -> Sequence[str]:
        """Stages that ``train`` trains."""
        return self._stages

    @abstractmethod
    def _recipe(self, stage: str) -> Recipe:
        """Return the default recipe of a stage."""

    def _record_trained(self, *stages: str) -> None:
        """Record which stages are trained, and whether the model can generate; forget how others were trained."""
        self.trained_stages_ = [stage for stage in self._stages if stage in stages]
        self.recipes_ = {stage: options for stage, options in self.recipes_.items() if stage in stages}
        self.cut_short_ = {stage: how for stage, how in self.cut_short_.items() if stage in stages}
        self.is_trained_ = self._stages_to_generate <= set(stages)

    def __repr__(self) -> str:
        return self.summary_string

    @property
    def history(self) -> History:
        """Losses by name, ``<stage>_<loss>_train`` and ``<stage>_<loss>_validation``, as tables by epoch."""
        return History(self.history_ or {})

    @property
    def summary_string(self) -> str:
        """Cells, genes, conditions and trained stages, as ``print(model)`` shows them."""
        layer, controls = self.registry_["setup_args"].get("layer"), self.registry_["setup_args"]["control_values"]
        controls = self.recipes_.get("perturbation_flow", {}).get("control_values", controls)
        place = "X" if layer is None else f"layers[{layer!r}]"
        modalities = [f"{name} ({len(m.features):,}, {m.likelihood})" for name, m in self.modalities.items()]
        new = self._new_values if self.reference_ is not None and self._has_cells else repeat(torch.zeros(0))
        conditions = []
        for key, are_new in zip(self.conditions.by_key, new, strict=False):
            notes = [key.summary]
            if controls.get(key.name) is not None:
                notes.append(f"control: {controls[key.name]!r}")
            if are_new.any():
                notes.append(f"new: {list_first([repr(label) for label in compress(key.labels, are_new)])}")
            conditions.append(f"{key.name} ({'; '.join(notes)})")
        stages = [f"{s} ({self.cut_short_[s]})" if s in self.cut_short_ else s for s in self.trained_stages_]
        n_cells = self._cells.n_cells if self._has_cells else self.summary_stats.n_cells
        is_published = bool(stages) and not self.recipes_
        return (
            f"{type(self).__name__} {'with published weights' if is_published else f'of {n_cells:,} cells'}\n"
            f"  genes:      {', '.join(modalities) or f'{len(self.var_):,} ({self._input_values} in {place})'}\n"
            f"  conditions: {list_first(conditions) or 'none'}\n"
            f"  trained:    {', '.join(stages) or 'nothing'}"
        )

    @property
    def _recipe_name(self) -> str:
        return self.init_params_["non_kwargs"]["size"]

    def _cell_data(self) -> CellData:
        return CellData(self._cells, self.train_indices_, self.validation_indices_)

    @property
    def _fingerprint(self) -> str:
        """Digest of the model's options and its cells; it identifies checkpoints."""
        cells, arguments = self._cells, self.registry_["setup_args"]
        tables = arguments["condition_embeddings"]
        vectors = [part for name in sorted(tables) for part in (list(tables[name].index), tables[name].to_numpy())]
        layer = arguments.get("layer") or [arguments.get("layers"), arguments.get("modalities")]
        what = (self.architecture, self._condition_keys, self._input_values, layer, list(self.var_.index))
        fine_tuned = [] if self.reference_ is None else [self.reference_["trainable"], self.reference_["digest"]]
        return digest_of(*what, cells.digest, np.asarray(cells.codes, dtype=float), *vectors, *fine_tuned)

    # --- generating ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        guidance_scale: GuidanceScale = 1.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        counts: bool | None = None,
        library_size: float | Sequence[float] | np.ndarray | Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = True,
    ) -> AnnData:
        """Generate cells.

        Parameters
        ----------
        n_cells
            Number of cells. You can leave it out if ``condition`` has one row or value per cell.
        condition
            Condition of the cells.

            - None: draw conditions from their joint distribution in the training cells.
            - A mapping from key to a value for all cells, or to a list. The list has one value per cell, or fewer: each
              value then goes to an equal share of consecutive cells. A value of an array is a row, so a position is
              ``{"spatial": [x, y]}``, and many are an array ``(cells, 2)``. Keys left out are drawn given the others;
              given a number or an array, from the nearest training cells, about 15 or all at the nearest number.
            - A table with one row per cell and keys as columns. The columns of an array have their own:
              ``"spatial_0"``, ``"spatial_1"`` (or the names that they have in training).
            - Cells (AnnData), for new cells under the same conditions. Keys that they lack are drawn.

            You can ask for combinations that training never saw if you give every key. If a perturbation is new for
            such cells, but their controls are not, an SCLDM with a flow generates control cells and moves them, as
            :meth:`predict_perturbation` does. The table ``uns["scgen_diffusion"]["support"]`` then says how far these
            cells can be trusted, and a warning if they cannot. It has the columns of :meth:`predict_perturbation`.
        guidance_scale
            1: conditional; 0: unconditional; larger: more typical of the condition and less diverse, and far above 5
            unlike real cells; negative: away from the condition. One number, or a mapping from keys to numbers. See the
            user guide, "Guidance".
        sampler
            Name of a sampler, or a sampler object of :mod:`scgen_diffusion.diffusion`. SCLDM has ``"midpoint"``
            and ``"euler"``. SCRDIT and WBDIT have ``"dpm_solver_3m"``, ``"dpm_solver"`` (the default with
            ``head="regression"``), ``"ddim"`` and ``"ddpm"``; SCMDM has ``"unmasking"``. Default: the first.
        n_steps
            Steps of the sampler. Default: its own, such as 10 of ``"midpoint"``, 64 of ``"unmasking"`` and 12 of
            ``"dpm_solver_3m"``.
        counts
            True: integer counts. False: log-normalised values, for which the counts of the model's genes are scaled to
            10,000. Default: log-normalised values from SCRDIT, WBDIT and SCLDM with a Gaussian head, else counts. SCLDM
            and SCMDM return their default only.
        library_size
            Total counts of the cells: one number, or one number per cell. Default: drawn for what is generated. For
            several modalities, a mapping from modality to numbers, ``{"prot": 3_000}``; other totals are drawn.
        batch_size
            Largest number of cells made at a time, rounded up to whole blocks (128 cells on a CPU, up to 8,192 on a
            GPU). It does not change the cells.
        seed
            Same seed, same cells. Default: ``scvi.settings.seed``, or else random. ``uns`` records it. Requests with
            the same seed start from the same noise, so their cells differ only by condition.
        show_progress
            Whether to show a progress bar, after three seconds.

        Returns
        -------
        AnnData
            Values in ``X`` (CSR counts, or log-normalised values with ``uns["log1p"]`` set), conditions in ``obs``
            (with the categories that occur, or all if they are ordered) and arrays in ``obsm``, ``var`` as in training.
            ``uns["scgen_diffusion"]`` records how the cells were made: class and version, options and seed.
            ``obs["synthetic"]`` is True. Two different requests share no cell names. MULTISCLDM returns MuData in which
            each cell has all modalities.

        Warns
        -----
        UserWarning
            For conditions that few or no training cells have, effects that are not supported, and keys that must share
            a guidance scale.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        TypeError, ValueError
            For arguments of a wrong type, unknown keys, values or samplers, and numbers or lengths that do not fit.
        FloatingPointError
            If sampling diverges to values that are not finite.
        """
        job = self._generation(
            n_cells, condition, guidance_scale, sampler, n_steps, counts, library_size, batch_size, seed
        )
        return job.make(show_progress=show_progress)

    def generate_to(
        self,
        path: str | os.PathLike[str],
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        seed: int | None = None,
        show_progress: bool = True,
        shard_size: int | None = None,
        overwrite: bool = False,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        strategy: str | Strategy = "auto",
        num_nodes: int = 1,
        **options: Any,
    ) -> Path:
        """Generate any number of cells to a file, part by part and on any number of devices.

        Run the same call again to resume; a finished one returns at once. The cells are those of :meth:`generate`,
        whatever the number of shards and devices. Memory holds one shard, and at the end ``obs``.

        Parameters
        ----------
        path
            Path of the file: ``.zarr`` (version 3, sharded) or ``.h5ad``. Finished shards wait in a hidden folder
            beside it, uncompressed.
        n_cells, condition
            See :meth:`generate`.
        seed
            See :meth:`generate`. Without a seed, a resumed call keeps its first seed.
        show_progress
            Whether to show a progress bar, which includes the cells of earlier calls.
        shard_size
            Cells per shard, rounded up to whole blocks. Larger shards need more memory, and an interruption loses more.
            Default: 34 million values including zeros, at most 65,536 cells.
        overwrite
            Whether to replace a file that this method wrote for another request, once the new one is finished. Other
            files at the path are never replaced.
        accelerator, devices, strategy, num_nodes
            Passed to Lightning, as in :meth:`train`: each process makes its share of the shards, and the first one
            joins all. Default: the device of the model.
        **options
            ``guidance_scale``, ``sampler``, ``n_steps``, ``counts``, ``library_size`` and ``batch_size`` of
            :meth:`generate`. A call whose ``sampler`` is a function or an object of one's own cannot be resumed.

        Returns
        -------
        pathlib.Path
            The path.

        Raises
        ------
        FileExistsError
            If the path holds a file of other cells.
        ValueError
            As in :meth:`generate`.
        OSError
            If the folder does not exist or cannot be written to, or the disk is full.
        """
        job = self._generation(n_cells, condition, seed=seed, **options)
        return write_stream(
            path, job, shard_size, seed, show_progress, overwrite, accelerator, devices, strategy, num_nodes
        )

    def predict_perturbation(
        self,
        adata_control: AnnData | CellFiles | None = None,
        condition: ConditionRequest = None,
        *,
        method: Literal["perturbation_flow", "inversion"] | None = None,
        keep_residuals: bool = True,
        guidance_scale: GuidanceScale = 1.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        counts: bool | None = None,
        library_size: float | Sequence[float] | np.ndarray | Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = True,
    ) -> AnnData:
        """Predict how given cells would look under another condition.

        SCLDM moves a cell's latent to the new condition (``method``), then changes its counts as the means of the genes
        change (``keep_residuals``). The other models find the noise that leads to the cell under its own condition, and
        sample from the same noise under the new one. Under its own condition a cell comes back unchanged, or as its
        reconstruction with ``keep_residuals=False``. See the user guide, "Given cells under any condition".

        Parameters
        ----------
        adata_control
            Cells with all condition keys in ``obs`` or ``obsm``, in memory, in their file (``backed="r"``), or
            :class:`~scgen_diffusion.data.CellFiles`; default: the model's cells. MULTISCLDM takes MuData, and predicts
            the modalities that a cell lacks.
        condition
            New condition of the cells.

            - A mapping from key to a value for all cells, or to a list with one value per cell. Cells keep their own
              values of keys left out.
            - A table with one row per cell and keys as columns, or cells with these conditions, as in :meth:`generate`.
            - None: every cell's own condition.
        method
            - ``"perturbation_flow"`` (SCLDM and MULTISCLDM): the way from control to perturbed cells
              (:meth:`SCLDM.train_perturbation_flow`) moves the cell's latent. The cells must be unperturbed, and all
              keys that do not perturb must stay the same.
            - ``"inversion"``: go back to noise under the cell's own condition, then forward under the new one. This
              keeps what the condition does not determine.

            Default: the perturbation flow if it is trained and fits the request, else the inversion.
        keep_residuals
            Whether to keep the part of a cell's counts that the latent of SCLDM or MULTISCLDM does not explain:
            molecules are removed or added as the means of the genes fall or rise. Counts that only outliers explain
            stay, or are drawn anew. If False, all counts are drawn anew.
        guidance_scale
            Guidance on the way from noise to the new condition, as in :meth:`generate`. The way back uses none. The
            perturbation flow has none: leave it out there.
        sampler
            SCLDM and MULTISCLDM: ``"euler"`` or ``"midpoint"``. SCRDIT and WBDIT: ``"ddpm"`` (default;
            fresh noise at every step), ``"ddim"`` (one noise for all steps) or ``DDIMSampler(eta=...)``. SCMDM:
            ``"unmasking"``.
        n_steps
            Steps of the sampler in each direction; default for SCRDIT and WBDIT: 50, for SCMDM 64.
        counts
            Whether to return integer counts, as in :meth:`generate`.
        library_size
            Total counts to expect of the predicted cells, as in :meth:`generate`; default: every cell's own, also in
            modalities that a mapping leaves out. With ``keep_residuals``, single cells can be far from them.
        batch_size
            Cells read at a time, rounded up to whole blocks (128 cells on a CPU, up to 8,192 on a GPU). It does not
            change the result.
        seed
            Seed of the draws. Default: ``scvi.settings.seed``, or else random. A cell's draws depend only on the seed
            and its place among the given cells.
        show_progress
            Whether to show a progress bar, after three seconds.

        Returns
        -------
        AnnData
            One predicted cell per given cell, in the same order and with the same ``obs``. The requested keys have
            their new values; ``obs["<key>_of_control"]`` has the old ones (for arrays, both are in ``obsm``). Cell
            names end in the place and the name of the given cell. Values in ``X`` as in :meth:`generate`.
            ``uns["scgen_diffusion"]`` records how the cells were made. With the perturbation flow, it says how far
            the prediction can be trusted, in two tables:

            - ``"support"``: one row per combination of conditions, at most 1,000. The conditions are columns, as in
              `obs`, unless they are named like another column, and ``n_cells`` counts the cells. ``explained`` is the
              share of the variance of the effect that the cells seen perturbed explain, less if the model does not
              know such control cells: ``misfit`` says how much worse it explains their mean expression than that of
              training cells, in nats per molecule. From 0.8, ``support`` is ``"supported"``, from 0.5
              ``"extrapolated"``, and else ``"unknown"``. See the user guide, "Can I trust this prediction?".
              ``strength`` is the root mean square of the expected mean changes, and ``n_changed`` the number of genes
              whose change is clear, by an interval of 90 % without sampling noise of the cells: next to none if the
              perturbation does nothing.
            - ``"mean_change"``: one row per ``combination`` and ``gene``; the conditions are columns, too. ``change``
              is the mean of the predicted minus that of the given cells, in log-normalised expression. Of as many
              measured cells, 90 % of the genes should lie between ``lower`` and ``upper``, which are NaN for a single
              cell, and if training had fewer than two groups of several cells to learn the errors from. Of several
              modalities, ``gene`` is such as ``"prot:CD4"``, and means are over the cells that have the modality. A
              modality that no control, or no perturbed, training cell has gets no intervals (NaN).

            MULTISCLDM returns MuData with all modalities.

        Warns
        -----
        UserWarning
            If an effect is extrapolated or unknown, some cells or all keep their conditions, the inversion replaces the
            perturbation flow, or training had no such conditions.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If the cells lack a condition column or the layer.
        TypeError, ValueError
            For arguments of a wrong type, unknown keys or values, missing labels, genes or values that differ from
            training, and lengths that do not fit.
        """
        options = guidance_scale, sampler, n_steps, counts, library_size, batch_size, seed
        job = self._prediction(adata_control, condition, method, keep_residuals, *options)
        return job.make(show_progress=show_progress)

    def predict_perturbation_to(
        self,
        path: str | os.PathLike[str],
        adata_control: AnnData | CellFiles | None = None,
        condition: ConditionRequest = None,
        *,
        seed: int | None = None,
        show_progress: bool = True,
        shard_size: int | None = None,
        overwrite: bool = False,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        strategy: str | Strategy = "auto",
        num_nodes: int = 1,
        **options: Any,
    ) -> Path:
        """Predict any number of cells to a file, part by part and on any number of devices.

        Run the same call again to resume; a finished one returns at once. The cells are those of
        :meth:`predict_perturbation`, and so is ``uns``, with both tables.

        Parameters
        ----------
        path
            Path of the file, as in :meth:`generate_to`.
        adata_control
            Cells: an AnnData, which may stay in its file (``backed="r"``), or
            :class:`~scgen_diffusion.data.CellFiles` that were opened with ``CellFiles.like(model.registry, paths)``;
            default: the model's cells. Of files opened with ``indices``, these cells. Memory holds their ``obs``, or
            for ``CellFiles`` their conditions, which are then the only columns of ``obs`` in the new file.
        condition
            See :meth:`predict_perturbation`.
        seed, show_progress, shard_size, overwrite, accelerator, devices, strategy, num_nodes
            See :meth:`generate_to`.
        **options
            ``method``, ``keep_residuals``, ``guidance_scale``, ``sampler``, ``n_steps``, ``counts``, ``library_size``
            and ``batch_size`` of :meth:`predict_perturbation`.

        Returns
        -------
        pathlib.Path
            The path.

        Warns
        -----
        UserWarning
            If an effect is extrapolated or unknown; before any cell is made.

        Raises
        ------
        FileExistsError
            If the path holds a file of other cells.
        ValueError
            As in :meth:`predict_perturbation`.
        OSError
            If the folder does not exist or cannot be written to, or the disk is full.
        """
        job = self._prediction(adata_control, condition, seed=seed, **options)
        return write_stream(
            path, job, shard_size, seed, show_progress, overwrite, accelerator, devices, strategy, num_nodes
        )

    def _generation(
        self,
        n_cells: int | None,
        condition: ConditionRequest,
        guidance_scale: GuidanceScale = 1.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        counts: bool | None = None,
        library_size: Any = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> Generation:
        """Check and resolve the arguments of ``generate``."""
        check_batch_size(batch_size)
        respect_thread_limit()
        self._check_ready_to_generate()
        engine, seed, sampler = self._engine, resolve_seed(seed), self.default_sampler if sampler is None else sampler
        sampling = engine.sampling(sampler, n_steps, guidance_scale, self._output(counts))
        check_sampler(sampling.sampler, self.module.path, n_steps)
        condition = engine.conditions.as_table(condition)
        if isinstance(condition, pd.DataFrame):
            check_order({"`library_size`": library_size}, condition.index, "condition.index")
        codes = engine.conditions.request(condition, n_cells)
        totals = engine.totals(library_size, len(codes), sampling.output)
        distinct, _ = codes.runs()
        are_judged = (engine.start_conditions(distinct, sampling.guidance) != distinct).any(1)
        provenance = engine.record(sampling, "drawn" if totals is None else "given", seed) | {
            "condition": describe_condition(condition),
            "outside_training": engine.warn_outside_training(distinct, are_judged, totals),
        }
        request, identity = CellRequest(codes, sampling, totals, seed), engine.identity(sampling, codes, totals)
        return Generation(engine, request, identity, provenance, codes, self._build, batch_size)

    def _prediction(
        self,
        adata_control: AnnData | CellFiles | None,
        condition: ConditionRequest,
        method: str | None = None,
        keep_residuals: bool = True,
        guidance_scale: GuidanceScale = 1.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        counts: bool | None = None,
        library_size: Any = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> Prediction:
        """Check and resolve the arguments of ``predict_perturbation``."""
        check_batch_size(batch_size)
        engine, output, seed = self._engine, self._output(counts), resolve_seed(seed)
        sampling = engine.sampling(self._prediction_sampler(sampler), n_steps, guidance_scale, output)
        if method is not None and method not in self._prediction_methods:
            known = known_names(method, self._prediction_methods)
            msg = f"{type(self).__name__} does not support `method` {method!r}. {known}"
            raise ValueError(msg)
        if not keep_residuals and "perturbation_flow" not in self._prediction_methods:
            msg = f"{type(self).__name__} cannot draw residuals; `keep_residuals` must be True."
            raise ValueError(msg)
        if library_size is None and output == "counts" and self._input_values == "log1p":
            msg = "Log-normalised values do not tell library sizes; give `library_size`, one number or one per cell."
            raise ValueError(msg)
        source, _ = self.open_cells(adata_control, "adata_control", with_labels=True)
        own, condition = source.codes, engine.conditions.as_table(condition)
        requested = request_of_cells(engine.conditions, own, condition)
        given = {"`condition`": condition, "`library_size`": library_size}
        check_order(given, source.obs_names, "adata_control.obs_names")
        codes = requested.all()
        codes = np.where(codes == OPEN, own, codes)
        method = self._prediction_method(own, codes, source.obs_names, method)
        check_learned(self.module, engine.conditions, own, method)
        by_flow = method == "perturbation_flow"
        check_sampler(sampling.sampler, self.module.path, n_steps if by_flow else None)  # an inversion takes any number
        if by_flow and sampling.guidance != self.module.unguided:
            msg = "The perturbation flow has no guidance; leave `guidance_scale` out, or choose method='inversion'."
            raise ValueError(msg)
        if not by_flow and not hasattr(sampling.sampler, "invert"):
            msg = f"`sampler` {sampling.sampler!r} cannot be inverted; choose 'ddpm' or 'ddim'."
            raise ValueError(msg)
        if library_size is not None and self.module.keeps_totals:
            msg = f"{engine.name} keeps the totals of the given cells; leave `library_size` out."
            raise ValueError(msg)
        totals = None if library_size is None else engine.totals(library_size, len(own), output)
        is_same = (own == codes).all(1)
        if is_same.any() and (condition is not None or keep_residuals):
            warn_user(
                f"{is_same.sum():,} of {len(is_same):,} cells have the requested conditions already, so nothing is "
                "predicted: they come back as they are, or as their reconstruction. Leave them out."
            )
        has_groups = by_flow and not is_same.all()
        groups = PerturbedGroups(self.module, engine.conditions, own, codes) if has_groups else None
        are_judged = np.tile(~is_same & has_groups, 2)  # a support looks at the control cells too
        how = {"task": "predict_perturbation", "method": method, "keep_residuals": keep_residuals}
        outside = engine.warn_outside_training(np.concatenate([codes, own]), are_judged, totals)
        asked = "that of each control cell" if condition is None else describe_condition(condition)
        provenance = engine.record(sampling, "of each cell" if totals is None else "given", seed) | how
        provenance |= {"condition": asked, "outside_training": outside}
        return Prediction(
            engine,
            PredictionRequest(own, codes, sampling, by_flow, keep_residuals, totals, seed, groups),
            engine.identity(sampling, requested, totals) | how,
            provenance,
            requested,
            self._build,
            batch_size,
            source=source,
            keys=list(engine.conditions.named(condition)),
            obs=None if isinstance(source, CellFiles) else writable(source.cells.obs),
            read=lambda rows, size: (part[REGISTRY_KEYS.X_KEY] for part, _ in self.read_cells(source, rows, size)),
            genes=self.var_.index,
        )

    @property
    def _engine(self) -> CellGenerator:
        """The object that turns requests into cells; it needs no AnnData."""
        largest = {
            name: len(modality.features) if modality.likelihood == "bernoulli" else np.inf
            for name, modality in self.modalities.items()
        }
        return CellGenerator(self.module, self.conditions, type(self).__name__, len(self.var_), largest)

    @property
    @abstractmethod
    def _outputs(self) -> tuple[InputValues, ...]:
        """Kinds of values that ``generate`` can return; the default first."""

    def _output(self, counts: bool | None) -> InputValues:
        """Return the kind of values of a request."""
        if counts is None:
            return self._outputs[0]
        output: InputValues = "counts" if counts else "log1p"
        if output not in self._outputs:
            msg = f"`counts` is {counts}, but the values of this model are {self._outputs[0]!r}; leave `counts` out."
            raise ValueError(msg)
        return output

    def _check_ready_to_generate(self) -> None:
        """Raise unless the model can generate."""
        if not self.is_trained_:
            msg = f"The model cannot generate yet; train it first. Trained stages: {self.trained_stages_}."
            raise RuntimeError(msg)

    def _prediction_sampler(self, sampler: str | Sampler | None) -> str | Sampler:
        """Return the sampler of ``predict_perturbation``, or its default."""
        return self.default_sampler if sampler is None else sampler

    def _prediction_method(self, own: np.ndarray, new: np.ndarray, names: pd.Index, method: str | None) -> str:
        """Return the method for cells with such codes and names; raise unless the stages it needs are trained."""
        self._check_ready_to_generate()
        return "inversion"

    # --- reading given cells ------------------------------------------------------------------------------------------

    def given_cells(self, adata: AnnData | None, argument: str) -> AnnData:
        """Return the cells given, or else those of the model; raise if there are none in memory, or for other genes."""
        if adata is None and self.adata is None:
            msg = f"The model has no cells in memory; give `{argument}`."
            raise ValueError(msg)
        cells = self.adata if adata is None else adata
        self._check_same_features(cells, self.registry_)
        return cells

    def open_cells(
        self, adata: AnnData | CellFiles | None, argument: str, indices: Any = None, *, with_labels: bool
    ) -> tuple[GivenCells | CellFiles, np.ndarray]:
        """Return given cells, or the model's, in memory or in files, checked, and the row numbers to read.

        Cells in memory need conditions in these rows only, and only ``with_labels``.
        """
        files = self._file_cells if adata is None else adata
        if isinstance(files, CellFiles):
            check_same_registry(files.registry, self.registry_)
            return files, check_rows(indices, files.n_cells)
        cells = self.given_cells(adata, argument)
        rows = check_rows(indices, cells.n_obs)
        codes = np.tile(self.combinations_[:1], (cells.n_obs, 1))  # placeholders: any known combination
        if with_labels:
            arrays = {key.name: cells.obsm[key.name][rows] for key in self._condition_keys if key.name in cells.obsm}
            chosen = ReadTables(cells.obs.iloc[rows], arrays)  # a view would copy `raw`
            codes[rows] = encode_conditions(chosen, self._condition_keys)
        matrix, where = self._values_of(cells)
        return GivenCells(cells, matrix, codes, where), rows

    def _values_of(self, cells: AnnData) -> tuple[Any, str]:
        """Return the matrix that the model reads, ``(cells, genes)``, and its name if its values are to be checked."""
        layer = self.registry_["setup_args"]["layer"]
        layer = layer_of(cells, layer) if PROVENANCE_KEY in cells.uns else layer  # generated cells have values in X
        where, values = check_layer(cells, layer), values_in(cells, layer)
        check_storage(values, where)
        if self._input_values == "log1p":
            check_natural_logarithms(cells.uns.get("log1p"), where)
        if sp.issparse(values) and values.format == "csc":  # of which each batch would read everything
            return values.tocsr(), where
        return values.copy() if cells.is_view else values, where

    def read_cells(
        self, source: GivenCells | CellFiles, rows: np.ndarray, batch_size: int
    ) -> Iterator[tuple[Mapping[str, Tensor], np.ndarray]]:
        """Yield expression and conditions of some rows, on the model's device, with the row numbers."""
        respect_thread_limit()
        self.module.eval()
        for start, tensors in zip(range(0, len(rows), batch_size), source.loader(rows, batch_size), strict=True):
            batch = rows[start : start + batch_size]
            if isinstance(source, GivenCells) and (where := source.where):  # files were checked when they were opened
                advice = "The model was set up with counts there."
                totals = check_values(tensors[REGISTRY_KEYS.X_KEY].numpy(), where, self._input_values, advice)
                check_not_empty(totals, source.obs_names[batch], where)
            yield {name: tensor.to(self.device) for name, tensor in tensors.items()}, batch

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(
        self,
        dir_path: str | os.PathLike[str],
        *,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model to a folder, with everything that ``generate`` needs.

        The folder has scvi-tools' layout. Columns of ``var`` with text, numbers, booleans or categories are saved;
        other columns, such as dates, are not, nor those with a "/" in their name.

        Parameters
        ----------
        dir_path
            Folder to write to; created if it does not exist.
        prefix
            Prefix of the file names.
        overwrite
            Whether to write to an existing folder. This replaces the model of this prefix there, and the cells beside
            it (``adata.h5ad`` or ``mdata.h5mu``); other files stay.
        save_anndata
            Whether to save the training data too.
        **anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`, or to :meth:`mudata.MuData.write_h5mu`.

        Raises
        ------
        TypeError
            If ``save_anndata`` is True, and anndata cannot write a column of ``obs`` or ``var``, or it is False, and
            there are ``anndata_write_kwargs``.
        ValueError
            If the folder exists and ``overwrite`` is False or it holds cells of these names without a model, or
            ``save_anndata`` is True and there are no cells in memory.
        OSError
            If ``dir_path`` is a file, or the files cannot be written. Files from before stay as they were.
        """
        if anndata_write_kwargs and not save_anndata:
            msg = f"`save` takes {[*anndata_write_kwargs]} only with `save_anndata=True`, for anndata."
            raise TypeError(msg)
        folder, prefix = Path(dir_path).expanduser(), prefix or ""
        replaced = check_can_save(folder, prefix, overwrite=overwrite)
        names = {n: list(m.features) for n, m in self.modalities.items()} or list(self.var_.index)
        content = model_content(vars(self), self.module.state_dict(), names)
        writers: dict[str, Callable[[Path], None]] = {f"{prefix}{MODEL_FILE}": partial(write_model, content)}
        if save_anndata:
            if self.adata is None:
                msg = "`save_anndata` is True, but the model has no cells in memory; leave it out, or set model.adata."
                raise ValueError(msg)
            name = MUDATA_FILE if isinstance(self.adata, MuData) else ADATA_FILE
            writers[f"{prefix}{name}"] = partial(write_cells, self.adata, anndata_write_kwargs)
        write_together(folder, writers, replaced, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | MuData | bool | None = None,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Self:
        """Load a saved model. Nothing in the file is executed.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote, or the name of a pretrained model.
        adata
            Cells to attach to the model, with its genes and its condition columns. None: the cells saved with the
            model, if any. False: no cells; ``generate`` needs none.
        accelerator, device
            Where to put the model.
        prefix
            Prefix of the file names.

        Raises
        ------
        FileNotFoundError
            If there is no such model.
        KeyError
            If ``adata`` lacks the layer or a condition column.
        TypeError
            If ``adata`` is anything else.
        ValueError
            If a file is damaged or unsafe or holds a model of another class, or if ``adata`` has other genes.
        """
        saved = read_model_file(dir_path, prefix)
        if (name := saved.registry["model_name"]) != cls.__name__:
            msg = (
                f"{saved.path.parent} holds a model of class {name!r}, but {cls.__name__}.load was called. "
                "`scgen_diffusion.model.load` takes every class."
            )
            raise ValueError(msg)
        _, _, device = parse_device_args(accelerator, device, one=True)
        cells = find_cells(adata, saved.path)
        if cells is not None:
            cls._register_like(cells, saved.registry)
        with name_damaged_file(saved.path):
            model = cls(cells, registry=saved.registry, **saved.options)
            for name, value in saved.attributes.items():
                setattr(model, name, value)
            model.module.load_state_dict(saved.weights)
        if cells is not None:
            model._drop_split_of_others()
        model.to_device(device)
        model.module.eval()
        return model

    @staticmethod
    def load_registry(dir_path: str | os.PathLike[str], prefix: str | None = None) -> dict[str, Any]:
        """Return the registry of a saved model. Nothing in the file is executed.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.
        """
        return read_model_file(dir_path, prefix).registry

    @staticmethod
    def view_setup_args(dir_path: str | os.PathLike[str], prefix: str | None = None) -> None:
        """Print the arguments of ``setup_anndata`` of a saved model. Nothing in the file is executed.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.
        """
        AnnDataManager.view_setup_method_args(DiffusionModel.load_registry(dir_path, prefix))

    @classmethod
    def convert_legacy_save(cls, dir_path: str | os.PathLike[str], *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: this package never wrote the old, unsafe format of scvi-tools before 0.15."""
        msg = f"{dir_path} cannot be a {cls.__name__}: none was saved in scvi-tools' format before 0.15."
        raise NotImplementedError(msg)

    # --- fine-tuning --------------------------------------------------------------------------------------------------

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData | Paths,
        reference_model: Self | str | os.PathLike[str],
        *,
        trainable: Trainable = "new_conditions",
        condition_embeddings: Mapping[str, pd.DataFrame] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Fine-tune a trained model: build a model of new cells that starts from it.

        New classes and set members are added to the condition keys. The network's embeddings of them start at the mean
        of the learned ones. A misspelt label is a new one, too: ``print(model)`` names them. Call :meth:`train` next.
        Afterwards, conditions you leave out are drawn from the reference's cells and the new ones together, and new
        combinations have the library sizes of the new cells. New cells that ``trainable`` learns nothing of do not
        count.

        SCLDM keeps the reference's flow, unless it does not fit the new model: with ``trainable="all"``, and with more
        known embeddings of perturbations. :meth:`predict_perturbation` predicts control cells of new types at once.
        :meth:`train` trains another one, on the new cells alone, only if they have a perturbation of a new class or
        member.

        Parameters
        ----------
        adata
            New cells with the reference's layer, condition columns and genes (see :meth:`prepare_query_anndata`). They
            need no ``setup_anndata``. Cells may stay in their files: give a path, or several
            (:class:`~scgen_diffusion.data.CellFiles`). MULTISCLDM takes MuData, whose cells may lack modalities.
        reference_model
            A trained model of this class, its folder, or the name of a pretrained model. It is not changed.
        trainable
            What :meth:`train` changes:

            - ``"new_conditions"``: only the embeddings of new classes and members, and for SCLDM their effects on
              genes. The reference's conditions still give exactly the same cells, also in combinations that only new
              cells have.
            - ``"conditions"``: the embeddings of all conditions.
            - ``"network"``: the whole diffusion network (for SCLDM, the prior), and the library sizes of conditions
              that the new cells have. The autoencoder stays.
            - ``"all"``: both, and the autoencoder of SCLDM.

            All but the first also change the reference's conditions, and partly forget those that the new cells lack.
        condition_embeddings
            More rows for the reference's embedding tables, with the same columns.
        accelerator, device
            Where to put the model.

        Returns
        -------
        Self
            The model of the new cells.

        Raises
        ------
        KeyError
            If the cells lack the layer or a column.
        RuntimeError
            If the reference is not trained.
        TypeError
            If ``adata`` is neither cells of this class of model nor paths, or the reference is neither a model of this
            class nor a folder.
        ValueError
            For other genes or another kind of values, and, with ``"new_conditions"``, if nothing is new in the cells.

        Examples
        --------
        >>> import scgen_diffusion as scgd
        >>> adata = scgd.datasets.pbmc68k_reduced()
        >>> is_new = adata.obs["cell_type"] == "CD34+"
        >>> old, new = adata[~is_new].copy(), adata[is_new].copy()
        >>> scgd.model.SCLDM.setup_anndata(old, layer="counts", condition_keys=["cell_type"])
        >>> reference = scgd.model.SCLDM(old)
        >>> reference.train()  # doctest: +SKIP
        >>> model = scgd.model.SCLDM.load_query_data(new, reference)  # doctest: +SKIP
        >>> model.train()  # doctest: +SKIP
        >>> synthetic = model.generate(
        ...     1_000, condition={"cell_type": "CD34+"}
        ... )  # doctest: +SKIP
        """
        if trainable not in TRAINABLE:
            msg = f"`trainable` must be one of {TRAINABLE}, but found {trainable!r}."
            raise ValueError(msg)
        _, _, device = parse_device_args(accelerator, device, one=True)
        reference = cls._reference(reference_model)
        if not reference.is_trained_:
            msg = "`reference_model` must be trained before it can be fine-tuned."
            raise RuntimeError(msg)
        registry, options = reference.registry_, init_options(reference.init_params_)
        if isinstance(adata, str | os.PathLike | list | tuple):
            cells = CellFiles.like(registry, adata, new_values=True, condition_embeddings=condition_embeddings)
            model = cls(registry=cells.registry, **options)
            model._take_cells(cells)
        else:
            tables = extend_tables(registry["setup_args"]["condition_embeddings"], condition_embeddings)
            cls._register_like(adata, registry, extend_categories=True, condition_embeddings=tables)
            model = cls(adata, **options)
        model._start_from(reference, trainable)
        model.to_device(device)
        model.module.eval()
        return model

    @classmethod
    def prepare_query_anndata(cls, adata: AnnData, reference_model: Self | str | os.PathLike[str]) -> AnnData:
        """Give new cells the genes of a model, for :meth:`load_query_data`.

        Genes are sorted as in the model. Missing genes are filled with zeros in every layer; unknown genes are dropped.
        A zero means "not detected", not "not measured", so the fewer genes are missing, the better.

        Parameters
        ----------
        adata
            New cells.
        reference_model
            A model of this class, its folder, or the name of a pretrained model.

        Returns
        -------
        AnnData
            The cells with the model's genes and the model's ``var``, without ``varm``, ``obsp`` and ``raw``.

        Raises
        ------
        TypeError
            If ``adata`` is no AnnData, or the reference neither a model nor a folder.
        ValueError
            If no gene is known, or a gene name is not unique.

        Warns
        -----
        UserWarning
            If the cells have less than 80 % of the model's genes.
        """
        reference = cls._reference(reference_model)
        check_is_anndata(adata, "adata")
        return pad_genes(adata, reference.var_)

    @classmethod
    def _reference(cls, reference_model: Self | str | os.PathLike[str]) -> Self:
        if isinstance(reference_model, str | os.PathLike):
            return cls.load(reference_model, adata=False, accelerator="cpu")
        if type(reference_model) is not cls:
            msg = (
                f"`reference_model` must be a {cls.__name__} or its folder, but found {type(reference_model).__name__}."
            )
            raise TypeError(msg)
        return reference_model

    def _start_from(self, reference: Self, trainable: Trainable) -> None:
        """Copy weights, conditions and trained stages of a reference."""
        before, after = reference.conditions.by_key, self.conditions.by_key
        self.combinations_ = recode(reference.combinations_, before, after)
        self.combination_sizes_ = reference.combination_sizes_
        self.reference_ = {
            "trainable": trainable,
            "digest": digest_of(*(tensor.cpu().numpy() for tensor in reference.module.state_dict().values())),
            "combinations": self.combinations_,
            "combination_sizes": self.combination_sizes_,
        }
        keeps_perturbation_flow = trainable != "all" and perturbation_flow_fits(self.module, reference.module)
        copy_reference(
            self.module,
            reference.module,
            [torch.from_numpy(known) for known in mark_occurring(after, self.combinations_)],
            lambda codes: torch.from_numpy(recode(codes.cpu().numpy(), before, after)),
            with_perturbation_flow=keeps_perturbation_flow,
        )
        self._copy_features(reference)
        stages = {s for s in reference.trained_stages_ if s != "perturbation_flow" or keeps_perturbation_flow}
        # "stopped" would tell `train` that this model began the flow
        self.cut_short_ = {s: how for s, how in reference.cut_short_.items() if s != "perturbation_flow"}
        self.recipes_ = dict(reference.recipes_)
        self._record_trained(*stages)
        if not trained_masks(self.module, trainable, self._new_values):
            msg = (
                f"There is nothing to train with `trainable` {trainable!r}: the reference knows all classes and "
                f"members of the new cells, or has no vectors of conditions. Set it to one of {TRAINABLE[2:]}."
            )
            raise ValueError(msg)

    @property
    def _new_values(self) -> list[Tensor]:
        """Masks, per key, of the classes and members that the model's cells have and the reference's cells lacked."""
        assert self.reference_ is not None
        codes = self._registered_codes, self.reference_["combinations"]
        here, before = (mark_occurring(self._condition_keys, of) for of in codes)
        return [torch.from_numpy(own & ~known) for own, known in zip(here, before, strict=True)]

    def _copy_features(self, reference: Self) -> None:
        """Take what is known of the genes from a reference."""
        self.var_ = reference.var_.copy()

    def _trained_rows(self, stage: str) -> Mapping[torch.nn.Parameter, Tensor | None] | None:
        """Return the parameters that a stage trains, with masks of their rows; None means all."""
        if self.reference_ is None:
            return None
        masks = trained_masks(self.module, self.reference_["trainable"], self._new_values)
        if not self.module.library_size.is_trained:  # published weights lack this head
            masks |= dict.fromkeys(self.module.library_size.parameters())
        if (flow := self.module.perturbation_flow) is not None:
            masks |= dict.fromkeys(flow.parameters())
        return masks


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Raise TypeError for arguments that are not those with which scvi-tools registers further cells."""
    if arguments and "source_registry" not in arguments:
        msg = (
            f"`{min(arguments)}` is not an argument of these models. List labels, treatments and batches in "
            "`condition_keys`; batches are a condition like others, and are not corrected."
        )
        raise TypeError(msg)


def check_registry(registry: object, model_class: type) -> None:
    """Raise unless a model of a class can be built from the registry."""
    given = registry if isinstance(registry, Mapping) else {}
    has_modalities = given.get("setup_method_name") == "setup_mudata"
    is_ours = {REGISTRY_KEYS.X_KEY, CONDITIONS} <= set(given.get("field_registries", {}))
    if not is_ours or has_modalities != hasattr(model_class, "setup_mudata"):
        msg = f"`registry` must be that of a {model_class.__name__}, or of `CellFiles(...)` with one modality."
        raise ValueError(msg)
