"""Training: recipes, one Lightning module per stage, and the runner of a stage."""

from ._effects import add_absent_effects, correct_effects, learn_later_effects, start_effects
from ._initialise import describe_totals, include_cells, standardise_latents, start_autoencoder, start_gene_space
from ._perturbation_stage import Bar, PairData, fit_changes, fit_shift
from ._plans import AutoencoderPlan, DiffusionPlan, PerturbationFlowPlan, PriorPlan, StagePlan
from ._recipes import (
    DIFFUSION_RECIPES,
    RECIPES,
    USUAL_PATIENCE,
    AutoencoderRecipe,
    DiffusionRecipe,
    PerturbationFlowRecipe,
    PriorRecipe,
    Recipe,
)
from ._runner import RunOptions, quiet, run_stage, show
from ._stage_data import CellData, EpochBatches, LatentData, StageData, TensorTable, TrainingCells, latents_of

__all__ = [
    "AutoencoderPlan",
    "AutoencoderRecipe",
    "DiffusionPlan",
    "DiffusionRecipe",
    "EpochBatches",
    "PerturbationFlowPlan",
    "PerturbationFlowRecipe",
    "PriorPlan",
    "PriorRecipe",
    "Recipe",
    "RunOptions",
    "StageData",
    "StagePlan",
    "TensorTable",
    "run_stage",
]
