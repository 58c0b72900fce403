"""What every model of the package has in common: registering cells, training, generating, saving and fine-tuning."""

from __future__ import annotations

import inspect
import logging
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self

import numpy as np
import pandas as pd
import rich
import rich.pretty  # scvi-tools 1.4 uses it without importing it
import rich.table
import torch
from anndata import AnnData
from mudata import MuData
from rich.markup import escape
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from scvi.model.base import BaseModelClass
from tqdm.auto import tqdm

from scgen_diffusion._arguments import check_argument_names, check_count, known_names, suggests_arguments
from scgen_diffusion._compat import parse_device_args, replace_contents
from scgen_diffusion._pretrained import model_folder
from scgen_diffusion.data import (
    CellFiles,
    ConditionField,
    ConditionKey,
    Conditions,
    ConditionSetup,
    RegisteredCells,
    ValueSummary,
    build_anndata,
    check_expression,
    check_layer,
    check_not_empty,
    check_same_genes,
    check_same_registry,
    check_values,
    checked_rows,
    keys_of_state,
    pad_genes,
    recode,
    resolve_seed,
)
from scgen_diffusion.diffusion import Guidance
from scgen_diffusion.generation import (
    OTHER_NAMES,
    CellGenerator,
    Counterfactual,
    LibrarySizes,
    checked_batch_size,
    stack,
)
from scgen_diffusion.module import CONDITIONS, TRAINABLE, Trainable, take_over, trained_masks
from scgen_diffusion.train import CellData, run_stage, trainer_options

from ._counterfactual import (
    check_given_keys,
    check_strength,
    control_cells,
    counterfactual_names,
    counterfactual_obs,
    describe_counterfactual,
)
from ._description import describe
from ._diagnostics import check_summary_finite
from ._model_file import (
    ADATA_FILE,
    MODEL_FILE,
    MUDATA_FILE,
    check_fits_class,
    content_of,
    damage_named,
    find_cells,
    init_options,
    read_model_file,
    write_cells,
    write_model,
    write_together,
)
from ._query import check_query_cells, extended_tables, learned, newly_seen
from ._registration import (
    check_is_no_part_of_file,
    check_is_no_view,
    check_is_set_up,
    check_setup_arguments,
    plain_columns,
    spec_of,
)
from ._streaming import CELLS_PER_PART, VALUES_PER_PART, Stream, check_goal, check_rank
from ._training import OTHER_NAMES as NAMES_IN_TRAINING
from ._training import changed_recipe, digest_of, split_cells

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    import lightning.pytorch as pl
    import scipy.sparse as sp
    from torch import Tensor

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import GuidanceScale, Sampler
    from scgen_diffusion.generation import CellRequest
    from scgen_diffusion.module import InputValues, LibrarySizeKind
    from scgen_diffusion.nn import ConditionSpec
    from scgen_diffusion.train import Recipe, StageData, StagePlan, StageResult, TrainingCells

    from ._counterfactual import ControlCells

FRAME_COLUMNS = ("cell", "frame", "time", "noise_level")  # in `obs` of a sampling path
ADVICE = {
    "differential_abundance": "compare the labels' shares between samples, for example with pertpy",
    "differential_expression": "call scanpy.tl.rank_genes_groups, on measured cells or on those that `generate` returns",
    "get_feature_correlation_matrix": "correlate the genes of cells that `generate` returns",
    "get_latent_library_size": "a cell's total count is taken as it is; sum its counts",
    "get_likelihood_parameters": "`get_reconstruction(sample=False)` returns expected counts",
    "get_marginal_ll": "`get_elbo` returns a lower bound of it",
    "minify_adata": "keep the latents, `adata.obsm['X_latent'] = model.get_latent_representation()`",
    "update_setup_method_args": "call `setup_anndata` again, and build the model anew",
}
"""Methods of scvi-tools that a model lacks, and what to use instead."""

logger = logging.getLogger(__name__)


