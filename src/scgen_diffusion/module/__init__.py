"""scvi-tools modules: tensors in, losses and samples out."""

from ._absent_combinations import expected_log_shares
from ._architecture import GeneSpaceArchitecture, SCLDMArchitecture, build_architecture, build_gene_space_architecture
from ._autoencoder import Posterior
from ._condition_groups import ANY
from ._conditioned import CONDITIONS
from ._ema import AverageUpdate
from ._fine_tuning import TRAINABLE, Trainable, copy_reference, perturbation_flow_fits, trained_masks
from ._gene_space import GeneSpaceModule, library_features, to_counts
from ._latent_diffusion import FEW_CELLS, SCLDMModule
from ._library_size import LIBRARY_SIZE_KINDS, LibrarySizeKind, LibrarySizeModel
from ._likelihoods import ModalityPanel, NegativeBinomialLikelihood, OutlierCounts
from ._molecules import MoleculeModule, gene_space_module
from ._multimodal import MultimodalModule

__all__ = [
    "GeneSpaceArchitecture",
    "GeneSpaceModule",
    "LibrarySizeModel",
    "MoleculeModule",
    "MultimodalModule",
    "SCLDMArchitecture",
    "SCLDMModule",
]
