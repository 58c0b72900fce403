"""Is a dose a good condition? Curves of a simulated dose series with a known truth, at doses that were never shown.

    python -m benchmarks.studies.doses                       # about twenty minutes of CPU time per seed

Real cells of `kang_ifnb` become cells of any dose. Optimal transport pairs cells with and without interferon within
each type, and each molecule of a pair comes from the stimulated cell with the probability ``1 / (1 + EC50 / dose)``.
Each type has an EC50 of its own. Controls and five doses, each ten times the last, are shown. All ways predict the mean
of every gene at doses between them: SCLDM by its transport, and by generating cells of the type and the dose, with
default settings; nothing was chosen on these figures. Then the treated cells of two types at a time are left out, and
predicted by the transport, beside the mean change of the other types.
Adds to ``results/doses.csv`` and writes ``results/doses.md``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import ot
import pandas as pd
import scipy.sparse as sp
from scipy.optimize import least_squares
from sklearn.decomposition import PCA

from benchmarks.quality.splits import load, log_normalise, most_variable
from benchmarks.studies.held_out import read_options, store_figures, study_parser
from benchmarks.studies.perturbation import CELL_TYPE, CONDITION, CONTROL, DATASET, judged_types
from benchmarks.tables import markdown_table, mean_with_interval, read_table, stored_keys, write_text
from scgen_diffusion.model import SCLDM

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

KEYS = ("method", "cell_type", "seed")
N_GENES = 1_000
DOSE = "log_dose"  # decimal logarithm
NO_DOSE = -3.0  # of control cells
SHOWN = np.arange(-2.0, 3)
GRID = np.array([NO_DOSE, *np.arange(-2, 2.5, 0.5)])
JUDGED = np.searchsorted(GRID, SHOWN[:-1] + 0.5)  # half-way between two doses shown
N_RESPONSE = 50  # genes that rise most at the highest dose shown, in the mean over types
EC50 = (-1.0, 1.0)  # smallest and largest, decimal logarithms
N_THINNED = 5  # for the truth
N_AXES = 20
CPU = {"accelerator": "cpu", "enable_progress_bar": False}


@dataclass(frozen=True)
class Pairs:
    """A control cell and a stimulated cell of the same type in each row; counts."""

    control: sp.csr_matrix
    stimulated: sp.csr_matrix
    cell_type: NDArray[np.str_]
    ec50: NDArray

    def at(self, log_dose: NDArray, rng: np.random.Generator) -> sp.csr_matrix:
        """Draw each molecule from one of the two cells; the stimulated one is more likely at higher doses."""
        share = share_of(log_dose, self.ec50)
        return _thin(self.control, 1 - share, rng) + _thin(self.stimulated, share, rng)

    def __getitem__(self, rows: NDArray) -> Pairs:
        return Pairs(self.control[rows], self.stimulated[rows], self.cell_type[rows], self.ec50[rows])


def share_of(log_dose: NDArray | float, log_ec50: NDArray | float, slope: float = 1) -> NDArray:
    """Return the share of the full effect, shape of both together; 0 without a dose."""
    return np.where(log_dose == NO_DOSE, 0, 1 / (1 + 10 ** (slope * (log_ec50 - log_dose))))


def _thin(counts: sp.csr_matrix, share: NDArray, rng: np.random.Generator) -> sp.csr_matrix:
    thinned = counts.copy()
    thinned.data = rng.binomial(counts.data.astype(int), np.repeat(share, np.diff(counts.indptr))).astype(np.float32)
    thinned.eliminate_zeros()
    return thinned


def pair_cells(seed: int) -> tuple[Pairs, list[str]]:
    """Pair every cell with one of the other condition, and give every type an EC50.

    Also return the names of the genes.
    """
    cells, rng = load(DATASET), np.random.default_rng([seed, 0])
    types = judged_types(cells)
    cells = cells[cells.obs[CELL_TYPE].isin(types)].copy()
    cells = cells[:, most_variable(cells.layers["counts"], N_GENES)].copy()
    counts = sp.csr_matrix(cells.layers["counts"])
    of_type, is_control = cells.obs[CELL_TYPE].to_numpy(str), (cells.obs[CONDITION] == CONTROL).to_numpy()
    axes = PCA(N_AXES, random_state=0).fit_transform(log_normalise(counts))
    first, second = [], []
    for name in types:
        before, after = (np.flatnonzero((of_type == name) & (is_control == side)) for side in (True, False))
        x, y = (axes[rows] - axes[rows].mean(0) for rows in (before, after))  # the shared effect must not choose pairs
        plan = ot.emd(ot.unif(len(x)), ot.unif(len(y)), ot.dist(x, y))
        first += [*before, *(rng.choice(before, p=column / column.sum()) for column in plan.T)]
        second += [*(rng.choice(after, p=row / row.sum()) for row in plan), *after]
    of_types = dict(zip(types, rng.permutation(np.linspace(*EC50, len(types))), strict=True))
    ec50 = np.array([of_types[name] for name in of_type[first]])
    return Pairs(counts[first], counts[second], of_type[first], ec50), list(cells.var_names)


def true_curves(pairs: Pairs, seed: int) -> dict[str, NDArray]:
    """Return the means of all pairs of each type at all doses of the grid, ``(doses, genes)``."""
    rng = np.random.default_rng([seed, 2])
    curves = {}
    for name in np.unique(pairs.cell_type):
        of_type = pairs[pairs.cell_type == name]
        means = [[log_normalise(of_type.at(dose, rng)).mean(0) for _ in range(N_THINNED)] for dose in GRID]
        curves[str(name)] = np.mean(means, axis=1)
    return curves


def show_doses(pairs: Pairs, genes: list[str], seed: int) -> ad.AnnData:
    """Make one cell of each pair: a control cell, or a cell of one of the doses shown."""
    rng = np.random.default_rng([seed, 1])
    doses = np.empty(len(pairs.cell_type))
    for name in np.unique(pairs.cell_type):
        rows = rng.permutation(np.flatnonzero(pairs.cell_type == name))
        doses[rows] = np.resize([NO_DOSE, *SHOWN], len(rows))
    counts = pairs.at(doses, rng)
    obs = pd.DataFrame({CELL_TYPE: pd.Categorical(pairs.cell_type), DOSE: doses})
    return ad.AnnData(counts, obs.set_index(obs.index.map("cell{}".format)), pd.DataFrame(index=genes))


# --- ways to tell the curve of a type ---------------------------------------------------------------------------------


def measured_means(train: ad.AnnData, name: str) -> NDArray:
    """Return the means of a type's control cells and of its cells of each dose shown, ``(1 + doses, genes)``."""
    cells = train[train.obs[CELL_TYPE] == name]
    values, doses = log_normalise(cells.X), cells.obs[DOSE].to_numpy()
    return np.stack([values[doses == dose].mean(0) for dose in (NO_DOSE, *SHOWN)])


