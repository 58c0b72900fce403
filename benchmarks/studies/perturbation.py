"""How well is a perturbation predicted in a cell type never seen perturbed? SCLDM and baselines on `kang_ifnb`.

    python -m benchmarks.studies.perturbation                                          # everything that is missing
    python -m benchmarks.studies.perturbation --types B --seeds 0 --methods latent_arithmetic    # a part of it
    python -m benchmarks.studies.perturbation --methods scgen --seeds 0 --python venv/bin/python  # a rival
    python -m benchmarks.studies.perturbation --methods                                # only the summary and pictures

The interferon-stimulated cells of one type at a time are left out. They are predicted from the type's control cells,
and from control and stimulated cells of all other types. Predictions are kept in ``--cells`` and judged by
``scgen_diffusion.metrics.evaluate``. The figures are added to ``results/perturbation.csv``; stored ones are skipped.
The summary goes to ``results/perturbation.md``, and pictures to ``docs/_static``.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from benchmarks.quality.drawing import write_cells
from benchmarks.quality.splits import load, log_normalise, most_variable
from benchmarks.rivals import scgen
from benchmarks.rivals.exchange import as_log_cells, ask_for_predictions
from benchmarks.rivals.worker import COSTS
from benchmarks.studies.held_out import OLD_TEST
from benchmarks.tables import (
    ROOT,
    describe_source,
    markdown_table,
    read_table,
    short_number,
    store_rows,
    stored_keys,
    write_text,
)
from scgen_diffusion import metrics, pl
from scgen_diffusion.diffusion import Generators

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from scgen_diffusion.model import SCLDM

logger = logging.getLogger("benchmarks.perturbation")

HERE = Path(__file__).parent
DATASET = "kang_ifnb"
#: A figure of the rival, which is timed.
TRAIN_MINUTES = "train_minutes"
KEYS = ("cell_type", "seed", "method")
#: Figures that every table has besides those of the methods.
REFERENCES = ("floor", "no_change", "mean_shift")

# --- cases ------------------------------------------------------------------------------------------------------------


CELL_TYPE = "cell_type"
CONDITION = "condition"
CONTROL = "control"
PERTURBED = "stimulated"

N_GENES = 2_000
#: Fewer perturbed cells are too few to be judged.
MIN_CELLS = 50


@dataclass(frozen=True)
class Case:
    """Training cells, and the cells to predict; integer counts in ``layers["counts"]``.

    Attributes
    ----------
    cell_type
        Type whose perturbed cells are left out.
    train
        All other cells, including the control cells of the type.
    real
        The cells that were left out.
    """

    cell_type: str
    train: ad.AnnData
    real: ad.AnnData

    @property
    def control(self) -> ad.AnnData:
        """The control cells of the type, from which its perturbed cells are predicted."""
        return self.train[self.rows(self.cell_type, CONTROL)].copy()

    @property
    def other_types(self) -> list[str]:
        """Types with at least two control and two perturbed cells, to learn the effect from."""
        types = self.train.obs[CELL_TYPE].unique()
        return [name for name in types if min(len(self.rows(name, value)) for value in (CONTROL, PERTURBED)) >= 2]

    def rows(self, cell_type: str, condition: str) -> NDArray[np.intp]:
        """Return the training cells of a type under a condition, by position."""
        obs = self.train.obs
        return np.flatnonzero((obs[CELL_TYPE] == cell_type) & (obs[CONDITION] == condition))


def judged_types(adata: ad.AnnData) -> list[str]:
    """Return the cell types with enough perturbed cells, in alphabetical order."""
    n_cells = adata.obs.loc[adata.obs[CONDITION] == PERTURBED, CELL_TYPE].value_counts()
    return sorted(n_cells.index[n_cells >= MIN_CELLS])


def leave_out(adata: ad.AnnData, cell_type: str, *, n_genes: int = N_GENES) -> Case:
    """Leave out the perturbed cells of a type, and keep the genes that vary most in the others."""
    is_out = ((adata.obs[CELL_TYPE] == cell_type) & (adata.obs[CONDITION] == PERTURBED)).to_numpy()
    adata = adata[:, most_variable(adata.layers["counts"][~is_out], n_genes)]
    return Case(cell_type, _minimal(adata[~is_out]), _minimal(adata[is_out]))


def _minimal(adata: ad.AnnData) -> ad.AnnData:
    counts = sp.csr_matrix(adata.layers["counts"], dtype=np.float32)
    obs = adata.obs[[CELL_TYPE, CONDITION]].astype(str).astype("category")
    return ad.AnnData(counts, obs=obs, var=adata.var[[]].copy(), layers={"counts": counts.copy()})


# --- baselines --------------------------------------------------------------------------------------------------------


def linear_additive(case: Case, seed: int) -> ad.AnnData:
    """Shift control cells by the perturbation's effect in a linear model with one effect per cell type and one for it.

    Every cell counts equally, so large types weigh more than in the mean shift. Negative values become zero.
    """
    is_perturbed = (case.train.obs[CONDITION] == PERTURBED).to_numpy()
    design = np.column_stack([pd.get_dummies(case.train.obs[CELL_TYPE]), is_perturbed]).astype(float)
    effect = np.linalg.lstsq(design, log_normalise(case.train.layers["counts"]), rcond=None)[0][-1]
    moved = log_normalise(case.control.layers["counts"]) + effect
    return as_profiles(case, moved)


def scvi_arithmetic(case: Case, seed: int, max_epochs: int | None = None) -> ad.AnnData:
    """Shift control cells in scVI's latent space by the mean change of the other types, and draw counts.

    Cells keep their own total counts.

    References
    ----------
    Lotfollahi et al. 2019, scGen predicts single-cell perturbation responses. Nat Methods 16:715 (the arithmetic).
    Lopez et al. 2018, Deep generative modeling for single-cell transcriptomics. Nat Methods 15:1053 (the latent space).
    """
    import scvi
    import torch

    scvi.settings.seed = seed
    train, control = case.train.copy(), case.control
    scvi.model.SCVI.setup_anndata(train, layer="counts")
    model = scvi.model.SCVI(train, gene_likelihood="nb")
    model.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False)
    latents = model.get_latent_representation()
    moved = (latents[case.rows(case.cell_type, CONTROL)] + mean_latent_change(case, latents)).astype(np.float32)
    totals = control.layers["counts"].sum(axis=1)
    with torch.inference_mode():
        px = model.module.generative(
            z=torch.from_numpy(moved),
            library=torch.from_numpy(np.log(np.asarray(totals, dtype=np.float32).reshape(-1, 1))),
            batch_index=torch.zeros(len(moved), 1, dtype=torch.long),
        )["px"]
    rng = np.random.default_rng(seed)
    mean, theta = px.mu.numpy().astype(float), px.theta.numpy().astype(float)
    return as_cells(case, rng.poisson(rng.gamma(np.broadcast_to(theta, mean.shape), mean / theta)))


def mean_latent_change(case: Case, latents: NDArray) -> NDArray:
    """Return the mean change of the training cells' latents ``(cells, ...)``, averaged over the other types."""
    changes = [
        latents[case.rows(name, PERTURBED)].mean(axis=0) - latents[case.rows(name, CONTROL)].mean(axis=0)
        for name in case.other_types
    ]
    return np.mean(changes, axis=0)


