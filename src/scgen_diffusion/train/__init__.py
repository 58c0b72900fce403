"""Training: recipes, one Lightning module per stage, and the runner of a stage."""

from ._cells import CellData, EpochBatches, StageData, TrainingCells
from ._latents import (
    LatentCache,
    LatentData,
    correct_effects,
    counts_per_gene,
    describe_predicted_totals,
    encode_cells,
    standardise_latents,
    start_autoencoder,
)
from ._plans import AutoencoderPlan, DiffusionPlan, PriorPlan, StagePlan, TransportPlan
from ._profiles import describe_predicted_profile_totals, describe_totals, start_gene_space
from ._recipes import (
    DIFFUSION_RECIPES,
    MANY_GENES,
    RECIPES,
    AutoencoderRecipe,
    DiffusionRecipe,
    PriorRecipe,
    Recipe,
    TrainingRecipe,
    TransportRecipe,
    learning_rate_factor,
)
from ._runner import Interruption, StageResult, check_later_checkpoints, run_stage, show, trainer_options
from ._transport import Group, PairData, fit_shift, measure_errors, perturbation_groups

__all__ = [
    "DIFFUSION_RECIPES",
    "MANY_GENES",
    "RECIPES",
    "AutoencoderPlan",
    "AutoencoderRecipe",
    "CellData",
    "DiffusionPlan",
    "DiffusionRecipe",
    "EpochBatches",
    "Group",
    "Interruption",
    "LatentCache",
    "LatentData",
    "PairData",
    "PriorPlan",
    "PriorRecipe",
    "Recipe",
    "StageData",
    "StagePlan",
    "StageResult",
    "TrainingCells",
    "TrainingRecipe",
    "TransportPlan",
    "TransportRecipe",
    "check_later_checkpoints",
    "correct_effects",
    "counts_per_gene",
    "describe_predicted_profile_totals",
    "describe_predicted_totals",
    "describe_totals",
    "encode_cells",
    "fit_shift",
    "learning_rate_factor",
    "measure_errors",
    "perturbation_groups",
    "run_stage",
    "show",
    "standardise_latents",
    "start_autoencoder",
    "start_gene_space",
    "trainer_options",
]
