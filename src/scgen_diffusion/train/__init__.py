"""Training: recipes, Lightning plans and the runner of a stage."""

from ._cells import CellDataModule, TrainingCells
from ._checkpoint import StageCheckpoint
from ._epoch_means import EpochMeans
from ._history import HistoryRecorder
from ._latent_filling import cache_latents
from ._latents import LatentCache, LatentDataModule
from ._plans import AutoencoderPlan, DiffusionPlan, PriorPlan
from ._recipes import (
    DIFFUSION_RECIPES,
    RECIPES,
    AutoencoderRecipe,
    DiffusionRecipe,
    PriorRecipe,
    Recipe,
    TrainingRecipe,
)
from ._runner import StageResult, run_stage, trainer_options
from ._schedules import learning_rate_factor
from ._sharing import EpochPosition, Share, SharedBatches
from ._stage_data import StageDataModule
from ._stage_plan import StagePlan
from ._trained_rows import TrainedRows
from ._transport import Group, PairedLatentDataModule, TransportPlan, TransportRecipe

__all__ = [
    "DIFFUSION_RECIPES",
    "RECIPES",
    "AutoencoderPlan",
    "AutoencoderRecipe",
    "CellDataModule",
    "DiffusionPlan",
    "DiffusionRecipe",
    "EpochMeans",
    "EpochPosition",
    "Group",
    "HistoryRecorder",
    "LatentCache",
    "LatentDataModule",
    "PairedLatentDataModule",
    "PriorPlan",
    "PriorRecipe",
    "Recipe",
    "Share",
    "SharedBatches",
    "StageCheckpoint",
    "StageDataModule",
    "StagePlan",
    "StageResult",
    "TrainedRows",
    "TrainingCells",
    "TrainingRecipe",
    "TransportPlan",
    "TransportRecipe",
    "cache_latents",
    "learning_rate_factor",
    "run_stage",
    "trainer_options",
]