def as_cells(case: Case, counts: NDArray | sp.csr_matrix) -> ad.AnnData:
    """Return predicted counts, one row per control cell, as cells."""
    return ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=predicted_obs(case), var=case.train.var.copy())


def as_profiles(case: Case, values: NDArray) -> ad.AnnData:
    """Return predicted log-normalised values, one row per control cell, as cells. Negative values become zero."""
    return as_log_cells(values, predicted_obs(case), case.train.var.copy())


def predicted_obs(case: Case) -> pd.DataFrame:
    """Return the control cells' table, with the perturbation set, and a column that says where the cells come from."""
    return case.control.obs.assign(**{f"{CONDITION}_of_control": CONTROL, CONDITION: PERTURBED})


# --- methods ----------------------------------------------------------------------------------------------------------


CONDITION_KEYS = [CELL_TYPE, CONDITION]
#: Prefixes of the names of shared weights.
AUTOENCODER = ("encoder.", "decoder.", "likelihood.", "condition_effects.")
#: Changes to the prior's recipe: a step on a CPU takes a third of the time, for the same number of steps.
PRIOR_KWARGS = {"batch_size": 128}
#: Rivals, each in an environment of its own, and the shifts with which they decode control cells.
SHIFTS = {"scGen": (scgen.ALL_TYPES, scgen.OTHER_TYPES), "CPA": (PERTURBED,), "CellFlow": (PERTURBED,)}


