"""The mathematics of diffusion: paths, targets, losses, conditioning, guidance and samplers. Knows nothing of cells."""

from ._count_draws import check_finite, counterfactual_counts, draw_binomial, draw_negative_binomial, keep_molecules
from ._denoiser import TARGETS, Denoiser, Target, diffusion_loss, spike_and_slab_mean
from ._guidance import (
    CONDITION_STRATEGIES,
    Additive,
    ConditionColumns,
    ConditionStrategy,
    Guidance,
    GuidanceScale,
    GuidedField,
    Joint,
    MutuallyExclusive,
)
from ._paths import (
    LinearInterpolant,
    Masking,
    Path,
    VariancePreserving,
    expand_like,
    expand_time,
    optimal_pairs,
    with_masked,
)
from ._random import Generators, block_size, sample_seed
from ._samplers import (
    DIFFUSION_SAMPLERS,
    FLOW_SAMPLERS,
    DDIMSampler,
    DDPMSampler,
    DiffusionSampler,
    DPMSolverSampler,
    FixedStepSampler,
    Sampler,
    UnmaskingSampler,
    check_sampler,
    samplers_for,
)

__all__ = [
    "Additive",
    "ConditionColumns",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverSampler",
    "Denoiser",
    "DiffusionSampler",
    "FixedStepSampler",
    "Generators",
    "Guidance",
    "GuidedField",
    "Joint",
    "LinearInterpolant",
    "Masking",
    "MutuallyExclusive",
    "Path",
    "Sampler",
    "Target",
    "UnmaskingSampler",
    "VariancePreserving",
    "check_sampler",
    "diffusion_loss",
    "optimal_pairs",
    "samplers_for",
]