class DiffusionModel(BaseModelClass):
    """A scvi-tools model that generates cells under conditions. A subclass says what its module is, and how that is trained."""

    architecture: Any
    var_: pd.DataFrame
    combinations_: np.ndarray
    combination_sizes_: np.ndarray
    trained_stages_: list[str]
    is_trained_: bool
    history_: dict[str, pd.DataFrame] | None
    trainer: pl.Trainer
    library_head_is_trained_: bool
    default_sampler: str
    _file_cells: TrainingCells | None = None  # those that `train` was given in place of an AnnData
    reference_: Mapping[str, Any] | None = None  # what a fine-tuned model keeps of its reference
    _advice: ClassVar[Mapping[str, str]] = ADVICE
    _counterfactual_ways: ClassVar[Mapping[str, tuple[Any, ...]]]
    """What ``predict_perturbation`` admits as ``method``, ``residuals`` and ``sample``; the default first."""
    _stages: ClassVar[tuple[str, ...]]
    """Stages of the training, in their order; a method ``_train_<stage>`` trains each."""
    _stages_to_generate: ClassVar[frozenset[str]]

    # --- registering cells ---------------------------------------------------------------------------------------------

    def __init__(self, adata: AnnData | None = None, registry: dict[str, Any] | None = None) -> None:
        if adata is not None:
            check_is_set_up(adata)
        elif registry is not None:
            self._check_registry(registry)
            registry = {**registry, "model_name": type(self).__name__}  # that of cells in files names none
        super().__init__(adata, registry)

    @property
    def adata(self) -> Any:
        """The cells in memory that the model has, AnnData or MuData, or None. Setting them puts them in the place of cells in files that it was trained on."""
        return BaseModelClass.adata.fget(self)

    @adata.setter
    def adata(self, adata: AnnData | MuData) -> None:
        BaseModelClass.adata.fset(self, adata)
        self._file_cells = None

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
        condition_embeddings: Mapping[str, pd.DataFrame | str] | None = None,
        values: Literal["counts", "log1p"] = "counts",
        **kwargs: Any,
    ) -> None:
        """Register cells: where their counts are, and which columns of ``obs`` are conditions.

        Parameters
        ----------
        adata
            Cells by genes.
        layer
            Layer that holds the values; default ``adata.X``.
        condition_keys
            Categorical columns of ``obs`` to generate by, such as cell type or perturbation. Any number; none for an
            unconditional model.
        continuous_condition_keys
            Columns of numbers to generate by, such as dose, time or age. They are standardised, and what the model makes of them
            is a smooth function, so that values in between can be asked for. Outside the training range there is a warning.
            A dose that spans decades is best given as its logarithm.
        set_condition_keys
            Columns of sets to generate by, such as combinations of perturbations, written with a separator: ``"A+B"``. The order does
            not matter, and sets share what is known of their members, so that combinations never measured can be asked for. A list
            of columns (separator ``"+"``), or a mapping from column to separator.
        control_values
            What is written for unperturbed cells, by column: ``{"perturbation": "control"}``. In a column of sets this is
            the empty set, also as a part of others, as in ``"A+control"``. Without it the name of the control is a member like any other.
        condition_embeddings
            Known embeddings of the classes or members of some columns, such as fingerprints of drugs or vectors of a protein language
            model: a table with one row per class or member, or the name of one in ``adata.uns``. What the table has and the training
            cells have not can be generated too.
        values
            What the layer holds: raw ``"counts"``, or ``"log1p"`` for log-normalised values (natural logarithms). These suit the gene-space
            models, and SCLDM with a Gaussian head; a model that learned from them cannot draw library sizes.
        **kwargs
            For scvi-tools.

        Raises
        ------
        KeyError
            For an unknown layer, column or entry of ``uns``.
        TypeError
            For an unknown argument, with what to write in place of those of other models of scvi-tools; and for what is no list of names.
        ValueError
            For values that are not what ``values`` says, cells without counts or conditions, duplicate genes, and names,
            numbers, sets and tables that do not fit.

        Warns
        -----
        UserWarning
            For a column among ``condition_keys`` that looks like amounts or names of cells rather than like classes.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        check_setup_arguments(cls.setup_anndata, kwargs)
        cls._check_is_anndata(adata)
        check_is_no_view(adata, "adata")
        setup = ConditionSetup.of(
            adata, condition_keys, continuous_condition_keys, set_condition_keys, control_values, condition_embeddings
        )
        setup_method_args["setup_args"] |= setup.arguments
        check_expression(adata, layer, values)
        fields = [
            LayerField(
                REGISTRY_KEYS.X_KEY, layer, is_count_data=False
            ),  # they are checked; scvi-tools refuses sparse arrays
            ConditionField(CONDITIONS, setup),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_annbatch(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: what scvi-tools 1.5 sets up by this name knows no conditions."""
        msg = (
            "`setup_annbatch` of scvi-tools knows no conditions. Open the files, or the collection of annbatch, with "
            f"scgen_diffusion.data.CellFiles, build {cls.__name__}(registry=cells.registry), and train(datamodule=cells)."
        )
        raise NotImplementedError(msg)

    @classmethod
    def _check_is_anndata(cls, adata: object) -> None:
        if isinstance(adata, AnnData):
            check_is_no_part_of_file(adata)
            return
        if isinstance(adata, CellFiles):
            msg = "Cells in files were given where AnnData is needed; read those that you want into memory: `cells.read(indices)`."
            raise TypeError(msg)
        msg = f"`setup_anndata` takes AnnData, but found {type(adata).__name__}."
        if isinstance(adata, MuData):
            msg += " Give one modality, for example mdata['rna'], or take MULTISCLDM and its `setup_mudata`."
        raise TypeError(msg)

    @classmethod
    def _check_registry(cls, registry: object) -> None:
        """Raise unless a registry is one from which a model of this class can be built."""
        given = registry if isinstance(registry, Mapping) else {}
        fields = given.get("field_registries", {})
        if not {REGISTRY_KEYS.X_KEY, CONDITIONS} <= set(fields) or "setup_args" not in given:
            owner = f"that of {given['model_name']!r}" if "model_name" in given else type(registry).__name__
            msg = (
                "`registry` must come from a model of this package, `model.registry`, or from files, `CellFiles(...).registry`, but found "
                f"{owner}."
            )
            raise ValueError(msg)
        method = given.get("setup_method_name", "setup_anndata")
        reads_several = hasattr(cls, "setup_mudata")
        if (method == "setup_mudata") != reads_several:
            number = "several modalities" if reads_several else "one modality"
            msg = f"`registry` was made by `{method}`, but {cls.__name__} reads cells with {number}."
            raise ValueError(msg)

    def _describe_cells(self, adata: AnnData | None) -> None:
        """Keep the genes' columns, and how many of the model's cells have which conditions."""
        self.var_ = plain_columns(adata.var) if adata is not None else pd.DataFrame(index=self._registered_genes)
        self._count_combinations(self._registered_codes)

    def _take_cells(self, datamodule: TrainingCells | None) -> None:
        """Train on cells of files from now on; None for those that the model has."""
        if datamodule is None:
            return
        if not all(hasattr(datamodule, name) for name in ("loader", "codes", "digest", "registry")):
            msg = (
                f"`datamodule` must be scgen_diffusion.data.CellFiles or work like it, but found {type(datamodule).__name__}. Data modules of "
                "scvi-tools know no conditions; open the files that they read with CellFiles."
            )
            raise TypeError(msg)
        check_same_registry(datamodule.registry, self.registry_)
        self._file_cells = datamodule
        self.var_ = plain_columns(datamodule.var)

    @classmethod
    def _register_like(cls, adata: AnnData, registry: Mapping[str, Any], genes: pd.Index) -> None:
        """Register cells as the model's own ones were, of which this is the registry."""
        cls._check_is_anndata(adata)
        check_same_genes(adata.var_names, genes)
        cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])

    def _check_same_features(self, adata: AnnData) -> None:
        self._check_is_anndata(adata)
        check_same_genes(adata.var_names, self.var_.index)

    def _assemble(
        self,
        x: sp.csr_matrix | np.ndarray,
        obs: pd.DataFrame,
        provenance: Mapping[str, Any],
        *,
        is_log1p: bool,
        layers: Mapping[str, np.ndarray] | None = None,
    ) -> AnnData:
        return build_anndata(x, obs, self.var_, provenance, is_log1p=is_log1p, layers=layers)

    def _count_combinations(self, codes: np.ndarray) -> None:
        """Count the model's cells, and those of its reference, by their conditions."""
        conditions = Conditions.from_codes(self._condition_keys, codes)
        if self.reference_ is not None:
            conditions = conditions.joined(self.reference_["combinations"], self.reference_["combination_sizes"])
        self.combinations_, self.combination_sizes_ = conditions.combinations, conditions.n_cells

    @property
    def conditions(self) -> Conditions:
        """Condition keys, their classes, and how many training cells each combination has."""
        return Conditions(self._condition_keys, self.combinations_, self.combination_sizes_)

    @property
    def _input_values(self) -> InputValues:
        return self.registry_["setup_args"]["values"]

    @property
    def _condition_keys(self) -> list[ConditionKey]:
        return keys_of_state(self.registry_["field_registries"][CONDITIONS]["state_registry"])

    @property
    def _condition_specs(self) -> list[ConditionSpec]:
        """What the networks need to know of each key."""
        tables = self.registry_["setup_args"]["condition_embeddings"]
        return [spec_of(key, tables.get(key.name)) for key in self._condition_keys]

    @property
    def _key_groups(self) -> list[list[int]]:
        """Numbers of the keys that training drops together."""
        keys = [key.name for key in self._condition_keys]
        for group in self.architecture.dropped_together:
            for key in group:
                if key not in keys:
                    msg = f"`dropped_together` has the unknown key {key!r}. {known_names(key, keys)}"
                    raise ValueError(msg)
        return [[keys.index(key) for key in group] for group in self.architecture.dropped_together]

    @property
    def _registered_codes(self) -> np.ndarray:
        """Condition codes of the model's cells, ``(cells, columns)``; of none, if it has none."""
        if not self._has_cells:
            return np.zeros((0, sum(key.n_columns for key in self._condition_keys)))
        return self._cells.codes

    @property
    def _has_cells(self) -> bool:
        return self._file_cells is not None or self.adata is not None

    @property
    def _cells(self) -> TrainingCells:
        """The cells that the model trains on, through which training reads all that it needs of them."""
        if not self._has_cells:
            msg = (
                "The model has no cells to train on; construct it with an AnnData, set model.adata, or give cells of files: "
                "`datamodule=scgen_diffusion.data.CellFiles(...)`."
            )
            raise ValueError(msg)
        return self._file_cells or RegisteredCells(self.adata_manager)

    @property
    def _registered_genes(self) -> pd.Index:
        state = self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
        return pd.Index([str(name) for name in state["column_names"]])

    # --- training ------------------------------------------------------------------------------------------------------

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
        check_argument_names(method, trainer_kwargs, sorted(known), NAMES_IN_TRAINING)
        early_stopping = trainer_kwargs.pop("early_stopping", False)
        self._take_cells(datamodule)
        self._cells.check()
        self._count_combinations(self._registered_codes)
        if not (keep_split and self._split_fits):
            parts = split_cells(self._cells.n_cells, train_size, validation_size)
            self.train_indices_, self.validation_indices_, self.test_indices_ = parts
        n_cells, names = len(self.train_indices_), stages()
        epochs = self._by_stage("max_epochs", max_epochs, names)
        changes = self._by_stage("plan_kwargs", plan_kwargs, names)
        recipes, lengths = {}, {}
        for name in names:
            size = None if name == "transport" and len(names) > 1 else batch_size
            recipes[name] = changed_recipe(self._recipe(name), name, size, changes[name], n_cells)
            length = epochs[name]
            lengths[name] = recipes[name].max_epochs(n_cells) if length is None else check_count("max_epochs", length)
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
        result = run_stage(
            plan,
            data,
            max_epochs=max_epochs,
            checkpoint_dir=checkpoint_dir,
            accelerator=accelerator,
            devices=devices,
            **options,
        )
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

    def _cell_data(self, recipe: Recipe) -> CellData:
        return CellData(self._cells, self.train_indices_, self.validation_indices_, recipe.batch_size)

    @property
    def _split_fits(self) -> bool:
        """Whether there is a split, and of as many cells as the model has."""
        parts = (self.train_indices_, self.validation_indices_, self.test_indices_)
        return all(part is not None for part in parts) and sum(map(len, parts)) == self._cells.n_cells

    @property
    def _fingerprint(self) -> str:
        """Tell this model and its cells, with their values and conditions, from others."""
        cells, arguments = self._cells, self.registry_["setup_args"]
        tables = arguments["condition_embeddings"]
        vectors = [part for name in sorted(tables) for part in (list(tables[name].index), tables[name].to_numpy())]
        layer = arguments["layers"] if "layers" in arguments else arguments["layer"]
        what = (self.architecture, self._condition_keys, self._input_values, layer, list(self.var_.index))
        fine_tuned = [] if self.reference_ is None else [self.reference_["trainable"]]
        return digest_of(*what, cells.digest, np.asarray(cells.codes, dtype=float), *vectors, *fine_tuned)

    # --- generating ----------------------------------------------------------------------------------------------------

    @suggests_arguments(OTHER_NAMES)
    def generate(
        self,
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        guidance_scale: GuidanceScale | Guidance = 1.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        counts: bool | None = None,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        """Generate cells.

        Parameters
        ----------
        n_cells
            Number of cells; may be left out when ``condition`` gives one row or value per cell.
        condition
            Condition of the cells.

            - None: conditions are drawn from their joint distribution in the training cells.
            - A mapping from key to a value for all cells, or to a list: one value per cell, or fewer, of which each is then
              given to an equal share of consecutive cells. Keys left out are drawn given the others.
            - A table with one row per cell and keys as columns.

            Combinations that never occurred in training can be asked for when every key is given.
        guidance_scale
            1: conditional; 0: unconditional; larger: more typical of the condition and less diverse. One number, a mapping
            from keys or tuples of keys to numbers, or a :class:`~scgen_diffusion.diffusion.Guidance`, which also says how
            scales are composed and where on the path they hold. See the user guide, "Guidance".
        sampler
            Name of a sampler that suits the model's path, or a sampler of :mod:`scgen_diffusion.diffusion`. Flow matching
            (SCLDM) has ``"midpoint"``, ``"euler"``, ``"heun"`` and ``"dopri5"``; the other paths of SCRDIT and WBDIT have
            ``"dpm_solver_3m"``, ``"dpm_solver"``, ``"heun"``, ``"ddim"`` and ``"ddpm"``.
        n_steps
            Steps of the sampler (not of ``"dopri5"``, which is adaptive).
        counts
            Whether the cells hold whole counts, or log-normalised values. Default: counts from SCLDM, log-normalised values
            from SCRDIT and WBDIT and from SCLDM with a Gaussian head. SCLDM has no choice.
        library_size
            Total counts of the cells: ``"empirical"``, ``"normal"`` or ``"latent"`` distribution (default: as the model was
            constructed), one number, or one number per cell. For several modalities a mapping from modality to numbers,
            ``{"prot": 3_000}``; those of the others are drawn.
        batch_size
            Cells in the works at most, rounded up to whole blocks (of 128 on a CPU), in which cells are made, several blocks
            at a time. Does not change the cells.
        seed
            Same seed, same cells; default ``scvi.settings.seed``, or else a random one. It is kept in ``uns``. Requests of
            one seed start from the same noise cell by cell, so that cell by cell they differ by their conditions alone.
        show_progress
            Whether to show a progress bar.

        Returns
        -------
        AnnData
            Values in ``X`` (CSR counts, or log-normalised values with ``uns["log1p"]`` set), conditions in ``obs``, ``var`` as
            in training, and how the cells were made in ``uns["scgen_diffusion"]``. ``obs["synthetic"]`` names the model, as do
            the cells' names, which no other request shares. MULTISCLDM returns MuData: each cell has all modalities.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            For unknown keys, values, samplers and sizes, and lengths that do not fit.
        FloatingPointError
            If sampling diverges to values that are not finite.
        """
        request = self._request(
            n_cells,
            condition,
            guidance=Guidance.of(guidance_scale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=library_size,
            seed=seed,
            output=self._output(counts),
        )
        with tqdm(total=request.n_cells, desc="Generating", unit="cell", disable=not show_progress) as progress:
            return self._make_cells(request, range(request.n_cells), batch_size, progress)

    @suggests_arguments(OTHER_NAMES)
    def generate_to(
        self,
        path: str | os.PathLike[str],
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        guidance_scale: GuidanceScale | Guidance = 1.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        counts: bool | None = None,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
        shard_size: int | None = None,
        rank: int = 0,
        n_ranks: int = 1,
        overwrite: bool = False,
    ) -> Path:
        """Generate cells to a file: any number of them in the same memory, and by as many processes as there are.

        Run the same call again to resume one that was killed; a finished one returns at once. The cells are those of
        :meth:`generate`, whatever the shards and the ranks are.

        Parameters
        ----------
        path
            Where to: ``.zarr`` (sharded, of zarr's version 3) or ``.h5ad``. Until all is done, what is finished lies in a
            hidden folder beside it, which needs about as much space as the file.
        n_cells, condition, guidance_scale, sampler, n_steps, counts, library_size, batch_size, seed
            See :meth:`generate`. Without a seed, a resumed call keeps its first seed.
        show_progress
            Whether to show a progress bar; cells of an earlier call are counted.
        shard_size
            Cells that are finished at once, and of which zarr's shards are made; rounded up to whole blocks. More need more
            memory, and more is lost when the process is killed. Default: 32 million values, zeros included.
        rank, n_ranks
            Number of this process, from 0, and how many there are: each makes every ``n_ranks``-th shard, and the last one to
            finish puts them together. They need a common file system, and nothing else of each other. ``n_ranks`` may be
            another one when the call is made again.
        overwrite
            Whether a file of other generated cells may be replaced, which happens at the very end; and, by a single process,
            whether unfinished work on other cells may be removed. Anything else at the path is never replaced.

        Returns
        -------
        pathlib.Path
            The path. As long as other ranks are still at work there is no file.

        Raises
        ------
        FileExistsError
            If there is a file of other cells.
        ValueError
            If unfinished cells of another request are there, and for what :meth:`generate` refuses.
        OSError
            If the folder does not exist or cannot be written to, or no space is left.
        """
        goal = check_goal(path)
        check_rank(rank, n_ranks)
        batch_size = checked_batch_size(batch_size)
        request = self._request(
            n_cells,
            condition,
            guidance=Guidance.of(guidance_scale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=library_size,
            seed=seed,
            output=self._output(counts),
        )
        if shard_size is None:
            shard_size = min(max(VALUES_PER_PART // len(self.var_), 1), CELLS_PER_PART)
        shard_size = self._engine.round_to_blocks(check_count("shard_size", shard_size))
        n_cells, seed = request.n_cells, settings.seed if seed is None else seed
        asked = {"n_cells": n_cells, "seed": None if seed is None else int(seed), "shard_size": shard_size}
        rows = [range(start, min(start + shard_size, n_cells)) for start in range(0, n_cells, shard_size)]
        stream = Stream(goal, {**request.identity, **asked}, len(rows))
        if not stream.is_joined(overwrite=overwrite):
            request = request.with_seed(stream.begin(request.seed, give_up_others=overwrite and n_ranks == 1))
        if stream.is_joined(overwrite=overwrite):  # perhaps by now
            stream.clean()
            return goal
        mine, done, values = range(rank, len(rows), n_ranks), stream.parts, None
        with tqdm(
            total=sum(len(rows[number]) for number in mine),
            initial=sum(len(rows[number]) for number in mine if number in done),
            desc="Generating",
            unit="cell",
            disable=not show_progress,
        ) as progress:

            def make(number: int) -> None:
                with warnings.catch_warnings(action="ignore"):  # of what all cells together may not have
                    cells = self._make_cells(request, rows[number], batch_size, progress)
                stream.write(number, cells)

            try:
                for number in mine:
                    if number not in done:
                        make(number)
                with stream.joining(wait=rank == 0) as is_mine:
                    if is_mine and not stream.is_joined(overwrite=overwrite):
                        for number in stream.discard_damaged():
                            make(number)
                        values = stream.join()
            except Exception:  # whatever the libraries raise when others have joined the parts and removed them
                if not stream.is_joined(overwrite=True):
                    raise
        if stream.is_joined(overwrite=True):
            stream.clean()
        if values is not None:
            self._check_result(values, request.output)
        return goal

    @suggests_arguments(OTHER_NAMES)
    def get_sampling_path(
        self,
        n_cells: int | None = None,
        condition: ConditionRequest = None,
        *,
        n_frames: int = 11,
        guidance_scale: GuidanceScale | Guidance = 1.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        r"""Return cells on their way from noise, as :func:`scgen_diffusion.pl.sampling_path` draws it.

        The cells are those that :meth:`generate` makes of the same arguments.

        Parameters
        ----------
        n_cells, condition, guidance_scale, sampler, n_steps, seed, show_progress
            See :meth:`generate`.
        n_frames
            How many moments of the way to keep, noise and cells included: at most one more than the sampler's steps, of
            which they are chosen evenly. An adaptive sampler has any number, equally spaced in time. For a film take more
            steps than for cells, for example ``n_steps=40, n_frames=41``.

        Returns
        -------
        AnnData
            ``n_frames`` times the cells, dense: all cells of frame 0, which is noise, then all of frame 1, up to the
            finished cells.

            - ``X``: each cell's state as a log-normalised profile. A latent is decoded to the profile of its expected
              counts, from which :meth:`generate` draws. A state in gene space is read as the finished one is; the last
              frame is what :meth:`generate` returns.
            - ``layers["estimate"]``: what the model takes the finished cell to be at that moment, read alike.
            - ``obs``: the conditions, and ``cell`` (its name in the result of :meth:`generate`), ``frame``, ``time`` from 0
              (noise) to 1 (cells), and ``noise_level`` :math:`\sigma_t`.
            - ``uns["scgen_diffusion"]``: as of :meth:`generate`.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        TypeError
            For a sampler of one's own that cannot be watched.
        ValueError
            For numbers of frames that do not fit the steps, and for what :meth:`generate` refuses.
        """
        if taken := sorted(set(self.conditions.keys) & set(FRAME_COLUMNS)):
            msg = f"`obs` of a sampling path has the columns {', '.join(FRAME_COLUMNS)}, but {taken[0]!r} is a condition key of the model."
            raise ValueError(msg)
        request = self._request(
            n_cells,
            condition,
            guidance=Guidance.of(guidance_scale),
            sampler=sampler,
            n_steps=n_steps,
            library_size=None,
            seed=seed,
            output="log1p",
        )
        parts = []
        with tqdm(total=request.n_cells, desc="Generating", unit="cell", disable=not show_progress) as progress:
            for frames in self._engine.frames(request, n_frames):
                parts.append(frames)
                progress.update(len(frames.codes))
        times, codes = parts[0].times, np.concatenate([part.codes for part in parts])
        states = np.concatenate([part.states for part in parts], axis=1)
        estimates = np.concatenate([part.estimates for part in parts], axis=1)
        self._check_result(ValueSummary.of(states[-1]), "log1p")
        identity = {**request.identity, "values": self._outputs[0]}
        if self._outputs[0] == "counts":
            identity["library_size"] = self.architecture.library_size
        names = replace(request, identity=identity).names(0, request.n_cells)  # those that `generate` gives
        cells = self.conditions.to_obs(codes, names)
        obs = pd.concat([cells] * len(times))
        obs["cell"] = pd.Categorical(obs.index, categories=cells.index)
        obs["frame"] = np.repeat(np.arange(len(times)), len(cells))
        obs["time"] = np.repeat(times.float().cpu().numpy(), len(cells))
        levels = self.module.path.sigma(times.double()).abs()  # no negative zero
        obs["noise_level"] = np.repeat(levels.float().cpu().numpy(), len(cells))
        obs.index = obs["cell"].astype(str) + "_frame_" + obs["frame"].astype(str)
        layers = {"estimate": np.concatenate(estimates)}  # frame by frame, below each other
        provenance = {**request.provenance, "n_frames": int(n_frames)}
        return self._assemble(np.concatenate(states), obs.rename_axis(None), provenance, is_log1p=True, layers=layers)

    @suggests_arguments(OTHER_NAMES)
    def predict_perturbation(
        self,
        adata_control: AnnData | None = None,
        condition: ConditionRequest = None,
        *,
        method: Literal["transport", "inversion"] | None = None,
        residuals: Literal["own", "new"] | None = None,
        indices: Sequence[int] | None = None,
        given_keys: Sequence[str] | None = None,
        strength: float = 1.0,
        guidance_scale: GuidanceScale | Guidance = 1.0,
        sampler: str | Sampler | None = None,
        n_steps: int | None = None,
        counts: bool | None = None,
        library_size: LibrarySizeKind | float | Sequence[float] | None = None,
        sample: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> AnnData:
        """Predict what given cells would have been under another condition.

        SCLDM carries a cell's latent over in one of two ways (``method``), and changes the cell as the means of its genes change
        (``residuals``). SCRDIT and WBDIT draw the noise that leads to the cell in ancestral sampling under its own condition,
        step by step, and sample anew under the new condition with the same noise. Under its own condition a cell comes back as
        it is or, with new residuals or expected values, as its reconstruction. See the user guide, "Perturbations".

        Parameters
        ----------
        adata_control
            Cells with values of all condition keys in ``obs``; default: those of the model.
        condition
            Condition that the cells shall have.

            - A mapping from key to a value for all cells, or to a list with one value per cell. Of keys left out every cell
              keeps its own value.
            - A table with one row per cell and keys as columns.
            - None: every cell's own condition.
        method
            - ``"transport"``, of SCLDM: a flow that was trained to start at control cells (:meth:`SCLDM.train_transport`)
              goes from the cell's latent to the perturbed one. The cells must be unperturbed, and keep their values of all
              keys that do not perturb.
            - ``"inversion"``: the cell is carried back to noise under its own condition, and from there to a cell under the
              new one, so that what the condition does not say of the cell is kept.

            Default: the transport if it is trained and that is what is asked for, else the inversion.
        residuals
            What the latent of SCLDM does not explain of a cell. ``"own"`` (default): kept; molecules are taken away from the
            cell or added to it as the means of the genes fall or rise. ``"new"``: drawn anew with all counts.
        indices
            Which of the cells; default: all.
        given_keys
            Condition keys that the model is told of, both ways; default: all. A key that stays the same, such as the cell type,
            can be left out. What it says of a cell then stays in the noise, which helps where the asked combination was never
            seen. Only for models that learned these keys without the others, with ``condition_strategy="additive"``, or
            ``"mutually_exclusive"`` for one key.
        strength
            How far to go, from just above 0 (cells hardly change) to 1: on the way to the perturbed cells, or back to noise.
        guidance_scale
            Guidance on the way from noise to the new condition, as in :meth:`generate`. The way back has none, nor has the
            transport.
        sampler
            SCLDM: ``"euler"``, ``"midpoint"`` or ``"heun"``; of the transport also ``"dopri5"``. SCRDIT and WBDIT: ``"ddpm"``
            (default), which draws fresh noise at every step, ``"ddim"``, one noise for all, or ``DDIMSampler(eta=...)``.
        n_steps
            Steps of the sampler, each way; default for SCRDIT and WBDIT: 50.
        counts
            Whether the cells hold whole counts, as in :meth:`generate`.
        library_size
            Total counts of the predicted cells, as in :meth:`generate`; default: every cell keeps its own.
        sample
            Of SCLDM. True: start from a latent drawn from the cell's posterior, and draw counts. False: expected counts,
            starting from the posterior's mean.
        batch_size
            Cells read at a time, rounded up to whole blocks (of 128 on a CPU). Does not change the result.
        seed
            Seed of the draws; default ``scvi.settings.seed``, or else a random one. What is drawn for a cell depends on it and
            on the cell's row number alone.
        show_progress
            Whether to show a progress bar.

        Returns
        -------
        AnnData
            One cell per given cell, in the same order, with its ``obs``: the keys asked for have the new values, and
            ``obs["<key>_of_control"]`` those before. Its name is that of the given cell behind one of model and request.
            Values in ``X`` as :meth:`generate` gives them, expected ones dense. How they were made is in
            ``uns["scgen_diffusion"]``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            For cells without a column that the model has as a condition, or without the layer.
        ValueError
            For unknown keys and values, cells without a value, other genes or kinds of values, and lengths that do not fit.
        """
        engine, output, guidance = self._engine, self._output(counts), Guidance.of(guidance_scale)
        sampler = self._counterfactual_sampler if sampler is None else sampler
        sampling = engine.sampling(sampler, n_steps, guidance, output)
        cells = control_cells(self, adata_control, indices, condition)
        chosen = {"method": method, "residuals": residuals, "sample": sample}
        residuals_of_cells = self._check_counterfactual_ways(chosen)
        way = self._counterfactual_method(cells, method)
        if way == "transport" and (guidance != Guidance() or given_keys is not None):
            msg = "The transport knows neither guidance nor `given_keys`; leave them out, or choose method='inversion'."
            raise ValueError(msg)
        if library_size is None and output == "counts" and self._input_values == "log1p":
            msg = "The cells hold log-normalised values, which do not tell library sizes; give `library_size`, one number or one per cell."
            raise ValueError(msg)
        asked = [] if condition is None else list(condition)
        request = Counterfactual(
            cells.rows,
            cells.own,
            cells.codes,
            sampling,
            inversion=None if way == "transport" else self.module.inversion_by(sampling.sampler),
            given=check_given_keys(given_keys, asked, self.conditions.keys, self.module.strategy),
            strength=check_strength(strength),
            sample=sample,
            residuals=residuals_of_cells,
            library_size=None if library_size is None else engine.totals(library_size, len(cells.rows), output),
            seed=resolve_seed(seed),
        )
        outside = engine.warn_of_what_lies_outside(np.concatenate([cells.codes, cells.own]))
        chunk = engine.round_to_blocks(checked_batch_size(batch_size))
        batches = (tensors[REGISTRY_KEYS.X_KEY] for tensors, _ in self._read(cells.source, cells.rows, chunk))
        parts = []
        with tqdm(total=len(cells.rows), desc="Predicting", unit="cell", disable=not show_progress) as progress:
            for rows in engine.predictions(request, batches, chunk):
                parts.append(rows)
                progress.update(rows.shape[0])
        x = stack(parts)
        self._check_result(ValueSummary.of(x), output)
        provenance = engine.provenance(condition, sampling, library_size, request.seed)
        provenance |= describe_counterfactual(request, way, condition, self.conditions.keys)
        provenance["outside_training"] = outside
        obs = counterfactual_obs(self.conditions, cells, asked)
        obs.index = counterfactual_names(self, cells, condition, request, provenance)
        return self._assemble(x, obs, provenance, is_log1p=output == "log1p")

    def _request(
        self, n_cells: int | None, condition: ConditionRequest, *, seed: int | None, **options: Any
    ) -> CellRequest:
        """Check what a user asks for, and resolve it; ``options`` are those of :meth:`CellGenerator.request`."""
        self._check_ready_to_generate()
        return self._engine.request(n_cells, condition, seed=resolve_seed(seed), **options)

    def _make_cells(self, request: CellRequest, rows: range, batch_size: int | None, progress: tqdm) -> AnnData:
        """Make the cells of some rows, of which the first begins a block, and put them together."""
        parts = []
        for cells in self._engine.cells(request, rows.start, rows.stop, batch_size=checked_batch_size(batch_size)):
            parts.append(cells)
            progress.update(len(cells.codes))
        x, codes = stack([part.x for part in parts]), np.concatenate([part.codes for part in parts])
        self._check_result(ValueSummary.of(x), request.output)
        obs = self.conditions.to_obs(codes, request.names(rows.start, rows.stop))
        return self._assemble(x, obs, request.provenance, is_log1p=request.output == "log1p")

    @property
    def _engine(self) -> CellGenerator:
        """What turns requests into cells; it sees no AnnData."""
        name = type(self).__name__
        return CellGenerator(self.module, self.conditions, self._library_sizes, name, self.default_sampler)

    @property
    def _library_sizes(self) -> LibrarySizes:
        is_fitted = self.module.library_size.is_fitted
        return LibrarySizes(self.architecture.library_size, is_fitted, self.library_head_is_trained_)

    @property
    @abstractmethod
    def _outputs(self) -> tuple[InputValues, ...]:
        """What cells can hold: what ``generate`` returns unless something else is asked for, and further forms."""

    def _output(self, counts: bool | None) -> InputValues:
        """Return what the cells of a request hold."""
        if counts is None:
            return self._outputs[0]
        output: InputValues = "counts" if counts else "log1p"
        if output not in self._outputs:
            gives = {"counts": "counts", "log1p": "log-normalised values"}[self._outputs[0]]
            msg = f"`counts` is {counts}, but this {type(self).__name__} generates {gives}; leave `counts` out."
            raise ValueError(msg)
        return output

    @abstractmethod
    def _check_ready_to_generate(self) -> None:
        """Raise unless the model can generate."""

    def _check_result(self, values: ValueSummary, output: InputValues) -> None:
        """Raise, or warn, if generated cells cannot be right."""
        check_summary_finite(values)

    @property
    def _counterfactual_sampler(self) -> str | Sampler:
        """How given cells are carried over unless something else is asked for."""
        return self.default_sampler

    def _counterfactual_method(self, cells: ControlCells, method: str | None) -> str:
        """Return the way to carry cells over, and raise unless the model has learned what it needs."""
        self._check_ready_to_generate()
        return "inversion"

    def _check_counterfactual_ways(self, chosen: Mapping[str, Any]) -> str:
        """Raise for ways to carry cells over that the model does not have, and return what becomes of residuals."""
        for name, value in chosen.items():
            known = self._counterfactual_ways[name]
            if value is not None and value not in known:
                msg = f"`{name}` {value!r} is not known to {type(self).__name__}. {known_names(value, known)}"
                raise ValueError(msg)
        return chosen["residuals"] or self._counterfactual_ways["residuals"][0]

    # --- reading given cells -------------------------------------------------------------------------------------------

    @abstractmethod
    def _check_can_read_cells(self) -> None:
        """Raise unless the model is trained as far as reading cells needs it."""

    def _batches(
        self, adata: AnnData | CellFiles | None, indices: Sequence[int] | np.ndarray | None, batch_size: int | None
    ) -> Iterator[tuple[Mapping[str, Tensor], np.ndarray]]:
        """Yield what is registered of cells, on the model's device, and their row numbers."""
        self._check_can_read_cells()
        batch_size = checked_batch_size(settings.batch_size if batch_size is None else batch_size)
        files = self._file_cells if adata is None else adata if isinstance(adata, CellFiles) else None
        if files is None:
            source = self._validated(adata)
            yield from self._read(source, checked_rows(indices, source.n_obs), batch_size)
            return
        check_same_registry(files.registry, self.registry_)
        rows = checked_rows(indices, files.n_cells)
        yield from self._on_device(files.loader(rows, batch_size), rows)

    def _read(
        self, source: AnnData, rows: np.ndarray, batch_size: int
    ) -> Iterator[tuple[Mapping[str, Tensor], np.ndarray]]:
        """Yield what is registered of some rows of cells that are known to fit, and their numbers."""
        own = torch.Generator()  # or the loader would draw a number from the global one
        loader = self._make_data_loader(adata=source, indices=rows, batch_size=batch_size, generator=own)

        def checked() -> Iterator[Mapping[str, Tensor]]:
            start = 0
            for tensors in loader:
                batch = rows[start : start + len(tensors[REGISTRY_KEYS.X_KEY])]
                start += len(batch)
                if source.isbacked:  # scvi-tools sorts the rows of a batch to read a file
                    order = np.argsort(np.argsort(batch, kind="stable"), kind="stable")
                    tensors = {name: tensor[order] for name, tensor in tensors.items()}
                self._check_values(tensors[REGISTRY_KEYS.X_KEY], batch, source)
                yield tensors

        yield from self._on_device(checked(), rows)

    def _on_device(
        self, loader: Iterable[Mapping[str, Tensor]], rows: np.ndarray
    ) -> Iterator[tuple[Mapping[str, Tensor], np.ndarray]]:
        self.module.eval()
        start = 0
        for tensors in loader:
            stop = start + len(tensors[REGISTRY_KEYS.X_KEY])
            yield {name: tensor.to(self.device) for name, tensor in tensors.items()}, rows[start:stop]
            start = stop

    def _check_values(self, x: Tensor, rows: np.ndarray, source: AnnData) -> None:
        """Raise unless cells ``(cells, genes)`` hold what the model learned from; ``X`` may have changed since it was registered."""
        setup = self.registry_["setup_args"]
        where = check_layer(source, setup["layer"])
        advice = f"The model was set up with counts there; give cells that have them in {where}."
        check_not_empty(check_values(x.numpy(), where, setup["values"], advice), source.obs_names[rows], where)

    def _check_given(self, adata: AnnData | None, argument: str) -> None:
        """Raise if there are no cells in memory to read."""
        if adata is not None:
            return
        if self._file_cells is not None:
            msg = f"The model's cells are in files; read those that you want: `{argument}=cells.read(indices)`."
            raise ValueError(msg)
        if self.adata is None:
            msg = f"The model was loaded without cells; give `{argument}`."
            raise ValueError(msg)

    def _validated(self, adata: AnnData | None) -> AnnData:
        self._check_given(adata, "adata")
        cells = self.adata if adata is None else adata
        self._check_same_features(cells)
        check_layer(cells, self.registry_["setup_args"].get("layer"))
        return self._validate_anndata(adata)

    # --- saving --------------------------------------------------------------------------------------------------------

    def save(
        self,
        dir_path: str | os.PathLike[str],
        *,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model, and with it all that generating needs.

        The folder has scvi-tools' layout. Columns of ``var`` with text, numbers, truth values or categories are saved with their
        types; other columns, such as dates, are not part of a model.

        Parameters
        ----------
        dir_path
            Folder to write to; made if it does not exist.
        prefix
            Start of the files' names.
        overwrite
            Whether an existing folder may be written to. The model and the cells that were saved there under this prefix are
            replaced; other files stay.
        save_anndata
            Whether to save the training data too.
        **anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`, or to :meth:`mudata.MuData.write_h5mu`.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite`` is false, or the model has no cells in memory that could be saved.
        OSError
            If the files cannot be written; what was there before stays as it was.
        """
        folder, prefix = Path(dir_path), prefix or ""
        if folder.exists() and not overwrite:
            msg = f"{folder} already exists. Choose another folder or set overwrite=True."
            raise ValueError(msg)
        if save_anndata and self.adata is None:
            msg = "`save_anndata` is True, but the model has no cells in memory; leave it out, or set model.adata."
            raise ValueError(msg)
        writers: dict[str, Callable[[Path], None]] = {f"{prefix}{MODEL_FILE}": partial(write_model, content_of(self))}
        if save_anndata:
            name = MUDATA_FILE if isinstance(self.adata, MuData) else ADATA_FILE
            writers[f"{prefix}{name}"] = partial(write_cells, self.adata, anndata_write_kwargs)
        write_together(folder, writers, removed=[f"{prefix}{ADATA_FILE}", f"{prefix}{MUDATA_FILE}"])

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
            Cells to attach to the model, with its genes and its condition columns. None: those saved with the model, if
            any. False: none. Generating needs none.
        accelerator, device
            Where to put the model.
        prefix
            Start of the files' names.

        Raises
        ------
        FileNotFoundError
            If there is no such model.
        TypeError
            If ``adata`` is none of these.
        ValueError
            If a file is damaged, was changed, holds anything but plain values, or is of another model class; or if the genes of
            ``adata`` are not those of the model.
        """
        folder, prefix = model_folder(dir_path), prefix or ""
        path = folder / f"{prefix}{MODEL_FILE}"
        _, _, device = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        saved = read_model_file(path)
        if (name := saved.registry["model_name"]) != cls.__name__:
            msg = f"{folder} holds a model of class {name!r}, but {cls.__name__}.load was called."
            raise ValueError(msg)
        with damage_named(path):
            check_fits_class(saved, cls)
        cells = find_cells(adata, folder, prefix)
        if cells is not None:
            cls._register_like(cells, saved.registry, saved.attributes["var_"].index)
        model = cls(cells, registry=saved.registry, **saved.options)
        for name, value in saved.attributes.items():
            setattr(model, name, value)
        model.module.load_state_dict(saved.weights)
        model.to_device(device)
        model.module.eval()
        return model

    @staticmethod
    def load_registry(dir_path: str | os.PathLike[str], prefix: str | None = None) -> dict[str, Any]:
        """Return the registry of a saved model: what was set up, and what came of it. Nothing in the file is executed.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.
        """
        return read_model_file(model_folder(dir_path) / f"{prefix or ''}{MODEL_FILE}").registry

    @staticmethod
    def view_setup_args(dir_path: str | os.PathLike[str], prefix: str | None = None) -> None:
        """Print how the cells of a saved model were set up. Nothing in the file is executed.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.
        """
        AnnDataManager.view_setup_method_args(DiffusionModel.load_registry(dir_path, prefix))

    @classmethod
    def convert_legacy_save(cls, dir_path: str | os.PathLike[str], *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: this package never wrote the format of scvi-tools before 0.15, and reading it can execute code."""
        msg = (
            f"{dir_path} is no model of {cls.__name__}, which was never saved in the format of scvi-tools before 0.15."
        )
        raise NotImplementedError(msg)

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print how the model's cells were set up, where they have what, and how much there is of it.

        Parameters
        ----------
        hide_state_registries
            Whether to leave out the condition keys.
        """
        registry = self.registry_
        rich.print(f"Set up with scvi-tools {registry['scvi_version']}.")
        AnnDataManager.view_setup_method_args(registry)
        table = rich.table.Table("registered as", "lies in", "numbers")
        for name, field in registry["field_registries"].items():
            where = ".".join(str(part) for part in field["data_registry"].values() if part)
            numbers = ", ".join(f"{what}: {number}" for what, number in field["summary_stats"].items())
            table.add_row(name, escape(where), numbers)
        rich.print(table)
        if not hide_state_registries:
            rich.print(*(escape(f"Condition {key.name}: {key.kind}") for key in self.conditions.by_key), sep="\n")

    def view_anndata_setup(self, adata: AnnData | MuData | None = None, hide_state_registries: bool = False) -> None:
        """Print how cells were set up: given ones, or those of the model, which may have none in memory any more."""
        if adata is None and self.adata is None:
            self.view_registry(hide_state_registries)
        else:
            super().view_anndata_setup(adata, hide_state_registries)

    # --- fine-tuning ---------------------------------------------------------------------------------------------------

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: Self | str | os.PathLike[str],
        *,
        trainable: Trainable = "new_conditions",
        condition_embeddings: Mapping[str, pd.DataFrame | str] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Build a model that knows what a trained one knows, to train it on new cells.

        New classes, and new members of sets, are added to the condition keys; they start at the mean of those that the reference
        learned. Numbers keep the reference's scale. Call :meth:`train` afterwards. Then conditions that are not asked for are
        drawn from the reference's cells and the new ones together, and library sizes of new combinations are those of the new
        cells.

        Parameters
        ----------
        adata
            New cells, with the layer and the columns of ``obs`` that the reference was set up with, and with its genes:
            see :meth:`prepare_query_anndata`. They need not be registered.
        reference_model
            A trained model of this class, or the folder that it was saved in. It stays as it is.
        trainable
            What :meth:`train` will change:

            - ``"new_conditions"``: the embeddings of classes and members that are new, and nothing else. The reference's
              conditions give the same cells as before, bit for bit.
            - ``"conditions"``: the embeddings of all conditions.
            - ``"network"``: the whole diffusion network, which for SCLDM is the prior; the autoencoder stays.
            - ``"all"``: everything, the autoencoder of SCLDM too.

            With all but the first, what the reference knew changes with the new cells, and what these lack is forgotten in part.
        condition_embeddings
            Further rows for the reference's tables of known embeddings, with the same columns: tables, or their names in ``adata.uns``.
        accelerator, device
            Where to put the model.

        Returns
        -------
        Self
            The model of the new cells.

        Raises
        ------
        KeyError
            For a layer or columns that the cells lack.
        RuntimeError
            If the reference is not trained.
        TypeError
            If ``adata`` is no AnnData, or the reference is no model or folder of one.
        ValueError
            For another class of model, other genes, values that are not what the reference learned from, and, with
            ``"new_conditions"``, cells without anything new.

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
        >>> synthetic = model.generate(1_000, condition={"cell_type": "CD34+"})  # doctest: +SKIP
        """
        if trainable not in TRAINABLE:
            msg = (
                f"`trainable` must be one of {TRAINABLE}, but found {trainable!r}. {known_names(trainable, TRAINABLE)}"
            )
            raise ValueError(msg)
        _, _, device = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        reference = cls._reference(reference_model)
        try:
            reference._check_ready_to_generate()
        except RuntimeError as error:
            msg = f"`reference_model` must be trained before it can be fine-tuned. {error}"
            raise RuntimeError(msg) from error
        check_query_cells(adata, reference.var_.index)
        registry = reference.registry_
        tables = extended_tables(registry["setup_args"]["condition_embeddings"], condition_embeddings, adata)
        arguments = {**registry["setup_args"], "condition_embeddings": tables}
        cls.setup_anndata(adata, source_registry=registry, extend_categories=True, **arguments)
        model = cls(adata, **init_options(reference.init_params_))
        model._take_over(reference, trainable)
        model.to_device(device)
        model.module.eval()
        return model

    @classmethod
    def prepare_query_anndata(
        cls, adata: AnnData, reference_model: Self | str | os.PathLike[str], *, inplace: bool = False
    ) -> AnnData | None:
        """Give new cells the genes of a model, for :meth:`load_query_data`.

        Genes are put in the model's order. Those that the cells lack are filled with zeros, in every layer, and those that the
        model does not know are left out. A zero says "not seen", which is not quite "not measured": the fewer, the better.

        Parameters
        ----------
        adata
            New cells.
        reference_model
            A model of this class, or the folder that it was saved in.
        inplace
            Whether to change ``adata`` itself, and to return nothing.

        Returns
        -------
        AnnData
            The cells with the model's genes, whose columns in ``var`` are the model's. Without ``varm``, ``obsp`` and ``raw``.

        Raises
        ------
        ValueError
            If no gene is known, or one occurs more than once.

        Warns
        -----
        UserWarning
            If less than 80 % of the model's genes are there. How many there are is logged in any case.
        """
        padded = pad_genes(adata, cls._reference(reference_model).var_)
        if not inplace:
            return padded
        replace_contents(adata, padded)
        return None

    @classmethod
    def _reference(cls, reference_model: Self | str | os.PathLike[str]) -> Self:
        if not isinstance(reference_model, DiffusionModel):
            return cls.load(reference_model, adata=False, accelerator="cpu")
        if type(reference_model) is not cls:
            msg = f"`reference_model` is of class {type(reference_model).__name__!r}, but {cls.__name__} was called."
            raise ValueError(msg)
        return reference_model

    def _take_over(self, reference: Self, trainable: Trainable) -> None:
        """Know what a reference knows."""
        before, after = reference._condition_keys, self._condition_keys
        self.combinations_ = recode(reference.combinations_, before, after)
        self.combination_sizes_ = reference.combination_sizes_
        self.reference_ = {
            "trainable": trainable,
            "combinations": self.combinations_,
            "combination_sizes": self.combination_sizes_,
        }
        take_over(
            self.module,
            reference.module,
            learned(after, self.reference_["combinations"]),
            lambda codes: torch.from_numpy(recode(codes.cpu().numpy(), before, after)),
        )
        self.var_ = reference.var_.copy()
        self._note_trained(*{*reference.trained_stages_} - {"transport"})  # learned anew from the new cells
        self.library_head_is_trained_ = reference.library_head_is_trained_
        if trainable == "new_conditions" and not trained_masks(self.module, trainable, self._newly_seen()):
            msg = (
                "There is nothing to train: the new cells have no class or member that the reference did not learn, apart from "
                "those with known embeddings. To learn other combinations, numbers or cells, set `trainable` to one of "
                f"{TRAINABLE[1:]}."
            )
            raise ValueError(msg)

    def _newly_seen(self) -> list[Tensor]:
        """Which classes and members the model's cells have and the reference's had not, per key."""
        assert self.reference_ is not None
        return newly_seen(self._condition_keys, self._registered_codes, self.reference_["combinations"])

    def _trained_rows(self) -> Mapping[torch.nn.Parameter, Tensor | None] | None:
        """Return what fine-tuning trains; None for everything."""
        if self.reference_ is None:
            return None
        masks = trained_masks(self.module, self.reference_["trainable"], self._newly_seen())
        if not self.library_head_is_trained_:  # published weights have none
            masks |= dict.fromkeys(self.module.library_size.head.parameters())
        if (transport := getattr(self.module, "transport", None)) is not None:
            masks |= dict.fromkeys(transport.parameters())
        return masks

    @property
    def _keeps_scale(self) -> bool:
        return self.reference_ is not None

    @property
    def _keeps_autoencoder(self) -> bool:
        return self.reference_ is not None and self.reference_["trainable"] != "all"

    # --- what other models of scvi-tools have --------------------------------------------------------------------------

    if not TYPE_CHECKING:  # which would take every name for one that exists

        def __getattr__(self, name: str) -> NoReturn:
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in self._advice:
                msg = f"{type(self).__name__} has no `{name}`: {self._advice[name]}."
            raise AttributeError(msg, name=name, obj=self)

    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> Any:
        """Raise NotImplementedError, which says what to use instead."""
        self._refuse("get_normalized_expression")

    def differential_abundance(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise NotImplementedError, which says what to use instead."""
        self._refuse("differential_abundance")

    def update_setup_method_args(self, setup_method_args: Any) -> NoReturn:
        """Raise NotImplementedError, which says what to use instead."""
        self._refuse("update_setup_method_args")

    def deregister_manager(self, adata: AnnData | None = None) -> None:
        """Forget how an AnnData was set up; default: all but the model's own.

        Parameters
        ----------
        adata
            Cells that were given to a method of this model.

        Raises
        ------
        ValueError
            If the model has no AnnData.
        """
        if self.adata is None:
            msg = "The model has no AnnData, so that there is nothing to deregister."
            raise ValueError(msg)
        super().deregister_manager(adata)

    def _refuse(self, name: str) -> NoReturn:
        msg = f"{type(self).__name__} has no `{name}`: {self._advice[name]}."
        raise NotImplementedError(msg)