@dataclass(frozen=True)
class Trained:
    """A case's models, trained when first needed: SCLDM's stages, and rivals.

    Attributes
    ----------
    case
        Training cells, and the cells to predict.
    seed
        Seed of training and of draws.
    folder
        Folder of the stored autoencoder.
    python
        Python of an environment that has the rival.
    asked
        What rivals have predicted: changed control cells and profiles, one for each of their shifts.
    """

    case: Case
    seed: int
    folder: Path
    python: str | None = None
    asked: dict[str, tuple[list[ad.AnnData], list[ad.AnnData]]] = field(default_factory=dict)

    @cached_property
    def with_autoencoder(self) -> SCLDM:
        """The model with a trained autoencoder, loaded if it is stored."""
        import scvi

        from scgen_diffusion.model import SCLDM

        scvi.settings.seed = self.seed
        train = self.case.train.copy()
        SCLDM.setup_anndata(train, layer="counts", condition_keys=CONDITION_KEYS)
        model = SCLDM(train)
        path = stored_path(self.folder, self.case.cell_type, self.seed, "autoencoder", ".pt")
        if path.exists():
            model.module.load_state_dict(torch.load(path, weights_only=True)["state"], strict=False)
            model.trained_stages_ = ["autoencoder"]
            model.module.eval()
            return model
        started = time.process_time()
        model.train_autoencoder(accelerator="cpu", enable_progress_bar=False)
        state = {name: t for name, t in model.module.state_dict().items() if name.startswith(AUTOENCODER)}
        minutes = (time.process_time() - started) / 60
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": state, "cpu_minutes": minutes}, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
        return model

    @cached_property
    def with_prior(self) -> SCLDM:
        """The same model with a trained prior."""
        import scvi

        model = self.with_autoencoder
        scvi.settings.seed = self.seed
        model.train_prior(accelerator="cpu", enable_progress_bar=False, plan_kwargs=PRIOR_KWARGS)
        return model

    @cached_property
    def with_transport(self) -> SCLDM:
        """The same model with a transport."""
        model = self.with_autoencoder
        model.train_transport(control_values={CONDITION: CONTROL}, accelerator="cpu", enable_progress_bar=False)
        return model

    def predicted_by(self, rival: str) -> tuple[list[ad.AnnData], list[ad.AnnData]]:
        """Return changed control cells and profiles of a rival, for each of its `SHIFTS`."""
        if rival not in self.asked:
            train, shifts = (
                ad.AnnData(self.case.train.X, obs=self.case.train.obs, var=self.case.train.var),
                SHIFTS[rival],
            )
            asked, obs = [{"shift": shift} for shift in shifts], [predicted_obs(self.case)] * len(shifts)
            control = self.case.control
            self.asked[rival] = ask_for_predictions(rival, train, control, asked, obs, self.seed, python=self.python)
        return self.asked[rival]


def transport_of_a_reference(trained: Trained) -> ad.AnnData:
    """Move the control cells by the transport of a model that never saw cells of the type, which load_query_data keeps.

    Nothing is fine-tuned: the transport needs neither the prior nor the embedding of the new type.
    """
    import scvi

    from scgen_diffusion.model import SCLDM

    scvi.settings.seed = trained.seed
    case, options = trained.case, {"accelerator": "cpu", "enable_progress_bar": False}
    is_new = case.train.obs[CELL_TYPE] == case.cell_type
    old, new = case.train[~is_new].copy(), case.train[is_new].copy()
    SCLDM.setup_anndata(old, layer="counts", condition_keys=CONDITION_KEYS, control_values={CONDITION: CONTROL})
    reference = SCLDM(old)
    reference.train({"prior": 1}, **options)
    return _predict(trained, SCLDM.load_query_data(new, reference, accelerator="cpu"), method="transport")


def generate(trained: Trained) -> ad.AnnData:
    """Generate the unseen combination with a model that has all stages."""
    condition = {CELL_TYPE: trained.case.cell_type, CONDITION: PERTURBED}
    _, model = trained.with_prior, trained.with_transport  # one model
    return as_cells(trained.case, model.generate(trained.case.control.n_obs, condition, seed=trained.seed).X)


def inversion(trained: Trained) -> ad.AnnData:
    """Carry control cells back to noise, and from there to the other condition."""
    return _predict(trained, trained.with_prior, method="inversion")


