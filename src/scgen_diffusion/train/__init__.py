"""Training: recipes, Lightning plans and the runner of a stage."""

from ._cells import CellSplitter
from ._checkpoint import StageCheckpoint
from ._history import HistoryRecorder
from ._latents import LatentCache, LatentDataModule
from ._plans import AutoencoderPlan, PriorPlan, StagePlan
from ._recipes import RECIPES, AutoencoderRecipe, PriorRecipe, Recipe, TrainingRecipe
from ._runner import StageResult, run_stage
from ._schedules import learning_rate_factor

__all__ = [
    "RECIPES",
    "AutoencoderPlan",
    "AutoencoderRecipe",
    "CellSplitter",
    "HistoryRecorder",
    "LatentCache",
    "LatentDataModule",
    "PriorPlan",
    "PriorRecipe",
    "Recipe",
    "StageCheckpoint",
    "StagePlan",
    "StageResult",
    "TrainingRecipe",
    "learning_rate_factor",
    "run_stage",
]
