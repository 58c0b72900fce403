"""How well is a perturbation predicted where it was never seen? SCLDM, baselines and rivals, on three questions.

    python -m benchmarks.studies.perturbation                                          # everything that is missing
    python -m benchmarks.studies.perturbation --questions types --left-out B --seeds 0 --methods latent_arithmetic
    python -m benchmarks.studies.perturbation --methods scgen --questions types --python venv/bin/python    # a rival

- *types*: the interferon-stimulated cells of one type of `kang_ifnb` at a time, predicted from its control cells.
- *pairs*: all pairs of genes of K562 cells (`norman_mcfaline_devel`) whose parts were measured alone.
- *hours*: the cells of one hour of dexamethasone (`a549_scicar.h5mu` in ``BENCHMARK_DATA_DIR``), from the other hour.

Figures of ``scgen_diffusion.metrics.evaluate`` are added to ``results/perturbation.csv``, and a picture goes to
``docs/_static``. Rivals decode control cells with and without the
perturbation, and what they change is added to each control cell; ``_profiles`` is what they decode, as it is.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from benchmarks.quality.splits import data_folder, load, log_normalise, most_variable
from benchmarks.rivals.exchange import as_log_cells, ask_for_predictions
from benchmarks.rivals.worker import COSTS
from benchmarks.runner import options, run, start
from benchmarks.tables import ROOT
from scgen_diffusion import metrics, pl
from scgen_diffusion.diffusion import Generators

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from scgen_diffusion.model import SCLDM

CELL_TYPE, CONDITION, CONTROL, HOURS = "cell_type", "condition", "control", "hours"
PERTURBED, TREATED = "stimulated", "dexamethasone"
N_GENES = 2_000
#: Fewer perturbed cells are too few to be judged.
MIN_CELLS = 50
#: Figures that every table has besides those of the methods.
REFERENCES = ("real", "no_change", "mean_shift", "additive")
TRAIN_MINUTES = "train_minutes"
CPU = {"accelerator": "cpu", "enable_progress_bar": False}


# --- what is left out -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Cells to learn from, and those left out, predicted from `control`; counts are in `X` and ``layers["counts"]``.

    `asked` has the conditions to predict by the name of the perturbation, `columns` the arguments of ``setup_anndata``.
    """

    train: ad.AnnData
    real: ad.AnnData
    control: ad.AnnData
    asked: Mapping[str, dict[str, Any]]
    columns: dict[str, Any]

    def obs(self, perturbation: str) -> pd.DataFrame:
        """Return the control cells' table with the perturbation, and columns that say where the cells come from."""
        asked = self.asked[perturbation]
        given = {f"{key}_of_control": self.control.obs[key] for key in asked}
        return self.control.obs.assign(**given, **{CONDITION: perturbation, **asked})

    def cells(self, perturbation: str, counts: NDArray | sp.csr_matrix) -> ad.AnnData:
        """Return predicted counts, one row per control cell, as cells."""
        return ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=self.obs(perturbation), var=self.train.var)


def leave_out_type(adata: ad.AnnData, cell_type: str, *, n_genes: int = N_GENES) -> Case:
    """Leave out the perturbed cells of a type, and keep the genes that vary most in the others."""
    is_type, is_control = (adata.obs[CELL_TYPE] == cell_type).to_numpy(), (adata.obs[CONDITION] == CONTROL).to_numpy()
    is_out = is_type & ~is_control
    adata = _minimal(adata[:, most_variable(adata.layers["counts"][~is_out], n_genes)], [CELL_TYPE, CONDITION])
    columns = {"condition_keys": [CELL_TYPE, CONDITION], "control_values": {CONDITION: CONTROL}}
    asked = {PERTURBED: {CONDITION: PERTURBED}}
    return Case(adata[~is_out].copy(), adata[is_out].copy(), adata[is_type & is_control].copy(), asked, columns)


def leave_out_pairs(adata: ad.AnnData) -> Case:
    """Leave out the cells of all pairs whose parts were measured alone."""
    names = set(adata.obs[CONDITION])
    pairs = sorted(name for name in names if "+" in name and set(name.split("+")) <= names)
    is_out = adata.obs[CONDITION].isin(pairs).to_numpy()
    adata = _minimal(adata, [CELL_TYPE, CONDITION])
    train, asked = adata[~is_out].copy(), {name: {CONDITION: name} for name in pairs}
    columns = {"set_condition_keys": [CONDITION], "control_values": {CONDITION: CONTROL}}
    return Case(train, adata[is_out].copy(), train[train.obs[CONDITION] == CONTROL].copy(), asked, columns)