def transport(trained: Trained) -> ad.AnnData:
    """Move control cells by the shift that is expected of the perturbation."""
    return _predict(trained, trained.with_transport, method="transport")


def transport_with_new_counts(trained: Trained) -> ad.AnnData:
    """Do the same, but draw all counts anew."""
    return _predict(trained, trained.with_transport, method="transport", residuals="new")


def latent_arithmetic(trained: Trained) -> ad.AnnData:
    """Shift control cells' latents by the mean change of the other types, and draw counts with the cells' own totals.

    References
    ----------
    Lotfollahi et al. 2019, scGen predicts single-cell perturbation responses. Nat Methods 16:715.
    """
    return _arithmetic(trained, keeps_residuals=False)


def arithmetic_with_own_residuals(trained: Trained) -> ad.AnnData:
    """Do the same, but keep what the latents do not explain about a cell."""
    return _arithmetic(trained, keeps_residuals=True)


def of_rival(trained: Trained, rival: str, shift: str, *, profiles: bool = False) -> ad.AnnData:
    """Return the control cells as a rival changes them with a shift, or its profiles."""
    return trained.predicted_by(rival)[profiles][SHIFTS[rival].index(shift)]


#: Trained baselines by name; all others have the names of :func:`scgen_diffusion.metrics.evaluate`.
BASELINES: dict[str, Callable[[Case, int], ad.AnnData]] = {
    "linear_additive": linear_additive,
    "scvi_arithmetic": scvi_arithmetic,
}
SCLDM_METHODS: dict[str, Callable[[Trained], ad.AnnData]] = {
    "latent_arithmetic": latent_arithmetic,
    "scldm_generate": generate,
    "scldm_inversion": inversion,
    "scldm_transport": transport,
    "scldm_transport_new_counts": transport_with_new_counts,
    "scldm_transport_of_reference": transport_of_a_reference,
    "scldm_arithmetic_own_residuals": arithmetic_with_own_residuals,
}
RIVAL_METHODS: dict[str, Callable[[Trained], ad.AnnData]] = {
    "scgen": partial(of_rival, rival="scGen", shift=scgen.ALL_TYPES),
    "scgen_other_types": partial(of_rival, rival="scGen", shift=scgen.OTHER_TYPES),
    "scgen_profiles": partial(of_rival, rival="scGen", shift=scgen.ALL_TYPES, profiles=True),
    "cpa": partial(of_rival, rival="CPA", shift=PERTURBED),
    "cpa_profiles": partial(of_rival, rival="CPA", shift=PERTURBED, profiles=True),
    "cellflow": partial(of_rival, rival="CellFlow", shift=PERTURBED),
    "cellflow_profiles": partial(of_rival, rival="CellFlow", shift=PERTURBED, profiles=True),
}
METHODS = (*BASELINES, *SCLDM_METHODS)


def stored_path(folder: Path, cell_type: str, seed: int, name: str, suffix: str = ".h5ad") -> Path:
    """Return the path of a stored file of a case and seed."""
    return folder / f"{cell_type.replace(' ', '_')}-{seed}-{name}{suffix}"


def _predict(trained: Trained, model: SCLDM, **options: str) -> ad.AnnData:
    condition = {CONDITION: PERTURBED}
    predicted = model.predict_perturbation(trained.case.control, condition, seed=trained.seed, **options)
    return as_cells(trained.case, predicted.X)


def _arithmetic(trained: Trained, *, keeps_residuals: bool) -> ad.AnnData:
    case, model = trained.case, trained.with_autoencoder
    shape = (-1, *model.module.latent_shape)
    latents = model.get_latent_representation()
    z = torch.from_numpy(latents[case.rows(case.cell_type, CONTROL)]).view(shape)
    moved = z + torch.from_numpy(mean_latent_change(case, latents)).view(shape)
    counts = torch.from_numpy(case.control.X.toarray())
    totals, generators = counts.sum(1), Generators(trained.seed, range(len(counts)))
    with torch.inference_mode():
        if keeps_residuals:
            decoded = model.module.generative(moved, totals[:, None])
            return as_cells(case, model.module.counterfactual_cells(counts, z, decoded, generators).numpy())
        return as_cells(case, model.module.draw_cells(moved, totals, generators).numpy())


# --- report -----------------------------------------------------------------------------------------------------------