def interpolate(means: NDArray) -> NDArray:
    """Go from dose to dose on straight lines, over the logarithm of the dose."""
    after = np.clip(np.searchsorted(SHOWN, GRID), 1, len(SHOWN) - 1)
    share = ((GRID - SHOWN[after - 1]) / (SHOWN[after] - SHOWN[after - 1]))[:, None]
    return _with_control(means, (1 - share) * means[after] + share * means[after + 1])


def nearest_dose(means: NDArray) -> NDArray:
    """Take the means of the nearest dose, by its logarithm; of two, the lower one."""
    return _with_control(means, means[1 + np.abs(GRID[:, None] - SHOWN).argmin(1)])


def _with_control(means: NDArray, curve: NDArray) -> NDArray:
    return np.vstack([means[:1], curve[1:]])


def hill_curve(means: NDArray) -> NDArray:
    """Fit a Hill curve with one EC50 and slope for all genes, whose ends are the gene's own: the form of the truth."""
    doses = np.array([NO_DOSE, *SHOWN])

    def ends(parameters: NDArray) -> tuple[NDArray, NDArray]:
        design = np.column_stack([np.ones(len(doses)), share_of(doses, *parameters)])
        return design, np.linalg.lstsq(design, means, rcond=None)[0]

    def errors(parameters: NDArray) -> NDArray:
        design, found = ends(parameters)
        return (means - design @ found).ravel()

    best = least_squares(errors, (0.0, 1.0), bounds=((-3, 0.3), (3, 3))).x
    return np.column_stack([np.ones(len(GRID)), share_of(GRID, *best)]) @ ends(best)[1]


WAYS: dict[str, Callable[[NDArray], NDArray]] = {
    "Hill curve": hill_curve,
    "linear interpolation": interpolate,
    "nearest dose": nearest_dose,
}
TRANSPORT, GENERATE = "SCLDM, transport", "SCLDM, generate"
METHODS = (TRANSPORT, GENERATE, *WAYS)
#: Of a type whose treated cells are left out.
UNTREATED, OTHERS, NO_CHANGE = UNTREATED_METHODS = (
    "never treated: SCLDM, transport",
    "never treated: mean change of other types",
    "never treated: no change",
)
N_LEFT_OUT = 2  # types at a time
N_GENERATED = 500  # of each type and dose


