"""Make the pretrained models that the package ships: train them, judge them on held-out cells, write their cards.

    python -m benchmarks.pretrained                     # all models; some minutes of one core each
    python -m benchmarks.pretrained pbmc3k              # one of them
    python -m benchmarks.pretrained --steps judge       # judge the models that are there
    python -m benchmarks.pages                          # write the figures of their cards

A model goes to ``src/scgen_diffusion/pretrained/NAME``, its figures to ``results/pretrained.csv``, and the means of its
cells by label to ``results/pretrained_labels.csv``. The model that is judged is the file that is shipped. Its card is
``README.md`` there, with marks for the figures.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
import torch
from mudata import MuData

from benchmarks.quality.splits import join_labels, split_cells, to_dense
from benchmarks.runner import options, start
from benchmarks.tables import ROOT, describe_source, markdown_table, read_table, store_rows, write_text
from scgen_diffusion import datasets, metrics
from scgen_diffusion import model as models
from scgen_diffusion.data import mudata_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.model import SCLDM

    Cells = ad.AnnData | MuData

FOLDER = Path("src") / "scgen_diffusion" / "pretrained"
RESULTS = ROOT / "benchmarks" / "results"
FIGURES, LABELS = RESULTS / "pretrained.csv", RESULTS / "pretrained_labels.csv"
SEED = 0
MAX_CELLS = 1_000
#: Someone who has the model can draw as many cells as they like, which makes the attack stronger.
ATTACK_CELLS = 10_000
CELLS_PER_LABEL = 200
#: Cell types with fewer held-out cells are too few to judge a perturbation by.
MIN_CELLS = 10
RNA, PROTEINS = "rna", "prot"
#: Markers of blood cells that users look for, kept however little they vary.
MARKERS = (
    *("CD3D", "CD3E", "CD2", "CD4", "CD8A", "CD8B", "IL7R", "CCR7", "S100A4", "IL2RA", "FOXP3", "TIGIT"),
    *("NKG7", "GNLY", "GZMB", "GZMK", "PRF1", "KLRD1", "NCAM1", "MS4A1", "CD79A", "CD19", "TCL1A"),
    *("CD14", "LYZ", "S100A8", "S100A9", "FCGR3A", "MS4A7", "FCER1A", "CST3", "CLEC10A", "LILRA4", "IRF7"),
    *("PPBP", "PF4", "HBA1", "HBB", "HLA-DRA"),
    *("ISG15", "IFIT1", "IFIT3", "IFI6", "MX1", "CXCL10", "CXCL11", "STAT1"),
)
#: Of these the means by label are stored.
IN_SUMMARY = ("CD3D", "IL7R", "CD8A", "NKG7", "MS4A1", "CD14", "LYZ", "FCGR3A", "PPBP", "ISG15")


@dataclass(frozen=True)
class Pretrained:
    """The columns of ``obs`` that a model generates by, its control values, and its class."""

    keys: tuple[str, ...]
    control_values: dict[str, str] | None = None
    class_name: str = "SCLDM"


PRETRAINED = {
    "pbmc3k": Pretrained(("cell_type",)),
    "kang_ifnb": Pretrained(("cell_type", "condition"), {"condition": "control"}),
    "pbmc10k_citeseq": Pretrained(("cell_type",), class_name="MULTISCLDM"),
}


# --- train ------------------------------------------------------------------------------------------------------------


def halves(name: str) -> tuple[Cells, Cells]:
    """Hold out a quarter of the cells as the study of quality does, and keep 2,000 genes; counts are in `X`, too."""
    keys, cells = list(PRETRAINED[name].keys), getattr(datasets, name)()
    found = split_cells(rna_of(cells), tuple(keys), seed=SEED, kept_genes=MARKERS)
    if not isinstance(cells, MuData):
        return found.train, found.held_out

    def join(part: ad.AnnData) -> MuData:
        counts = cells[PROTEINS][part.obs_names].layers["counts"].copy()
        proteins = ad.AnnData(counts, obs=part.obs[[]], var=cells[PROTEINS].var[[]], layers={"counts": counts.copy()})
        joined = mudata_of({RNA: ad.AnnData(part.X, part.obs[[]], part.var, layers=part.layers), PROTEINS: proteins})
        joined.obs[keys] = part.obs[keys]
        return joined

    return join(found.train), join(found.held_out)


def rna_of(cells: Cells) -> ad.AnnData:
    return cells[RNA] if isinstance(cells, MuData) else cells


def train(name: str, max_epochs: int | None = None) -> None:
    """Train with defaults, and put the model into its folder, with what ``scvi.hub.HubModel`` reads beside it."""
    from scvi.hub import HubMetadata

    chosen, source, (cells, held_out) = (
        PRETRAINED[name],
        describe_source("torch", "scvi-tools", "anndata"),
        halves(name),
    )
    scvi.settings.seed = SEED
    cls = getattr(models, chosen.class_name)
    register = cls.setup_mudata if isinstance(cells, MuData) else cls.setup_anndata
    register(cells, condition_keys=list(chosen.keys), control_values=chosen.control_values)  # counts in X
    model = cls(cells)
    started = time.process_time()
    model.train(max_epochs, enable_progress_bar=False)
    minutes = (time.process_time() - started) / 60
    folder = ROOT / FOLDER / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    save_small(model, folder)
    known = {"anndata_version": version("anndata"), "model_parent_module": "scgen_diffusion.model"}
    metadata = HubMetadata.from_dir(str(folder), **known)
    metadata.save(str(folder / "_scvi_required_metadata.json"), overwrite=True)
    empty = empty_cells(cells, chosen.keys)  # the hub loads no model without a file of cells
    if isinstance(empty, MuData):
        empty.write(folder / "mdata.h5mu", compression="gzip")
    else:
        empty.write_h5ad(folder / "adata.h5ad", compression="gzip")
    for package in ("scvi", "anndata"):
        number = version(f"{package}-tools" if package == "scvi" else package)
        card = re.sub(rf"^- {package}_version:.*$", f"- {package}_version:{number}", card, flags=re.MULTILINE)
    write_text(folder / "README.md", card)
    sizes = {"n_training_cells": cells.n_obs, "n_held_out_cells": held_out.n_obs, "n_genes": rna_of(cells).n_vars}
    costs = {"train_minutes": minutes, "size_mb": (folder / "model.pt").stat().st_size / 1e6, **sizes}
    store(name, pd.DataFrame({"part": "cost", "metric": list(costs), "value": list(costs.values())}).assign(**source))


def save_small(model: SCLDM, folder: Path) -> None:
    """Save a model in less than half the space: weights in half precision, the prior's as their average.

    Loading turns them into single precision. Statistics of the cells, such as library sizes, stay as they are.
    """
    model.save(folder, overwrite=True)
    content = torch.load(folder / "model.pt", weights_only=True)
    weights = content["model_state_dict"]
    for key, _ in model.module.named_parameters():
        weights[key] = weights[key].half()
    for key in weights:
        if key.startswith("prior."):  # the same tensor under both names is in the file once
            weights[key] = weights[key.replace("prior.", "averaged_prior.module.", 1)]
    torch.save(content, folder / "model.pt")


def empty_cells(cells: Cells, keys: Sequence[str]) -> Cells:
    """Return none of the cells, with their genes and conditions."""
    if isinstance(cells, MuData):
        empty = mudata_of({name: empty_cells(part, ()) for name, part in cells.mod.items()})
        empty.obs[list(keys)] = cells.obs[list(keys)][:0]
        return empty
    obs = cells.obs[list(keys)][:0]
    return ad.AnnData(sp.csr_matrix((0, cells.n_vars), dtype=np.float32), obs=obs, var=cells.var[[]])


def store(name: str, table: pd.DataFrame) -> None:
    """Add figures of a model, in place of those of the same parts."""
    columns = ["model", "part", "metric", "group", "value", "real", "no_change", "mean_shift"]
    content = (ROOT / FOLDER / name / "model.pt").read_bytes()  # tests know by its hash that the shipped one was judged
    source = describe_source("torch", "scvi-tools", "anndata") | {
        "file": f"sha256:{hashlib.sha256(content).hexdigest()}"
    }
    table = table.assign(**{key: value for key, value in source.items() if key not in table}, model=name)
    table = table.reindex(columns=[*columns, *source]).fillna({"group": "all"})
    store_rows(FIGURES, table, ("model", "part"))


# --- judge ------------------------------------------------------------------------------------------------------------


def judge(name: str) -> None:
    """Compare cells of the saved model with held-out ones, and store the figures."""
    train, held_out = halves(name)
    keys, model = list(PRETRAINED[name].keys), models.load(ROOT / FOLDER / name, adata=False, accelerator="cpu")
    cells = model.generate(condition=held_out.obs[keys].reset_index(drop=True), seed=SEED)
    table = metrics.evaluate(held_out, cells, train=train, groupby=keys, max_cells=MAX_CELLS, seed=SEED)
    table = table[table["group"] == "all"].rename(columns={"modality": "part"})
    tables = [table if "part" in table else table.assign(part=RNA), attack(model, rna_of(train), rna_of(held_out))]
    if PRETRAINED[name].control_values:
        tables.append(perturbation(model, train, held_out, keys, *PRETRAINED[name].control_values.items()))
    store(name, pd.concat(tables, ignore_index=True))
    means = means_by_label(model, train, held_out, keys)
    store_rows(LABELS, means.assign(model=name)[["model", *means.columns]], ("model",))


def attack(model: SCLDM, train: ad.AnnData, held_out: ad.AnnData) -> pd.DataFrame:
    """Return how well membership inference tells training from held-out cells by many generated ones."""
    of_space, members = np.array_split(np.random.default_rng(SEED).permutation(train.n_obs), 2)
    space = metrics.ComparisonSpace.fit(train[of_space].copy(), layer="counts")
    outside, inside = (space.project(part, layer="counts") for part in (held_out, train[members].copy()))
    found = metrics.membership_inference(
        space.project(rna_of(model.generate(ATTACK_CELLS, seed=SEED + 1))), outside, inside, seed=SEED
    )
    n_cells = min(len(outside), len(members))
    values = {**found, "n_cells": n_cells, "auc_by_chance": 0.8 / n_cells**0.5}
    return pd.DataFrame({"part": "attack", "metric": list(values), "value": list(values.values())})


def perturbation(
    model: SCLDM, train: ad.AnnData, held_out: ad.AnnData, keys: Sequence[str], control_value: tuple[str, str]
) -> pd.DataFrame:
    """Judge what the model makes of held-out control cells, by cell type; types of few cells are left out."""
    key, value = control_value
    is_control = (held_out.obs[key] == value).to_numpy()
    control, real = held_out[is_control].copy(), held_out[~is_control].copy()
    (goal,) = real.obs[key].unique()
    predicted = model.predict_perturbation(control, {key: goal}, seed=SEED)
    groups = [name for name in keys if name != key]
    labels = [join_labels(cells.obs, groups) for cells in (control, real, predicted)]
    counts = pd.concat([pd.Series(each).value_counts() for each in labels], axis=1).fillna(0)
    large = counts.index[(counts >= MIN_CELLS).all(axis=1)]
    control, real, predicted = (
        cells[np.isin(each, large)].copy() for cells, each in zip((control, real, predicted), labels, strict=True)
    )
    how = {"control": control, "perturbation_key": key, "groupby": groups, "max_cells": MAX_CELLS, "seed": SEED}
    return metrics.evaluate(real, predicted, train=train, **how).assign(part="perturbation")


def means_by_label(model: SCLDM, train: Cells, held_out: Cells, keys: list[str]) -> pd.DataFrame:
    """Return mean counts and means of some genes (log-normalised) per label, of real and generated cells."""
    labels = np.concatenate([join_labels(part.obs, keys) for part in (train, held_out)])
    both = pd.concat([features(part, layer="counts") for part in (train, held_out)], ignore_index=True)
    asked = train.obs[keys].drop_duplicates()
    asked = asked.loc[asked.index.repeat(CELLS_PER_LABEL)].reset_index(drop=True)
    drawn = model.generate(condition=asked, seed=SEED + 2)
    generated = features(drawn).groupby(join_labels(drawn.obs, keys)).mean()
    real = both.groupby(labels).mean().loc[generated.index]
    table = pd.concat([real.stack().rename("real"), generated.stack().rename("generated")], axis=1)
    table = table.rename_axis(["label", "feature"]).reset_index()
    table.insert(1, "n_training_cells", table["label"].map(pd.Series(join_labels(train.obs, keys)).value_counts()))
    return table


def features(cells: Cells, layer: str | None = None) -> pd.DataFrame:
    """Return total counts, log-normalised values of some genes, and logarithms of the proteins, a row per cell."""
    rna = rna_of(cells)
    matrix = rna.X if layer is None else rna.layers[layer]
    genes = [gene for gene in IN_SUMMARY if gene in rna.var_names]
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    values = to_dense(matrix[:, rna.var_names.get_indexer(genes)]) / np.maximum(totals, 1)[:, None] * 1e4
    table = pd.DataFrame({"total_counts": totals} | dict(zip(genes, np.log1p(values).T, strict=True)))
    if isinstance(cells, MuData):
        proteins = cells[PROTEINS]
        counts = to_dense(proteins.X if layer is None else proteins.layers[layer])
        table = table.assign(**{f"{PROTEINS}:{n}": np.log1p(counts[:, i]) for i, n in enumerate(proteins.var_names)})
    return table


# --- cards ------------------------------------------------------------------------------------------------------------

#: Figures of the card, in words.
IN_WORDS = {
    "auc_boosting": "AUC, components (0.5 is perfect)",
    "auc_genes": "AUC, genes",
    "precision": "precision",
    "recall": "recall",
    "within_label_slope": "strength of correlations (1 is right)",
}
OF_PERTURBATION = {
    "mean_change_correlation": "correlation of the mean changes",
    "mean_change_error": "error of the mean changes",
}
PARTS = {RNA: "RNA", PROTEINS: "proteins", f"{RNA}+{PROTEINS}": "both"}
#: A marker is wrong if its means differ by more, on the scale of log1p of 10,000 counts per cell.
WRONG = 1.0
#: Cells of labels with fewer training cells are less accurate.
FEW = 20


def page_blocks(figures: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark: the cards, and the table of the models."""
    labels, blocks, rows = read_table(LABELS), {}, []
    for name in PRETRAINED:
        of_model, page = figures[figures["model"] == name], str(FOLDER / name / "README.md")
        by_part = {part: table.set_index("metric") for part, table in of_model.groupby("part")}
        cost, found, rna = by_part["cost"], by_part["attack"]["value"], by_part[RNA]
        n_cells = (f"{cost['value'][f'n_{part}_cells']:,.0f}" for part in ("training", "held_out"))
        source = ", ".join(str(cost.loc["train_minutes", key]) for key in ("date", "commit", "versions"))
        blocks[page, "training"] = "{} cells for training, {} held out. {}.".format(*n_cells, source)
        blocks[page, "attack"] = f"AUC {found['auc']:.2f}; by chance up to {0.5 + found['auc_by_chance']:.2f}."
        blocks[page, "figures"] = _figures(by_part)
        if "perturbation" in by_part:
            blocks[page, "perturbation"] = _perturbation(by_part["perturbation"])
        blocks[page, "labels"] = _labels(labels[labels["model"] == name])
        aucs = [f"{rna['value'][metric]:.2f} ({rna['real'][metric]:.2f})" for metric in ("auc_boosting", "auc_genes")]
        rows.append([f"`{name}`", *aucs, f"{found['auc']:.2f}"])
    table = markdown_table(["model", "AUC, PCs", "AUC, genes", "attack"], rows)
    return blocks | {("docs/how_to/pretrained.md", "pretrained"): table}