#: The types on which the transport was tuned; nothing was tried on the others.
TUNED = ("B", "CD14 Mono", "CD4 Naive T", "T activated")
FLOOR = "floor"
OURS = "scldm_transport"
#: Every method, in the order of the tables.
NAMES = {
    "no_change": "no change",
    "mean_shift": "mean shift",
    "linear_additive": "linear additive",
    "scvi_arithmetic": "scVI arithmetic",
    "scgen": "scGen",
    "scgen_other_types": "scGen, shift of other types",
    "scgen_profiles": "scGen, profiles",
    "cpa": "CPA",
    "cpa_profiles": "CPA, profiles",
    "cellflow": "CellFlow",
    "cellflow_profiles": "CellFlow, profiles",
    "latent_arithmetic": "latent arithmetic",
    "scldm_generate": "SCLDM generate",
    "scldm_inversion": "SCLDM inversion",
    OURS: "SCLDM transport",
    "scldm_transport_new_counts": "transport, new counts",
    "scldm_transport_of_reference": "transport of a reference",
    "scldm_arithmetic_own_residuals": "arithmetic, own residuals",
}
COMPARED_WITH = ("no_change", "mean_shift", "linear_additive", "scvi_arithmetic", *RIVAL_METHODS, "latent_arithmetic")
#: Metrics in the pictures.
DRAWN_METRICS = ("energy_distance", "mean_change_correlation", "mean_change_slope", "mean_change_debiased_error")
DRAWN_METHODS = ("mean_shift", "latent_arithmetic", "scvi_arithmetic", OURS)
CHANGES_OF = ("CD14 Mono", "CD16 Mono")
CHANGES_BY = ("linear_additive", "latent_arithmetic", OURS)