def leave_out_hour(adata: ad.AnnData, hour: float) -> Case:
    is_out = (adata.obs[HOURS] == hour).to_numpy()
    adata = _minimal(adata, [CELL_TYPE, CONDITION, HOURS])
    train, columns = adata[~is_out].copy(), {"continuous_condition_keys": [HOURS], "control_values": {HOURS: 0.0}}
    control = train[train.obs[HOURS] == 0].copy()
    return Case(train, adata[is_out].copy(), control, {TREATED: {HOURS: hour}}, columns)


def _minimal(adata: ad.AnnData, columns: list[str]) -> ad.AnnData:
    counts = sp.csr_matrix(adata.layers["counts"], dtype=np.float32)
    obs = adata.obs[columns].copy()
    for column in set(columns) - {HOURS}:
        obs[column] = obs[column].astype(str).astype("category")
    return ad.AnnData(counts, obs=obs, var=adata.var[[]].copy(), layers={"counts": counts.copy()})


def load_hours() -> ad.AnnData:
    """Return the RNA of A549 cells, with the hours of dexamethasone as a number."""
    mdata = mudata.read_h5mu(data_folder() / "a549_scicar.h5mu")
    rna, hours = mdata["rna"], mdata.obs["time_h"].astype(str).str.removesuffix("h").astype(float)
    obs = pd.DataFrame({HOURS: hours[rna.obs_names], CELL_TYPE: "a549"})
    obs[CONDITION] = np.where(obs[HOURS] == 0, CONTROL, TREATED)
    return ad.AnnData(rna.X, obs=obs, var=rna.var[[]], layers={"counts": rna.X})


def load_pairs() -> ad.AnnData:
    """Return K562 cells with one or two genes perturbed."""
    cells = load("perturb_norman_mcfaline")
    return cells[cells.obs[CELL_TYPE] == "k562"].copy()


#: How cells of a question are read, and what is left out by its name.
QUESTIONS: dict[str, tuple[Callable[[], ad.AnnData], Callable[[ad.AnnData], dict[str, Any]], Callable[..., Case]]] = {
    "types": (lambda: load("kang_ifnb"), lambda cells: {name: name for name in judged_types(cells)}, leave_out_type),
    "pairs": (load_pairs, lambda _: {"all": None}, lambda cells, _: leave_out_pairs(cells)),
    "hours": (load_hours, lambda _: {"1 h": 1.0, "3 h": 3.0}, leave_out_hour),
}


def judged_types(adata: ad.AnnData) -> list[str]:
    """Return the cell types with enough perturbed cells, in alphabetical order."""
    n_cells = adata.obs.loc[adata.obs[CONDITION] == PERTURBED, CELL_TYPE].value_counts()
    return sorted(n_cells.index[n_cells >= MIN_CELLS])


# --- methods ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A case's models, trained when first needed: SCLDM's stages, and rivals in their own Python."""

    case: Case
    seed: int
    python: str | None = None
    by_rivals: dict[str, tuple[list[ad.AnnData], list[ad.AnnData]]] = field(default_factory=dict)

    @cached_property
    def with_autoencoder(self) -> SCLDM:
        import scvi

        from scgen_diffusion.model import SCLDM

        scvi.settings.seed = self.seed
        train = self.case.train.copy()
        SCLDM.setup_anndata(train, **self.case.columns)
        model = SCLDM(train)
        model.train_autoencoder(**CPU)
        return model

    @cached_property
    def with_perturbation_flow(self) -> SCLDM:
        self.with_autoencoder.train_perturbation_flow(**CPU)
        return self.with_autoencoder

    @cached_property
    def with_all(self) -> SCLDM:
        self.with_perturbation_flow.train_prior(**CPU)
        return self.with_perturbation_flow


def flow(trained: Trained, **how: str) -> ad.AnnData:
    """Move control cells by the shift that is expected of the perturbation."""
    model, case = trained.with_perturbation_flow, trained.case
    moved = []
    for name, condition in case.asked.items():
        predicted = model.predict_perturbation(
            case.control, condition, method="perturbation_flow", seed=trained.seed, **how
        )
        moved.append(case.cells(name, predicted.X))
    return join(moved)


def perturbation_flow_with_new_counts(trained: Trained) -> ad.AnnData:
    """Do the same, but draw all counts anew."""
    return flow(trained, keep_residuals=False)