def _figures(by_part: dict[str, pd.DataFrame]) -> str:
    parts, rows = [part for part in PARTS if part in by_part], []
    for metric, words in IN_WORDS.items():
        found = [by_part[part].reindex([metric])[column].iloc[0] for part in parts for column in ("value", "real")]
        rows.append([words, *("" if pd.isna(value) else f"{value:.2f}" for value in found)])
    header = [word for part in parts for word in (PARTS[part] if len(parts) > 1 else "generated", "real")]
    return markdown_table(["", *header], rows)


def _perturbation(table: pd.DataFrame) -> str:
    columns = {"value": "predicted", "real": "real", "no_change": "no change", "mean_shift": "mean shift"}
    means = table.groupby(level="metric")[list(columns)].mean()
    rows = [[words, *(f"{value:.2f}" for value in means.loc[metric])] for metric, words in OF_PERTURBATION.items()]
    return markdown_table(["", *columns.values()], rows)


def _labels(labels: pd.DataFrame) -> str:
    """List the labels that have a wrong marker, and those of few training cells."""
    wrong, few = [], []
    for label, of_label in labels.groupby("label", sort=False):
        genes = of_label[of_label["feature"].isin(IN_SUMMARY)].set_index("feature")
        gene = (genes["real"] - genes["generated"]).abs().idxmax()
        real, generated = genes.loc[gene, ["real", "generated"]]
        text = f"{label.replace('|', '/')} ({genes['n_training_cells'].iloc[0]:,})"
        if abs(real - generated) > WRONG:
            wrong.append(f"{text}: {gene} {generated:.1f} instead of {real:.1f}")
        elif genes["n_training_cells"].iloc[0] < FEW:
            few.append(text)
    return f"- **Do not use**: {'; '.join(wrong) or 'none'}.\n- **Careful**: {', '.join(few) or 'none'}."


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("names", nargs="*", choices=[*PRETRAINED, []], help="default: all")
    parser.add_argument("--steps", nargs="+", choices=("train", "judge"), default=("train", "judge"))
    parser.add_argument("--max-epochs", type=int, help="of each stage, to try the command out")
    chosen = start(parser)
    for name in chosen.names or PRETRAINED:
        if "train" in chosen.steps:
            train(name, chosen.max_epochs)
        if "judge" in chosen.steps:
            judge(name)


if __name__ == "__main__":
    main()