def means_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds: one row per metric and cell type, one column per method."""
    rows = table.groupby(["metric", "cell_type", "method"], sort=False)["value"].mean()
    return rows.unstack("method")


def summarise(table: pd.DataFrame) -> str:
    """Write the tables."""
    is_time = table["metric"] == TRAIN_MINUTES
    minutes = table[is_time].groupby("method", sort=False)["value"].mean()
    timed = ", ".join(f"{NAMES[name]} {value:.1f}" for name, value in minutes.items())
    table = table[~is_time & ~table["metric"].str.match(OLD_TEST)]
    better = table.groupby("metric")["better"].first()
    means = means_over_seeds(table)
    types = list(dict.fromkeys(means.index.get_level_values("cell_type")))
    parts = [
        "Means over cell types of means over seeds. One type's stimulated cells are left out at a time, and predicted "
        "from its control cells. The floor is what one half of the real cells scores as a prediction of the other. "
        "**Bold**: the best of a row. Written by `python -m benchmarks.studies.perturbation`.",
        "",
        f"**All {len(types)} types**",
        "",
        _table_of_metrics(means, better),
        "",
    ]
    untuned = [name for name in types if name not in TUNED]
    compared = [name for name in COMPARED_WITH if name in means]
    common = means[compared].notna().groupby("cell_type").any().all(axis=1)
    for title, some in (
        ("Types that all of these predicted", set(types) & set(common[common].index)),
        ("Types used for tuning", set(types) & set(TUNED)),
        ("Types not used for tuning", set(untuned)),
    ):
        if some and some != set(types):
            shown = means[means.index.get_level_values("cell_type").isin(some)]
            parts += [f"**{title}: {', '.join(sorted(some))}**", "", _table_of_metrics(shown, better), ""]
    for metric in DRAWN_METRICS:
        parts += [
            f"**`{metric}` by type** ({better[metric]} is better)",
            "",
            _table_of_types(means.loc[metric], better[metric]),
            "",
        ]
    if OURS in means:
        parts += [
            "**Number of types where SCLDM's transport is better than each baseline**",
            "",
            _table_of_wins(means, better),
            "",
        ]
    parts += [
        _seeds(table),
        "",
        *([f"CPU minutes of training, mean over types: {timed}.", ""] if timed else []),
        f"Measured with {'; '.join(table['versions'].unique())}, on {'; '.join(table['machine'].unique())}.",
    ]
    return "\n".join(parts) + "\n"


def _present(means: pd.DataFrame) -> list[str]:
    return [name for name in NAMES if name in means and means[name].notna().any()]


def _table_of_metrics(means: pd.DataFrame, better: pd.Series) -> str:
    methods = _present(means)
    of_all = means.groupby("metric", sort=False).mean()
    complete = means.groupby("metric", sort=False).count()
    n_types = complete[FLOOR].iloc[0]
    lines = []
    for metric, row in of_all.iterrows():
        values = row[methods].where(
            complete.loc[metric, methods] == n_types
        )  # means over other types are not comparable
        lines.append(
            [f"`{metric}`", better[metric], short_number(row[FLOOR]), *_with_best(values, better[metric], row[FLOOR])]
        )
    return markdown_table(["figure", "better", FLOOR, *(NAMES[name] for name in methods)], lines)


def _table_of_types(means: pd.DataFrame, better: str) -> str:
    methods = _present(means)
    lines = [
        [
            name + (" (tuned)" if name in TUNED else ""),
            short_number(row[FLOOR]),
            *_with_best(row[methods], better, row[FLOOR]),
        ]
        for name, row in means.sort_index().iterrows()
    ]
    return markdown_table(["left out", FLOOR, *(NAMES[name] for name in methods)], lines)


def _table_of_wins(means: pd.DataFrame, better: pd.Series) -> str:
    baselines = [name for name in COMPARED_WITH if name in means]
    lines = []
    for metric in means.index.get_level_values("metric").unique():
        rows = means.loc[metric]
        wins = []
        for name in baselines:
            both = rows[[OURS, name]].dropna()
            ours, theirs = (_loss(both[column], better[metric], rows[FLOOR]) for column in (OURS, name))
            wins.append(f"{int((ours < theirs).sum())} of {len(both)}")
        lines.append([f"`{metric}`", *wins])
    return markdown_table(["figure", *(NAMES[name] for name in baselines)], lines)


def _seeds(table: pd.DataFrame) -> str:
    n_seeds = table.groupby(["method", "cell_type"])["seed"].nunique().groupby("method").agg(["min", "max", "size"])
    parts = [
        f"{NAMES[name]} {row['min']}"
        + (f" to {row['max']}" if row["max"] > row["min"] else "")
        + f" ({row['size']} types)"
        for name, row in n_seeds.iterrows()
        if name in NAMES
    ]
    return f"Seeds per type: {', '.join(parts)}."


def _loss(values: pd.Series, better: str, floor: float | pd.Series) -> pd.Series:
    """Return numbers of which the smallest is best; some metrics are best at the floor."""
    return (values - floor).abs().dropna() if better == "floor" else -values if better == "higher" else values


def _with_best(values: pd.Series, better: str, floor: float) -> list[str]:
    losses = _loss(values, better, floor).dropna()
    best = short_number(values[losses.idxmin()]) if len(losses) else ""
    return [f"**{text}**" if text == best else text for text in map(short_number, values)]


def draw_scores(table: pd.DataFrame, path: Path) -> None:
    """Draw the figures of every type and method."""
    index = ["metric", "cell_type", "seed", "better"]
    wide = table.pivot_table(index=index, columns="method", values="value").reset_index()
    wide = wide.rename(columns={"cell_type": "group"}).assign(perturbation="IFN-beta")
    shown = {name: NAMES[name] for name in DRAWN_METHODS if name in wide}
    pl.perturbation_scores(wide, metrics=DRAWN_METRICS, methods=shown, show=False)
    plt.savefig(path, dpi=120, bbox_inches="tight")
    plt.close()


def draw_changes(cases: Mapping[str, tuple[Case, Mapping[str, ad.AnnData]]], path: Path) -> None:
    """Draw every gene's predicted change against the real one: one row per case, one column per method."""
    n_methods = len(next(iter(cases.values()))[1])
    size = (3.9 * n_methods, 3.7 * len(cases))
    figure, axes = plt.subplots(len(cases), n_methods, figsize=size, squeeze=False, layout="constrained")
    for (cell_type, (case, predicted)), row in zip(cases.items(), axes, strict=True):
        for (method, cells), ax in zip(predicted.items(), row, strict=True):
            pl.mean_change(case.real, cells, case.control, axs=[ax], show=False)
            ax.set_title(f"{cell_type}: {NAMES[method]}")
    low, high = (extreme([ax.get_xlim() for ax in axes.flat]) for extreme in (np.min, np.max))
    plt.setp(axes.flat, xlim=(low, high), ylim=(low, high))
    figure.savefig(path, dpi=90)
    plt.close(figure)


# --- the study --------------------------------------------------------------------------------------------------------


