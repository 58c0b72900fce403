"""The metrics of the table in words, for reports and the user guide."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ._catalogue import N_TOP


@dataclass(frozen=True)
class Description:
    """A metric in words.

    Attributes
    ----------
    topic
        Heading under which it is listed.
    title
        Its name in words.
    meaning
        What it measures, in one sentence.
    misses
        What it does not see.
    function
        Function of :mod:`scgen_diffusion.metrics` that computes it; empty if there is none.
    """

    topic: str
    title: str
    meaning: str
    misses: str
    function: str = ""


_DISTRIBUTION = {
    "w2": (
        "Wasserstein-2 distance",
        "How far cells must move, on average, to turn one set into the other.",
        "cells that are too smooth",
        "wasserstein_2",
    ),
    "mmd2": (
        "maximum mean discrepancy (MMD²)",
        "How much the densities of cells differ, smoothed by Gaussian kernels.",
        "small populations",
        "squared_mmd",
    ),
    "precision": (
        "precision",
        "Share of synthetic cells that lie among real ones.",
        "lost types",
        "precision_recall_density_coverage",
    ),
    "recall": (
        "recall",
        "Share of real cells that lie among synthetic ones.",
        "cells that spread too far",
        "precision_recall_density_coverage",
    ),
    "density": (
        "density",
        "How closely real cells surround synthetic ones.",
        "lost types",
        "precision_recall_density_coverage",
    ),
    "coverage": (
        "coverage",
        "Share of real cells with a synthetic cell nearby.",
        "scattered cells",
        "precision_recall_density_coverage",
    ),
    "auc_boosting": (
        "AUC of boosted trees in principal components",
        "How well boosted trees tell synthetic from real cells; 0.5 is perfect.",
        "which fault it is",
        "classifier_auc",
    ),
    "auc_logistic": (
        "AUC of a linear classifier",
        "The same for a linear classifier.",
        "spread and shape",
        "classifier_auc",
    ),
    "auc_neighbours": (
        "AUC of nearest neighbours",
        "The same for nearest neighbours; well below 0.5 suggests copies.",
        "small shifts",
        "classifier_auc",
    ),
    "auc_genes": (
        "AUC of boosted trees in genes",
        "The same for boosted trees that see single genes: the hardest test.",
        "what takes many genes to see",
        "classifier_auc",
    ),
    "ilisi": (
        "local mixing (iLISI)",
        "How well the two sets mix locally; 1 is fully mixed.",
        "lost types, a few misplaced cells",
        "ilisi",
    ),
}
_GENES = {
    "gene_mean_error": (
        "error of gene means",
        "Difference of a gene's mean, averaged over genes.",
        "relations between genes",
        "gene_profile_errors",
    ),
    "gene_variance_error": (
        "error of gene variances",
        "Difference of a gene's variance, averaged over genes.",
        "relations between genes",
        "gene_profile_errors",
    ),
    "gene_zero_error": (
        "error of zeros",
        "Difference of a gene's share of zeros, averaged over genes.",
        "relations between genes",
        "gene_profile_errors",
    ),
    "mean_variance_error": (
        "error of the mean-variance trend",
        "How far variances are from those of real genes with the same mean, in powers of ten.",
        "shifted means",
        "mean_variance_error",
    ),
    "within_label_correlation": (
        "gene-gene correlation within labels",
        "How similar the correlations between the most expressed genes are.",
        "strength of the correlations",
        "gene_correlation_similarity",
    ),
    "within_label_slope": (
        "strength of gene-gene correlation within labels",
        "Strength of correlations between the most expressed genes, relative to real ones; 1 is right.",
        "which genes vary together",
        "gene_correlation_slope",
    ),
    "library_size_ks": (
        "difference of library sizes",
        "Largest gap between the cumulative distributions of total counts.",
        "whether large cells have the right type",
        "library_size_ks",
    ),
}
_LABELS = {
    "group_share_difference": (
        "difference of label shares",
        "Share of cells that would need another label to match the real shares.",
        "whether cells are what their label says",
    ),
    "marker_overlap": (
        "overlap of marker genes",
        "Share of a label's 50 top marker genes that synthetic cells share.",
        "differences within a label",
        "marker_agreement",
    ),
    "marker_slope": (
        "strength of marker genes",
        "Fold changes of markers relative to real ones; above the floor is exaggerated.",
        "differences within a label",
        "marker_agreement",
    ),
    "mmd_per_label": (
        "MMD² within labels",
        "The MMD² between the cells of a label, averaged over labels of 20 or more real cells; NaN if one is missing.",
        "which label it is",
        "squared_mmd",
    ),
    "transfer_f1": (
        "train on synthetic, test on real (F1)",
        "How well a classifier trained on synthetic cells labels real ones.",
        "too little spread, copies",
        "transfer_f1",
    ),
    "label_fidelity": (
        "label fidelity",
        "How often a classifier trained on real cells finds the requested label, averaged over labels.",
        "diversity: a perfect cell, repeated, scores 1",
        "label_fidelity",
    ),
}
_MEMORISATION = {
    "nearest_train_ratio": (
        "distance to training cells",
        "Median distance to the nearest training cell, relative to held-out cells; below 1 suggests copies.",
        "a few copies",
        "memorisation",
    ),
    "nearer_than_held_out": (
        "cells too close to training cells",
        "Share of synthetic cells closer to a training cell than all but 1 % of held-out cells; 0.01 is perfect.",
        "single copies",
        "memorisation",
    ),
    "near_copies": (
        "near-copies of training cells",
        "Share of synthetic cells ten times closer to a training cell than any other training cell is.",
        "copies with many counts changed",
        "memorisation",
    ),
    "copied_cells": (
        "copies of training cells",
        "Share of synthetic cells with exactly the counts of a training cell.",
        "copies with one count changed",
        "copied_cells",
    ),
    "duplicate_share": (
        "duplicates",
        "Share of synthetic cells with exactly the counts of another one.",
        "cells that are similar, not equal",
        "duplicate_share",
    ),
    "membership_auc": (
        "membership inference",
        "How well closeness to synthetic cells reveals which real cells were trained on; 0.5 is perfect.",
        "stronger attacks, and what more synthetic cells would reveal",
        "membership_inference",
    ),
    "copied_test_cells": (
        "copies of held-out cells",
        "Share of synthetic cells with exactly the counts of a held-out cell: a mix-up of files.",
        "changed copies",
        "copied_cells",
    ),
}
_PERTURBATIONS = {
    "energy_distance": (
        "energy distance",
        "How far predicted and real cells are apart: mean, spread and shape.",
        "little; in many dimensions, means dominate",
        "energy_distance",
    ),
    "mean_change_error": (
        "error of mean changes",
        "Difference of a gene's predicted and real mean, averaged over genes.",
        "differences between cells",
        "mean_change_error",
    ),
    "mean_change_debiased_error": (
        "error of mean changes without sampling noise",
        "Squared error of mean changes, less what noise adds: 0 on average if perfect; may be negative.",
        "differences between cells",
        "mean_change_debiased_error",
    ),
    "mean_change_slope": (
        "slope of mean changes",
        "Whether effects are as large as real ones: 1 is right, below 1 too small, above 1 too large.",
        "changes in the wrong genes",
        "mean_change_slope",
    ),
    "mean_change_correlation": (
        "correlation of mean changes",
        "Whether genes change in the right direction and proportion, against control.",
        "size of the effect",
        "mean_change_correlation",
    ),
    "specific_change_correlation": (
        "correlation of specific changes",
        "The same against the mean response to all training perturbations, instead of control (Systema).",
        "size of the effect, the shared response",
        "mean_change_correlation",
    ),
    "perturbation_discrimination": (
        "perturbation discrimination score",
        "Whether a predicted change is most like that of its own perturbation; guessing scores 0.5.",
        "size of the effect",
        "perturbation_discrimination",
    ),
    **{
        f"de_overlap_top_{n}": (
            f"overlap of the {n} genes that change most",
            f"Share of the {n} most changed genes that are also most changed in the prediction.",
            "direction and size",
            "de_overlap",
        )
        for n in N_TOP
    },
    "de_jaccard": (
        "overlap of differential genes",
        "Differential genes that prediction and reality share, among those of either.",
        "direction and size",
        "de_jaccard",
    ),
    "de_direction": (
        "direction of differential genes",
        "Share of differential genes predicted to change in the right direction; guessing scores 0.5.",
        "size of the effect",
        "de_direction",
    ),
    "variance_error": (
        "error of variances under the perturbation",
        "Difference of a gene's predicted and real variance, averaged over genes.",
        "means, relations between genes",
        "variance_error",
    ),
}
_MODALITIES = {
    "cross_correlation_similarity": (
        "correlations across modalities",
        "How similar the correlations between features of two modalities are.",
        "strength of the correlations",
    ),
    "cross_correlation_error": (
        "error of correlations across modalities",
        "Difference of these correlations, averaged over pairs of features.",
        "relations within a modality",
    ),
}

_TOPICS = {
    "Distribution": _DISTRIBUTION,
    "Genes": _GENES,
    "Labels": _LABELS,
    "Memorisation": _MEMORISATION,
    "Perturbations": _PERTURBATIONS,
    "Several modalities": _MODALITIES,
}
#: Metrics that are also measured on the genes that change most.
_ALSO_OF_TOP_GENES = ("mean_change_correlation", "variance_error")


def _descriptions() -> dict[str, Description]:
    found = {name: Description(topic, *words) for topic, entries in _TOPICS.items() for name, words in entries.items()}
    for name in _ALSO_OF_TOP_GENES:
        for n in N_TOP:
            found[f"{name}_top_{n}"] = replace(found[name], title=f"{found[name].title}, top {n} genes")
    return found


#: The metrics of :data:`CATALOGUE` in words, by name.
DESCRIPTIONS: dict[str, Description] = _descriptions()
