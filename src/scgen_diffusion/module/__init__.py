"""scvi-tools modules: tensors in, losses and samples out."""

from ._architecture import (
    SCLDM_ARCHITECTURES,
    SCMDM_ARCHITECTURES,
    SCRDIT_ARCHITECTURES,
    WBDIT_ARCHITECTURES,
    GeneSpaceArchitecture,
    MoleculeArchitecture,
    ProfileArchitecture,
    SCLDMArchitecture,
    change_options,
)
from ._autoencoder import Posterior
from ._condition_effects import AbsentEffects, ridge
from ._conditioned import CONDITIONS
from ._fine_tuning import TRAINABLE, Trainable, copy_reference, perturbation_flow_fits, trained_masks
from ._gene_space import GeneSpaceModule
from ._latent_diffusion import SCLDMModule
from ._library_size import LibrarySizeModel
from ._likelihoods import NegativeBinomialLikelihood, OutlierCounts
from ._molecules import MoleculeModule
from ._multimodal import MultimodalModule
from ._profiles import ProfileModule, library_features, to_counts

__all__ = [
    "GeneSpaceArchitecture",
    "GeneSpaceModule",
    "LibrarySizeModel",
    "MoleculeArchitecture",
    "MoleculeModule",
    "MultimodalModule",
    "ProfileArchitecture",
    "ProfileModule",
    "SCLDMArchitecture",
    "SCLDMModule",
]