def predict(trained: Trained, method: str) -> ad.AnnData:
    """Return a method's cells; predict them if they are not stored."""
    path = stored_path(trained.folder, trained.case.cell_type, trained.seed, method)
    if not path.exists():
        logger.info("%s, seed %d: predicting with %s", trained.case.cell_type, trained.seed, method)
        started = time.process_time()
        is_baseline = method in BASELINES
        of_trained = SCLDM_METHODS | RIVAL_METHODS
        cells = BASELINES[method](trained.case, trained.seed) if is_baseline else of_trained[method](trained)
        cells.uns["cpu_minutes"] = (time.process_time() - started) / 60
        write_cells(cells, path)
    return ad.read_h5ad(path)


def judge(case: Case, predicted: dict[str, ad.AnnData], seed: int) -> pd.DataFrame:
    """Return the figures of all predictions and references, one row per metric and method."""
    controls = case.train[case.train.obs[CONDITION] == CONTROL]
    table = metrics.evaluate(
        case.real,
        next(iter(predicted.values())),
        control=controls,
        perturbation_key=CONDITION,
        train=case.train,
        others=predicted,
        groupby=CELL_TYPE,
        seed=seed,
    )
    columns = [*REFERENCES, *predicted]
    long = table.drop(columns="value").melt(
        id_vars=["metric", "better"], value_vars=columns, var_name="method", value_name="value"
    )
    long = long.assign(**describe_source("torch", "scvi-tools", "scgen-diffusion"))
    for method, costs in ((name, cells.uns[COSTS]) for name, cells in predicted.items() if COSTS in cells.uns):
        minutes = {"metric": TRAIN_MINUTES, "better": "lower", "method": method, "value": costs[TRAIN_MINUTES]}
        long = pd.concat([long, pd.DataFrame([minutes])], ignore_index=True)
        own = ["machine", "versions", "date"]
        long.loc[long["method"] == method, own] = [costs[name] for name in own]
    sizes = {"n_control": case.control.n_obs, "n_real": case.real.n_obs}
    return long.assign(cell_type=case.cell_type, seed=seed, **sizes)


def run(arguments: argparse.Namespace) -> None:
    """Predict and judge what is not stored, then write the summary and the pictures."""
    adata = load(DATASET)
    path = arguments.results / "perturbation.csv"
    for seed, cell_type in product(arguments.seeds, arguments.types or judged_types(adata)):
        done = stored_keys(path, KEYS)
        methods = [method for method in arguments.methods if (cell_type, seed, method) not in done]
        if not methods:
            continue
        case = leave_out(adata, cell_type)
        trained = Trained(case, seed, arguments.cells, arguments.python)
        predicted = {method: predict(trained, method) for method in methods}
        logger.info("%s, seed %d: judging %s", cell_type, seed, ", ".join(methods))
        store_rows(path, judge(case, predicted, seed), KEYS)
    table = read_table(path)
    write_text(arguments.results / "perturbation.md", summarise(table))
    draw_scores(table, arguments.pictures / "perturbation_scores.png")
    if shown := _stored_cases(adata, arguments.cells):
        draw_changes(shown, arguments.pictures / "perturbation_changes.png")


def _stored_cases(adata: ad.AnnData, cells: Path) -> dict[str, tuple[Case, dict[str, ad.AnnData]]]:
    """Return the cases of the second picture, with the stored predictions of the first seed."""
    paths = {name: {method: stored_path(cells, name, 0, method) for method in CHANGES_BY} for name in CHANGES_OF}
    return {
        name: (leave_out(adata, name), {method: ad.read_h5ad(path) for method, path in of_type.items()})
        for name, of_type in paths.items()
        if all(path.exists() for path in of_type.values())
    }


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("lightning.pytorch", "lightning", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", help="cell types to leave out; default: all with enough stimulated cells")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", choices=(*METHODS, *RIVAL_METHODS), default=list(METHODS))
    parser.add_argument("--python", help="Python of an environment that has the rival")
    parser.add_argument(
        "--cells", type=Path, default=ROOT / "benchmarks" / "cells", help="folder of predictions and autoencoders"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "_static")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    if not arguments.python and (rivals := [name for name in arguments.methods if name in RIVAL_METHODS]):
        parser.error(f"{', '.join(rivals)}: a rival needs --python.")
    torch.set_num_threads(arguments.threads)
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    run(arguments)


if __name__ == "__main__":
    main()
