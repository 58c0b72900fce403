"""The mathematics of diffusion: paths, objectives, conditioning, guidance and samplers. Knows nothing of cells."""

from ._conditioning import CONDITION_STRATEGIES, ConditionStrategy, GuidanceTerm, Joint, MutuallyExclusive, keep_keys
from ._guidance import GuidedField
from ._losses import Network, flow_matching_loss
from ._paths import LinearInterpolant, Path
from ._random import SampleGenerators, sample_seed
from ._samplers import FLOW_SAMPLERS, DormandPrinceSampler, FixedStepSampler, FlowSampler

__all__ = [
    "CONDITION_STRATEGIES",
    "FLOW_SAMPLERS",
    "ConditionStrategy",
    "DormandPrinceSampler",
    "FixedStepSampler",
    "FlowSampler",
    "GuidanceTerm",
    "GuidedField",
    "Joint",
    "LinearInterpolant",
    "MutuallyExclusive",
    "Network",
    "Path",
    "SampleGenerators",
    "flow_matching_loss",
    "keep_keys",
    "sample_seed",
]