def generate(trained: Trained) -> ad.AnnData:
    """Generate the unseen conditions with a model that has all stages."""
    model, case = trained.with_all, trained.case
    known = {key: case.control.obs[key].iloc[0] for key in case.columns.get("condition_keys", []) if key != CONDITION}
    drawn = []
    for name, asked in case.asked.items():
        drawn.append(case.cells(name, model.generate(case.control.n_obs, {**known, **asked}, seed=trained.seed).X))
    return join(drawn)


def latent_arithmetic(trained: Trained) -> ad.AnnData:
    """Shift control cells' latents by the mean change of the other types, and draw counts with the cells' own totals.

    References
    ----------
    Lotfollahi et al. 2019, scGen predicts single-cell perturbation responses. Nat Methods 16:715.
    """
    case, model = trained.case, trained.with_autoencoder
    latents, obs, changes = model.get_latent_representation(), case.train.obs, []
    for name in obs[CELL_TYPE].unique():
        before, after = (
            latents[(obs[CELL_TYPE] == name) & (obs[CONDITION] == value)] for value in (CONTROL, PERTURBED)
        )
        if min(len(before), len(after)) > 1:
            changes.append(after.mean(axis=0) - before.mean(axis=0))
    moved = latents[case.train.obs_names.isin(case.control.obs_names)] + np.mean(changes, axis=0)
    totals = torch.from_numpy(np.asarray(case.control.X.sum(axis=1)))
    z = torch.from_numpy(moved).view(-1, *model.module.latent_shape)
    with torch.inference_mode():
        counts = model.module.draw_cells(model.module.generative(z, totals), Generators(trained.seed, range(len(z))))
    return case.cells(PERTURBED, counts.numpy())


def proportional(trained: Trained) -> ad.AnnData:
    """Shift control cells by the mean change at the other hour, in proportion to the hours."""
    case, hour = trained.case, trained.case.asked[TREATED][HOURS]
    others = case.train[case.train.obs[HOURS] != 0]
    change = log_normalise(others.X).mean(0) - log_normalise(case.control.X).mean(0)
    change *= hour / others.obs[HOURS].iloc[0]
    return as_log_cells(log_normalise(case.control.X) + change, case.obs(TREATED), case.train.var.copy())


def join(cells: list[ad.AnnData]) -> ad.AnnData:
    """Return the cells of several perturbations as one table."""
    joined = cells[0] if len(cells) == 1 else ad.concat(cells, index_unique="-")
    if "log1p" in cells[0].uns:  # which `concat` drops
        joined.uns["log1p"] = {}
    return joined


def of_rival(trained: Trained, method: str) -> ad.AnnData:
    """Return the control cells as a rival changes them, or its profiles; both come from one training."""
    (name, _, ending), case = method.partition("_"), trained.case
    if name not in trained.by_rivals:
        train = ad.AnnData(case.train.X, obs=case.train.obs.rename(columns={HOURS: "dose"}), var=case.train.var)
        doses = [{"dose": condition[HOURS]} if HOURS in condition else {} for condition in case.asked.values()]
        asked = [{"shift": shift, **dose} for shift, dose in zip(case.asked, doses, strict=True)]
        obs = [case.obs(shift) for shift in case.asked]
        trained.by_rivals[name] = ask_for_predictions(
            RIVALS[name], train, case.control, asked, obs, trained.seed, python=trained.python
        )
    parts = trained.by_rivals[name][ending == "profiles"]
    cells = join(parts)
    cells.uns[COSTS] = parts[0].uns.get(COSTS, {})
    return cells


RIVALS = {"scgen": "scGen", "cpa": "CPA", "cellflow": "CellFlow"}
RIVAL_METHODS = tuple(f"{rival}{ending}" for rival in RIVALS for ending in ("", "_profiles"))
#: Methods of each question.
METHODS: dict[str, dict[str, Callable[[Trained], ad.AnnData]]] = {
    "types": {
        "latent_arithmetic": latent_arithmetic,
        "scldm_perturbation_flow": flow,
        "scldm_perturbation_flow_new_counts": perturbation_flow_with_new_counts,
        "scldm_generate": generate,
    },
    "pairs": {"scldm_perturbation_flow": flow, "scldm_perturbation_flow_new_counts": perturbation_flow_with_new_counts},
    "hours": {"proportional": proportional, "scldm_perturbation_flow": flow, "scldm_generate": generate},
}
NAMES = {
    "real": "real cells",
    "no_change": "no change",
    "mean_shift": "mean shift",
    "additive": "sum of both effects",
    "linear_additive": "linear additive",
    "proportional": "change in proportion to the hours",
    "scvi_arithmetic": "scVI arithmetic",
    "scgen": "scGen, as its tutorial",
    "cpa": "CPA, as its tutorial, smaller batches",
    "cellflow": "CellFlow, an eighth as wide, 5,000 steps",
    "latent_arithmetic": "latent arithmetic",
    "scldm_generate": "SCLDM, generate",
    "scldm_perturbation_flow": "SCLDM, perturbation flow",
    "scldm_perturbation_flow_new_counts": "SCLDM, perturbation flow, new counts",
}