def set_up(train: ad.AnnData, seed: int) -> SCLDM:
    """Build SCLDM for type and dose."""
    import scvi

    scvi.settings.seed = seed
    train = train.copy()
    SCLDM.setup_anndata(train, condition_keys=[CELL_TYPE], continuous_condition_keys=[DOSE])
    return SCLDM(train)


def predict(model: SCLDM, name: str, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Return the means of the control cells after their predicted changes, and the ends of their intervals."""
    controls = _controls(model, name)
    found = [np.zeros((controls.n_vars, 3))]
    for dose in GRID[1:]:
        predicted = model.predict_perturbation(controls, {DOSE: dose}, method="transport", seed=seed)
        found.append(predicted.uns["scgen_diffusion"]["mean_change"][["change", "lower", "upper"]].to_numpy())
    change, lower, upper = np.moveaxis(np.stack(found), 2, 0) + log_normalise(controls.X).mean(0)
    return change, lower, upper


def generate(model: SCLDM, name: str, seed: int) -> NDArray:
    """Return the means of generated cells of a type at all doses of the grid, ``(doses, genes)``."""
    cells = model.generate(N_GENERATED * len(GRID), {CELL_TYPE: name, DOSE: GRID}, seed=seed)
    return log_normalise(cells.X).reshape(len(GRID), N_GENERATED, -1).mean(1)


def _controls(model: SCLDM, name: str) -> ad.AnnData:
    obs = model.adata.obs
    return model.adata[(obs[CELL_TYPE] == name) & (obs[DOSE] == NO_DOSE)].copy()


# --- judge ------------------------------------------------------------------------------------------------------------


def log_ec50(response: NDArray) -> float:
    """Return the dose of the grid at which the response first has half of its change at the highest dose."""
    is_above = response[1:] >= (response[0] + response[-1]) / 2
    above = 1 + int(np.argmax(is_above))
    if above == 1:
        return float(GRID[1])
    return float(
        np.interp((response[0] + response[-1]) / 2, response[above - 1 : above + 1], GRID[above - 1 : above + 1])
    )


def figures(curve: NDArray, truth: NDArray, genes: NDArray[np.intp]) -> dict[str, float]:
    """Compare means with the truth, both ``(doses, genes)``; the EC50 is that of the mean of some genes."""
    errors = np.linalg.norm(curve - truth, axis=1)[JUDGED] / np.linalg.norm(truth[-1] - truth[0])
    response, true = curve[:, genes].mean(1), truth[:, genes].mean(1)
    found, wanted = log_ec50(response), log_ec50(true)
    return {
        "error": float(errors.mean()),
        "size": float((response[-1] - response[0]) / (true[-1] - true[0])),
        "log_ec50": found,
        "true_log_ec50": wanted,
        "ec50_error": abs(found - wanted),
    }


def coverage(lower: NDArray, upper: NDArray, pairs: Pairs, n_cells: int, seed: int) -> float:
    """Return the share of intervals that hold the means of so many measured cells."""
    rng = np.random.default_rng([seed, 4])
    inside = []
    for row in JUDGED:
        cells = pairs[rng.choice(len(pairs.cell_type), n_cells)]
        means = log_normalise(cells.at(GRID[row], rng)).mean(0)
        inside.append((means >= lower[row] - 1e-6) & (means <= upper[row] + 1e-6))
    return float(np.mean(inside))


# --- study ------------------------------------------------------------------------------------------------------------


def summarise(table: pd.DataFrame) -> str:
    """Write the means over types and seeds, and the EC50 of each type."""
    rows = []
    for way in (*METHODS, *UNTREATED_METHODS):
        of_way = table[table["method"] == way]
        rows.append(
            [way, *(mean_with_interval(of_way[column]) for column in ("error", "ec50_error", "size", "coverage"))]
        )
    head = ["error of means", "error of log10 EC50", "change at the highest dose", "coverage"]
    parts = [
        f"Means of {N_GENES:,} genes at doses never shown, in a simulated dose series of "
        f"{table['cell_type'].nunique()} cell types of `{DATASET}`, {table['seed'].nunique()} seeds. The error of "
        f"means is relative to the change from the control to the highest dose. The EC50 is that of the mean of the "
        f"{N_RESPONSE} genes that rise most, and the change at the highest dose is theirs, relative to the true one. "
        "*Coverage* is the share of genes whose mean lies in its interval of 90 %, if as many cells are measured as "
        "there are control cells. In brackets: 90 % of bootstrap samples of types and seeds. Written by `python -m "
        "benchmarks.studies.doses`.",
        "",
        markdown_table(["", *head], rows),
        "",
    ]
    for seed, of_seed in table.groupby("seed"):
        found = of_seed.pivot_table(index="cell_type", columns="method", values="log_ec50")
        found.insert(0, "truth", of_seed.groupby("cell_type")["true_log_ec50"].first())
        found = found[["truth", *METHODS]].sort_values("truth")
        lines = [[str(name), *(f"{value:.2f}" for value in row)] for name, row in found.iterrows()]
        parts += [f"**log10 EC50, seed {seed}**", "", markdown_table(["", *found.columns], lines), ""]
    return "\n".join(parts)


def measure(seed: int, methods: Collection[str], store: Callable[[str, str, dict[str, float]], None]) -> None:
    """Train SCLDM with default settings, and store the figures of some methods for all types."""
    pairs, genes = pair_cells(seed)
    train, truths = show_doses(pairs, genes, seed), true_curves(pairs, seed)
    measured = {name: measured_means(train, name) for name in truths}
    response = np.argsort(-np.mean([means[-1] - means[0] for means in measured.values()], axis=0))[:N_RESPONSE]
    for name, truth in truths.items():
        for way, curve in WAYS.items():
            if way in methods:
                store(way, name, figures(curve(measured[name]), truth, response))

    if not {TRANSPORT, GENERATE}.isdisjoint(methods):
        measure_models(pairs, train, truths, response, seed, methods, store)
    if not set(UNTREATED_METHODS).isdisjoint(methods):
        measure_untreated(pairs, train, truths, response, seed, store)


def measure_untreated(
    pairs: Pairs,
    train: ad.AnnData,
    truths: Mapping[str, NDArray],
    response: NDArray[np.intp],
    seed: int,
    store: Callable[[str, str, dict[str, float]], None],
) -> None:
    """Store the figures of types whose treated cells are left out."""
    types = np.random.default_rng([seed, 5]).permutation(list(truths))
    curves = {name: interpolate(measured_means(train, name)) for name in types}
    for out in np.split(types, range(N_LEFT_OUT, len(types), N_LEFT_OUT)):
        is_out = train.obs[CELL_TYPE].isin(out) & (train.obs[DOSE] != NO_DOSE)
        model = set_up(train[~is_out.to_numpy()], seed)
        model.train_autoencoder(**CPU)
        model.train_transport(control_values={DOSE: NO_DOSE}, **CPU)
        change = np.mean([curve - curve[0] for name, curve in curves.items() if name not in out], axis=0)
        for name in out:
            control = curves[name][:1]
            store(NO_CHANGE, name, figures(np.tile(control, (len(GRID), 1)), truths[name], response))
            store(OTHERS, name, figures(control + change, truths[name], response))
            with warnings.catch_warnings(action="ignore"):  # of verdicts
                means, lower, upper = predict(model, name, seed)
            of_type, n_controls = pairs[pairs.cell_type == name], _controls(model, name).n_obs
            inside = coverage(lower, upper, of_type, n_controls, seed)
            store(UNTREATED, name, figures(means, truths[name], response) | {"coverage": inside})


def measure_models(
    pairs: Pairs,
    train: ad.AnnData,
    truths: Mapping[str, NDArray],
    response: NDArray[np.intp],
    seed: int,
    methods: Collection[str],
    store: Callable[[str, str, dict[str, float]], None],
) -> None:
    """Store the figures of SCLDM for types that were treated."""
    model = set_up(train, seed)
    model.train_autoencoder(**CPU)
    with warnings.catch_warnings(action="ignore"):  # of verdicts
        if GENERATE in methods:
            model.train_prior(**CPU)
            for name, truth in truths.items():
                store(GENERATE, name, figures(generate(model, name, seed), truth, response))
        if TRANSPORT in methods:
            model.train_transport(control_values={DOSE: NO_DOSE}, **CPU)
            for name, truth in truths.items():
                means, lower, upper = predict(model, name, seed)
                of_type, n_controls = pairs[pairs.cell_type == name], _controls(model, name).n_obs
                inside = coverage(lower, upper, of_type, n_controls, seed)
                store(TRANSPORT, name, figures(means, truth, response) | {"coverage": inside})


def main() -> None:
    """Run from the command line."""
    arguments = read_options(study_parser(__doc__, "doses"))
    path = arguments.results / "doses.csv"
    for seed in arguments.seeds:

        def store(way: str, name: str, found: dict[str, float], seed: int = seed) -> None:
            case = {"method": way, "cell_type": name, "seed": seed}
            store_figures(path, case, {"coverage": np.nan} | found, "POT")

        stored = {way for way, _, number in stored_keys(path, KEYS) if number == seed}
        if missing := {*METHODS, *UNTREATED_METHODS} - stored:
            measure(seed, missing, store)
    write_text(path.with_suffix(".md"), summarise(read_table(path)))


if __name__ == "__main__":
    main()
