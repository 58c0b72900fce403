"""The mathematics of diffusion: paths, targets, losses, conditioning, guidance and samplers. Knows nothing of cells."""

from ._conditioning import (
    CONDITION_STRATEGIES,
    Additive,
    ConditionColumns,
    ConditionStrategy,
    Joint,
    MutuallyExclusive,
    Terms,
)
from ._count_draws import draw_binomial, draw_negative_binomial, draw_poisson, finite_mask, keep_molecules, keep_where
from ._coupling import optimal_pairs
from ._denoiser import Denoiser, Estimate
from ._diffusion_samplers import (
    DIFFUSION_SAMPLERS,
    DDIMSampler,
    DDPMSampler,
    DiffusionSampler,
    DPMSolverSampler,
    check_sampler,
    samplers_for,
)
from ._guidance import Guidance, GuidanceScale, GuidedField, ResolvedGuidance
from ._inversion import FlowInversion, Inversion, NoiseInversion, UnmaskingInversion
from ._losses import Network, diffusion_loss
from ._masking import Masking, UnmaskingSampler, with_masked
from ._paths import LinearInterpolant, Path, expand_like, expand_time
from ._random import Generators, block_size, sample_seed
from ._residuals import counterfactual_counts
from ._samplers import FLOW_SAMPLERS, Field, FixedStepSampler, Sampler, SteppingSampler, Walk
from ._spike_and_slab import spike_and_slab_mean
from ._targets import TARGETS, Kinds, Target
from ._variance_preserving import PATHS, VariancePreserving

__all__ = [
    "CONDITION_STRATEGIES",
    "DIFFUSION_SAMPLERS",
    "FLOW_SAMPLERS",
    "PATHS",
    "TARGETS",
    "Additive",
    "ConditionColumns",
    "ConditionStrategy",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverSampler",
    "Denoiser",
    "DiffusionSampler",
    "Estimate",
    "Field",
    "FixedStepSampler",
    "FlowInversion",
    "Generators",
    "Guidance",
    "GuidanceScale",
    "GuidedField",
    "Inversion",
    "Joint",
    "Kinds",
    "LinearInterpolant",
    "Masking",
    "MutuallyExclusive",
    "Network",
    "NoiseInversion",
    "Path",
    "ResolvedGuidance",
    "Sampler",
    "SteppingSampler",
    "Target",
    "Terms",
    "UnmaskingInversion",
    "UnmaskingSampler",
    "VariancePreserving",
    "Walk",
    "block_size",
    "check_sampler",
    "counterfactual_counts",
    "diffusion_loss",
    "draw_binomial",
    "draw_negative_binomial",
    "draw_poisson",
    "expand_like",
    "expand_time",
    "finite_mask",
    "keep_molecules",
    "keep_where",
    "optimal_pairs",
    "sample_seed",
    "samplers_for",
    "spike_and_slab_mean",
    "with_masked",
]