# --- the study --------------------------------------------------------------------------------------------------------


def judge(case: Case, method: str, cells: ad.AnnData, seed: int) -> pd.DataFrame:
    """Return the figures of a prediction and of the references, one row per metric, perturbation and method."""
    table = metrics.evaluate(
        case.real,
        cells,
        control=case.train[case.train.obs[CONDITION] == CONTROL],
        perturbation_key=CONDITION,
        train=case.train,
        groupby=CELL_TYPE if CELL_TYPE in case.columns.get("condition_keys", ()) else None,
        seed=seed,
    ).rename(columns={"value": method})
    shown = [name for name in (*REFERENCES, method) if name in table]
    long = table.melt(["metric", "perturbation", "better"], shown, var_name="method", value_name="value").dropna(
        subset=["value"]
    )
    if costs := cells.uns.get(COSTS, {}):
        minutes = {"metric": TRAIN_MINUTES, "better": "lower", "method": method, "value": costs[TRAIN_MINUTES]}
        long = pd.concat([long, pd.DataFrame([minutes])], ignore_index=True)
    return long


#: Metrics and methods in the picture.
DRAWN = ("energy_distance", "mean_change_correlation", "mean_change_slope", "mean_change_debiased_error")
DRAWN_METHODS = ("mean_shift", "latent_arithmetic", "scvi_arithmetic", "scldm_perturbation_flow")


def draw_scores(table: pd.DataFrame, path: Path) -> None:
    """Draw the figures of every type and method."""
    rows = table[table["question"] == "types"]
    wide = rows.pivot_table(index=["metric", "left_out", "seed", "better"], columns="method", values="value")
    wide = wide.reset_index().rename(columns={"left_out": "group"}).assign(perturbation="IFN-beta")
    shown = {name: NAMES[name] for name in DRAWN_METHODS if name in wide}
    pl.perturbation_scores(wide, metrics=DRAWN, methods=shown, show=False)
    plt.savefig(path, dpi=120, bbox_inches="tight")
    plt.close()


def main() -> None:
    parser = options(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--left-out", nargs="+", help="cell types or hours; default: all")
    parser.add_argument("--methods", nargs="*", help=f"default: all but rivals, which are {', '.join(RIVAL_METHODS)}")
    parser.add_argument("--python", help="Python of an environment that has the rival")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "_static" / "perturbation_scores.png")
    chosen = start(parser)
    if not chosen.python and set(chosen.methods or ()) & set(RIVAL_METHODS):
        parser.error("--python is needed by a rival.")

    @lru_cache(maxsize=1)
    def trained_for(question: str, left_out: str, seed: int) -> Trained:
        read, left_out_of, leave_out = QUESTIONS[question]
        cells = read()
        return Trained(leave_out(cells, left_out_of(cells)[left_out]), seed, chosen.python)

    def measure(question: str, left_out: str, seed: int, method: str) -> pd.DataFrame:
        trained, started = trained_for(question, left_out, seed), time.process_time()
        with warnings.catch_warnings(action="ignore"):  # of predictions
            predict = METHODS[question].get(method)
            cells = predict(trained) if predict else of_rival(trained, method)
        return judge(trained.case, method, cells, seed).assign(cpu_minutes=(time.process_time() - started) / 60)

    cases = []
    for question in chosen.questions:
        read, left_out_of, _ = QUESTIONS[question]
        names = chosen.left_out or list(left_out_of(read()))
        methods = [name for name in chosen.methods or METHODS[question] if name in {*METHODS[question], *RIVAL_METHODS}]
        cases += [
            {"question": question, "left_out": name, "seed": seed, "method": method}
            for seed, name, method in product(chosen.seeds, names, methods)
        ]
    path = chosen.results / "perturbation.csv"
    table = run(path, cases, measure)

    if "types" in set(table["question"]):
        draw_scores(table, chosen.picture)


if __name__ == "__main__":
    main()
