"""What the metrics are called in words, and what each means, in one line."""

from __future__ import annotations

#: By topic and metric: its name, and its meaning for the synthetic cells.
METRICS: dict[str, dict[str, tuple[str, str]]] = {
    "All cells together": {
        "w2": ("Wasserstein distance", "How far cells must move to turn the synthetic cells into the real ones."),
        "sliced_w2": ("Sliced Wasserstein distance", "The same along random lines, averaged."),
        "mmd2": ("Maximum mean discrepancy", "Difference between the densities of synthetic and real cells, squared."),
        "mmd_p_value": ("p-value of that discrepancy", "Small: synthetic and real cells differ by more than chance."),
        "frechet": ("Fréchet distance", "Difference in mean and covariance along the principal components."),
        "precision": ("Precision", "Share of synthetic cells that lie where real cells are."),
        "recall": ("Recall", "Share of real cells that lie where synthetic cells are."),
        "density": ("Density", "How densely real cells surround the synthetic ones."),
        "coverage": ("Coverage", "Share of real cells with a synthetic cell close by."),
        "ilisi": ("Mixing (iLISI)", "How well synthetic and real cells mix: 0 not at all, 1 perfectly."),
    },
    "Can a classifier tell them apart?": {
        "auc_boosting": ("Boosted trees, AUC", "On principal components. 0.5 is guessing, 1 is never wrong."),
        "auc_logistic": ("Logistic regression, AUC", "On principal components. Sees shifts of the means only."),
        "auc_neighbours": ("Nearest neighbours, AUC", "On principal components. Sees local differences."),
        "auc_genes": ("Boosted trees on genes, AUC", "On the expression of single genes, the hardest test."),
    },
    "Genes": {
        "gene_mean_error": ("Error of the genes' means", "Mean absolute difference, log-normalised expression."),
        "gene_variance_error": ("Error of the genes' variances", "Mean absolute difference of the variances."),
        "gene_zero_error": ("Error of the genes' zeros", "Mean difference in the share of cells without a count."),
        "mean_variance_error": (
            "Error of the mean-variance trend",
            "Variance of genes of equal mean, in powers of ten.",
        ),
        "within_label_correlation": (
            "Gene-gene correlations",
            "Agreement of correlations within labels; 1 is perfect.",
        ),
        "library_size_ks": ("Total counts per cell", "Largest gap between the two cumulative distributions."),
    },
    "Labels": {
        "group_share_difference": ("Shares of the labels", "Share of cells that would need another label."),
        "marker_overlap": ("Marker genes found again", "Share of the 50 markers of a label that are markers again."),
        "marker_slope": (
            "Strength of marker genes",
            "Differences between labels relative to the real ones; 1 is right.",
        ),
        "transfer_f1": ("Classifier trained on synthetic cells, F1", "How well it labels real cells; 1 is perfect."),
        "label_fidelity": ("Label fidelity", "Share of synthetic cells that a classifier gives the label asked for."),
    },
    "Memorisation": {
        "nearest_train_ratio": ("Distance to the training cells", "Relative to new real cells: below 1 is nearer."),
        "nearer_than_held_out": ("Suspiciously near a training cell", "Share nearer than 99 % of new real cells are."),
        "copied_cells": ("Copies of training cells", "Share with exactly the counts of a training cell."),
        "duplicate_share": ("Duplicates", "Share with exactly the counts of another synthetic cell."),
        "membership_auc": ("Membership inference, AUC", "Can an attacker tell who was in the training? 0.5 is no."),
        "copied_test_cells": ("Copies of held-out cells", "Share that are held-out cells: a sign of mixed-up files."),
    },
}
