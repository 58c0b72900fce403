"""Make the pretrained models that the package ships: train, judge on held-out cells, and write the model cards.

    python -m benchmarks.pretrained                       # all models; some minutes of one core each
    python -m benchmarks.pretrained pbmc3k                # one of them
    python -m benchmarks.pretrained --steps judge card    # judge the models that are there

A model goes to ``src/scgen_diffusion/pretrained/NAME``, its figures to ``results/pretrained.csv``, and the means of its
cells by label to ``results/pretrained_labels.csv``. The model that is judged is the file that is shipped.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import textwrap
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
import torch
from mudata import MuData

from benchmarks.quality.splits import Split, join_labels, split_cells, to_dense
from benchmarks.tables import (
    ROOT,
    describe_commit,
    describe_source,
    markdown_table,
    read_table,
    store_rows,
    write_text,
)
from scgen_diffusion import datasets, metrics
from scgen_diffusion import model as models
from scgen_diffusion.data import mudata_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scgen_diffusion.model import SCLDM

    Cells = ad.AnnData | MuData

logger = logging.getLogger("benchmarks.pretrained")

FOLDER = ROOT / "src" / "scgen_diffusion" / "pretrained"
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
    """What a model is trained on, and what its card says.

    Attributes
    ----------
    keys
        Columns of ``obs`` that the model generates by.
    cells, terms, citation
        The data: what they are, the terms that they come under, and whom to cite.
    use, limits
        Python code of the card, and what the model cannot do, in sentences of their own.
    control_values
        As of ``setup_anndata``; with them the model learns a transport.
    """

    keys: tuple[str, ...]
    title: str
    cells: str
    terms: str
    citation: str
    use: str
    limits: tuple[str, ...]
    control_values: dict[str, str] | None = None
    class_name: str = "SCLDM"


ONE_DONOR = "All cells come from one donor and one experiment."
PRETRAINED = {
    "pbmc3k": Pretrained(
        keys=("cell_type",),
        title="9 blood cell types",
        cells="2,638 peripheral blood mononuclear cells of a healthy donor (10x Genomics 3k PBMCs), with the labels "
        "of the Seurat tutorial; `scgen_diffusion.datasets.pbmc3k()`.",
        terms="Data: CC BY 4.0 (10x Genomics). Downloaded from github.com/rnabioco/clustifyr (MIT).",
        citation=(
            "Zheng et al. 2017, Massively parallel digital transcriptional profiling of single cells, Nat Commun "
            "8:14049"
        ),
        use="""\
b_cells = model.generate(100, condition={"cell_type": "B"}, seed=0)
scgd.pl.umap(synthetic, b_cells, color="cell_type")""",
        limits=(
            ONE_DONOR,
            "It learned platelets from 11 cells: one in ten generated ones has none of their marker PPBP, which all "
            "real ones have.",
        ),
    ),
    "kang_ifnb": Pretrained(
        keys=("cell_type", "condition"),
        title="13 blood cell types, with and without interferon beta",
        cells="2,800 peripheral blood mononuclear cells of lupus patients, untreated or six hours with interferon "
        "beta, thirteen cell types; `scgen_diffusion.datasets.kang_ifnb()`.",
        terms=(
            "Data: GEO GSE96583, public, without a stated licence. Downloaded from github.com/chthub/rDeepmaps (MIT)."
        ),
        citation="Kang et al. 2018, Multiplexed droplet single-cell RNA-sequencing using natural genetic variation, "
        "Nat Biotechnol 36:89",
        use="""\
asked = {"cell_type": "CD14 Mono", "condition": "control"}
control = model.generate(200, condition=asked, seed=0)  # or measured control cells
treated = model.predict_perturbation(control, {"condition": "stimulated"}, seed=0)""",
        limits=(
            "It knows one stimulus, one dose and one time point. All thirteen types were seen with and without it, so "
            "this model does not show how well unseen combinations are predicted.",
            "The donor is not a condition: cells of all patients are mixed.",
        ),
        control_values={"condition": "control"},
    ),
    "pbmc10k_citeseq": Pretrained(
        keys=("cell_type",),
        title="7 blood cell types, RNA and 14 surface proteins",
        cells="5,994 peripheral blood mononuclear cells (10x Genomics pbmc_10k_protein_v3, CITE-seq), RNA and 14 "
        "surface proteins, seven cell types; `scgen_diffusion.datasets.pbmc10k_citeseq()`.",
        terms="Data: CC BY 4.0 (10x Genomics). Downloaded from github.com/YosefLab/totalVI_reproducibility (no "
        "licence file); labels from github.com/xianglin226/scMDC (Apache-2.0).",
        citation="Gayoso et al. 2021, Joint probabilistic modeling of single-cell multi-omic data with totalVI, Nat "
        "Methods 18:272; Lin et al. 2022, Clustering of single-cell multi-omics data with a multimodal deep learning method, "
        "Nat Commun 13:7705 (labels)",
        use="""\
nk = model.generate(100, condition={"cell_type": "NK"}, seed=0)
nk["rna"].X, nk["prot"].X  # counts of genes, counts of proteins""",
        limits=(
            ONE_DONOR,
            "Proteins are easier to tell from real ones than RNA is: see the table above.",
            "The 4,000 genes of the published table lack some markers, such as CD3E.",
        ),
        class_name="MULTISCLDM",
    ),
}


# --- cells ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halves:
    """Cells to train on and held-out ones; integer counts in `X` and in ``layers["counts"]``."""

    train: Cells
    held_out: Cells
    keys: tuple[str, ...]

    def rna(self, part: str) -> ad.AnnData:
        """Return the RNA of ``"train"`` or ``"held_out"``."""
        cells = getattr(self, part)
        return cells[RNA] if isinstance(cells, MuData) else cells


def split(name: str) -> Halves:
    """Hold out a quarter of the cells as the study of quality does, and keep 2 000 genes."""
    chosen, cells = PRETRAINED[name], getattr(datasets, name)()
    rna = cells[RNA] if isinstance(cells, MuData) else cells
    found: Split = split_cells(rna, chosen.keys, seed=SEED, kept_genes=MARKERS)
    if not isinstance(cells, MuData):
        return Halves(found.train, found.held_out, chosen.keys)

    def join(part: ad.AnnData) -> MuData:
        counts = cells[PROTEINS][part.obs_names].layers["counts"].copy()
        proteins = ad.AnnData(counts, obs=part.obs[[]], var=cells[PROTEINS].var[[]], layers={"counts": counts.copy()})
        joined = mudata_of({RNA: ad.AnnData(part.X, part.obs[[]], part.var, layers=part.layers), PROTEINS: proteins})
        joined.obs[list(chosen.keys)] = part.obs[list(chosen.keys)]
        return joined

    return Halves(join(found.train), join(found.held_out), chosen.keys)


def empty_cells(cells: Cells, keys: Sequence[str]) -> Cells:
    """Return none of the cells, with their genes and conditions."""
    if isinstance(cells, MuData):
        empty = mudata_of({name: empty_cells(part, ()) for name, part in cells.mod.items()})
        empty.obs[list(keys)] = cells.obs[list(keys)][:0]
        return empty
    obs = cells.obs[list(keys)][:0]
    return ad.AnnData(sp.csr_matrix((0, cells.n_vars), dtype=np.float32), obs=obs, var=cells.var[[]])


def write_empty(halves: Halves, folder: Path) -> None:
    """Write a file without rows, for ``scvi.hub.HubModel``, which loads no model that has no file of cells."""
    empty = empty_cells(halves.train, halves.keys)
    if isinstance(empty, MuData):
        empty.write(folder / "mdata.h5mu", compression="gzip")
    else:
        empty.write_h5ad(folder / "adata.h5ad", compression="gzip")


# --- train ------------------------------------------------------------------------------------------------------------


def train(name: str, max_epochs: int | None = None) -> None:
    """Train with defaults, and put the model into its folder; noting what that cost."""
    chosen, halves, commit = PRETRAINED[name], split(name), describe_commit()
    scvi.settings.seed = SEED
    cls = getattr(models, chosen.class_name)
    cells = halves.train.copy()
    register = cls.setup_mudata if isinstance(cells, MuData) else cls.setup_anndata
    register(cells, condition_keys=list(chosen.keys), control_values=chosen.control_values)  # counts in X
    model = cls(cells)
    started = time.process_time()
    model.train(max_epochs, enable_progress_bar=False)
    minutes = (time.process_time() - started) / 60
    whole = ROOT / "benchmarks" / "cells" / "pretrained" / name  # in full precision, to compare
    model.save(whole, overwrite=True)
    save_small(model, FOLDER / name)
    write_metadata(FOLDER / name)
    write_empty(halves, FOLDER / name)
    costs = {
        "train_minutes": minutes,
        "size_mb": (FOLDER / name / "model.pt").stat().st_size / 1e6,
        "n_training_cells": halves.train.n_obs,
        "n_held_out_cells": halves.held_out.n_obs,
        "n_genes": halves.rna("train").n_vars,
    }
    table = pd.DataFrame({"part": "cost", "metric": list(costs), "value": list(costs.values())})
    store(name, table.assign(commit=commit))


def save_small(model: SCLDM, folder: Path) -> None:
    """Save a model in less than half the space: weights in half precision, the prior's as their average.

    Loading turns them into single precision. Statistics of the cells, such as library sizes, stay as they are.
    """
    model.save(folder, overwrite=True)
    path = folder / "model.pt"
    content = torch.load(path, weights_only=True)
    weights = content["model_state_dict"]
    for key, _ in model.module.named_parameters():
        weights[key] = weights[key].half()
    for key in weights:
        if key.startswith("prior."):  # the same tensor under both names is in the file once
            weights[key] = weights[key.replace("prior.", "averaged_prior.module.", 1)]
    torch.save(content, path)


def write_metadata(folder: Path) -> None:
    """Write what ``scvi.hub.HubModel`` reads beside the card."""
    from scvi.hub import HubMetadata

    known = {"anndata_version": version("anndata"), "model_parent_module": "scgen_diffusion.model"}
    HubMetadata.from_dir(str(folder), **known).save(str(folder / "_scvi_required_metadata.json"), overwrite=True)


# --- judge ------------------------------------------------------------------------------------------------------------


def judge(name: str, folder: Path) -> None:
    """Compare cells of the saved model with held-out ones, and store the figures."""
    halves, model = split(name), models.load(folder, adata=False, accelerator="cpu")
    keys = list(halves.keys)
    asked = halves.held_out.obs[keys].reset_index(drop=True)
    started = time.perf_counter()
    cells = model.generate(condition=asked, seed=SEED)
    rate = len(asked) / (time.perf_counter() - started)
    table = metrics.evaluate(halves.held_out, cells, train=halves.train, groupby=keys, max_cells=MAX_CELLS, seed=SEED)
    table = table[table["group"] == "all"].rename(columns={"modality": "part"})
    tables = [table if "part" in table else table.assign(part=RNA), attack(model, halves)]
    tables.append(pd.DataFrame([{"part": "cost", "metric": "cells_per_second", "value": rate}]))
    if PRETRAINED[name].control_values:
        tables.append(perturbation(model, halves))
    store(name, pd.concat(tables, ignore_index=True))
    summary = means_by_label(model, halves).assign(model=name)
    store_rows(LABELS, summary[["model", *summary.columns.drop("model")]], ("model",))


def attack(model: SCLDM, halves: Halves) -> pd.DataFrame:
    """Return how well membership inference tells training from held-out cells by many generated ones."""
    train = halves.rna("train")
    rows = np.random.default_rng(SEED).permutation(train.n_obs)
    of_space, members = np.array_split(rows, 2)
    space = metrics.ComparisonSpace.fit(train[of_space].copy(), layer="counts")
    drawn = model.generate(ATTACK_CELLS, seed=SEED + 1)
    drawn = drawn[RNA] if isinstance(drawn, MuData) else drawn
    held_out = space.project(halves.rna("held_out"), layer="counts")
    found = metrics.membership_inference(
        space.project(drawn), held_out, space.project(train[members].copy(), layer="counts"), seed=SEED
    )
    n_cells = min(len(held_out), len(members))
    values = {"auc": found.auc, "advantage": found.advantage, "n_cells": n_cells, "auc_by_chance": 0.8 / n_cells**0.5}
    return pd.DataFrame({"part": "attack", "metric": list(values), "value": list(values.values())})


def perturbation(model: SCLDM, halves: Halves) -> pd.DataFrame:
    """Judge what the transport makes of held-out control cells, by cell type."""
    ((key, control_value),) = model.registry["setup_args"]["control_values"].items()
    is_control = (halves.held_out.obs[key] == control_value).to_numpy()
    control, real = halves.held_out[is_control].copy(), halves.held_out[~is_control].copy()
    (goal,) = real.obs[key].unique()
    predicted = model.predict_perturbation(control, {key: goal}, seed=SEED)
    groups = [name for name in halves.keys if name != key]
    control, real, predicted = _of_large_groups(groups, control, real, predicted)
    table = metrics.evaluate(
        real,
        predicted,
        train=halves.train,
        control=control,
        perturbation_key=key,
        groupby=groups,
        max_cells=MAX_CELLS,
        seed=SEED,
    )
    return table.assign(part="perturbation")


def _of_large_groups(groups: list[str], *sets: ad.AnnData) -> list[ad.AnnData]:
    """Keep the cells of groups that have enough cells in every set."""
    labels = [join_labels(cells.obs, groups) for cells in sets]
    counts = pd.concat([pd.Series(each).value_counts() for each in labels], axis=1).fillna(0)
    large = counts.index[(counts >= MIN_CELLS).all(axis=1)]
    return [cells[np.isin(each, large)].copy() for cells, each in zip(sets, labels, strict=True)]


def means_by_label(model: SCLDM, halves: Halves) -> pd.DataFrame:
    """Return mean counts and means of some genes (log-normalised) per label, of real and generated cells."""
    parts = [getattr(halves, part) for part in ("train", "held_out")]
    labels = np.concatenate([join_labels(part.obs, halves.keys) for part in parts])
    learned = pd.Series(join_labels(halves.train.obs, halves.keys)).value_counts()
    both = pd.concat([features(part, layer="counts") for part in parts], ignore_index=True)
    asked = halves.train.obs[list(halves.keys)].drop_duplicates()
    asked = asked.loc[asked.index.repeat(CELLS_PER_LABEL)].reset_index(drop=True)
    drawn = model.generate(condition=asked, seed=SEED + 2)
    generated = features(drawn).groupby(join_labels(drawn.obs, halves.keys)).mean()
    real = both.groupby(labels).mean().loc[generated.index]
    table = pd.concat([real.stack().rename("real"), generated.stack().rename("generated")], axis=1)
    table = table.rename_axis(["label", "feature"]).reset_index()
    table.insert(1, "n_training_cells", table["label"].map(learned))
    return table


def features(cells: Cells, layer: str | None = None) -> pd.DataFrame:
    """Return total counts, log-normalised values of some genes, and logarithms of the proteins, a row per cell."""
    rna = cells[RNA] if isinstance(cells, MuData) else cells
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


def store(name: str, table: pd.DataFrame) -> None:
    """Add figures of a model, in place of those of the same parts."""
    columns = ["model", "part", "metric", "group", "value", "floor", "no_change", "mean_shift"]
    source = describe_source("torch", "scvi-tools", "anndata")
    source |= {"commit": describe_commit(), "file": fingerprint(FOLDER / name / "model.pt")}
    table = table.assign(**{key: value for key, value in source.items() if key not in table}, model=name)
    table = table.reindex(columns=[*columns, *source]).fillna({"group": "all"})
    store_rows(FIGURES, table, ("model", "part", "metric"))


def fingerprint(path: Path) -> str:
    """Return the hash of a file, by which the tests know that the model that was judged is the one that is shipped."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


# --- card -------------------------------------------------------------------------------------------------------------


#: Figures of the card, in words.
IN_WORDS = {
    "auc_boosting": "AUC of a classifier, components (0.5 is perfect)",
    "auc_genes": "AUC of a classifier, genes (0.5 is perfect)",
    "precision": "precision",
    "recall": "recall",
    "within_label_correlation": "correlation between genes, within labels",
    "within_label_slope": "strength of these correlations (1 is right)",
    "transfer_f1": "F1 of a classifier trained on generated cells",
    "nearest_train_ratio": "distance to the nearest training cell (1 is right)",
    "membership_auc": "AUC of membership inference (0.5 is perfect)",
    "copied_cells": "share of cells that copy a training cell",
}
OF_PERTURBATION = {
    "mean_change_correlation": "correlation of the mean changes",
    "mean_change_correlation_top_100": "the same, 100 most changed genes",
    "mean_change_error": "error of the mean changes",
}
IN_WORDS_BY_PART = {RNA: "RNA", PROTEINS: "proteins", f"{RNA}+{PROTEINS}": "both"}


def card(name: str, figures: pd.DataFrame, labels: pd.DataFrame) -> str:
    """Write the model card of a model, from the stored figures."""
    chosen = PRETRAINED[name]
    figures, labels = figures[figures["model"] == name], labels[labels["model"] == name]
    cost = figures[figures["part"] == "cost"].set_index("metric")
    trained = cost.loc["train_minutes"]
    versions = dict(each.rsplit(" ", 1) for each in trained["versions"].split(", "))
    size = {key: f"{cost['value'][key]:,.0f}" for key in ("n_genes", "n_training_cells", "n_held_out_cells")}
    features = f"{size['n_genes']} genes" + (" and 14 proteins" if chosen.class_name == "MULTISCLDM" else "")
    kind = "multimodal" if chosen.class_name == "MULTISCLDM" else "rna"
    transport = " It also learns a transport from control to treated cells." if chosen.control_values else ""
    values = "\n".join(
        f"- `{key}`: {', '.join(dict.fromkeys(label.split('|')[i] for label in labels['label']))}"
        for i, key in enumerate(chosen.keys)
    )
    about = (
        f"A small, trained `{chosen.class_name}` of scgen-diffusion. It generates cells with counts of {features}, by "
        f"{' and '.join(f'`{key}`' for key in chosen.keys)}. It comes with the package and needs no data and no "
        "network."
    )
    cells_file = "mdata.h5mu" if kind == "multimodal" else "adata.h5ad"
    about_training = (
        f"A quarter of the cells, stratified by label, was held out ({size['n_held_out_cells']} cells). The model "
        f"learned from the other {size['n_training_cells']}. Genes: the most variable ones among the training cells, "
        f"and known marker genes. All settings are defaults.{transport} It was trained on "
        f"{trained['date']}, in some minutes of one CPU core (commit {trained['commit']}; {trained['versions']}). The "
        f"weights are stored in half precision. `python -m benchmarks.pretrained {name}` makes the model again."
    )
    limits = "\n".join(map(_item, (*chosen.limits, *LIMITS)))
    return f"""\
---
license: bsd-3-clause
library_name: scvi-tools
tags:
- biology
- genomics
- single-cell
- model_cls_name:{chosen.class_name}
- scvi_version:{versions["scvi-tools"]}
- anndata_version:{versions["anndata"]}
- modality:{kind}
- tissue:blood
- annotated:True
---

# {name}: {chosen.title}

{_wrap(about)}

## Use

```python
import scgen_diffusion as scgd

model = scgd.model.load("{name}")
synthetic = model.generate(700, seed=0)  # labels as frequent as in the data
{chosen.use}
```

## Data

{_item(chosen.cells)}
{_item(f"{chosen.terms} The weights are under BSD-3-Clause, like the package.")}
{_item(f"Please cite: {chosen.citation}.")}

{_wrap(f"The folder holds no cells. `{cells_file}`, which `scvi.hub.HubModel` asks for, has genes and conditions but no rows.")}

## Conditions

{values}

## Training

{_wrap(about_training)}

## How good are the cells?

As many generated as held-out cells, with the same labels. *Real cells*: the score of other real cells.

{_figures_table(figures)}
{_perturbation_table(figures)}
## Is it private?

{_attack_text(figures)}

## Limits

{limits}

## Labels

Mean total counts of all real cells and of {CELLS_PER_LABEL} generated ones. *Wrong*: the marker that is furthest off, with its real
and generated mean, if they differ by more than {WRONG:g} (`log1p` of 10,000 counts per cell).

{_labels_table(labels)}
"""


LIMITS = (
    "Do not use labels that have a gene in the last column of the table of labels. They had too few training cells.",
    "It is an example for trying out and teaching. For research, train a model on your own cells.",
    "Generated cells are not measurements. They prove nothing about biology or patients.",
)
#: A marker is wrong if its means differ by more, on the scale of log1p of 10 000 counts per cell.
WRONG = 1.0


def _figures_table(figures: pd.DataFrame) -> str:
    table = figures[figures["metric"].isin(IN_WORDS) & figures["part"].isin(IN_WORDS_BY_PART)]
    parts = [part for part in IN_WORDS_BY_PART if part in set(table["part"])]
    by_part = {part: table[table["part"] == part].set_index("metric") for part in parts}
    header = [""]
    for part in parts:
        header += [IN_WORDS_BY_PART[part] if len(parts) > 1 else "generated", "real cells"]
    rows = [
        [words, *(_number(of_part, metric, column) for of_part in by_part.values() for column in ("value", "floor"))]
        for metric, words in IN_WORDS.items()
    ]
    return markdown_table(header, rows)


def _number(table: pd.DataFrame, metric: str, column: str) -> str:
    return f"{table[column][metric]:.2f}" if metric in table.index and np.isfinite(table[column][metric]) else ""


def _perturbation_table(figures: pd.DataFrame) -> str:
    table = figures[(figures["part"] == "perturbation") & figures["metric"].isin(OF_PERTURBATION)]
    if table.empty:
        return ""
    columns = {"value": "predicted", "floor": "real cells", "no_change": "no change", "mean_shift": "mean shift"}
    means = table.groupby("metric")[list(columns)].mean()
    rows = [[words, *(f"{value:.2f}" for value in means.loc[metric])] for metric, words in OF_PERTURBATION.items()]
    return f"""
`predict_perturbation` of held-out control cells, beside held-out treated cells; means over {table["group"].nunique()} cell types.
*Mean shift* adds the mean change of all training cells. All combinations were seen in training.

{markdown_table(["", *columns.values()], rows)}
"""


def _attack_text(figures: pd.DataFrame) -> str:
    found = figures[figures["part"] == "attack"].set_index("metric")["value"]
    return _wrap(
        f"Membership inference with {ATTACK_CELLS:,} generated cells tells {found['n_cells']:,.0f} training cells from "
        f"as many held-out ones with an AUC of {found['auc']:.2f}. 0.5 says that nothing leaks, and chance alone gives "
        f"up to {0.5 + found['auc_by_chance']:.2f}. That one attack fails does not prove privacy. The file also holds "
        "the number of training cells of every label, and quantiles of their total counts, which are exact for labels "
        "of few cells."
    )


def _labels_table(labels: pd.DataFrame) -> str:
    rows = []
    for label, of_label in labels.groupby("label", sort=False):
        means = of_label[~of_label["feature"].str.startswith(f"{PROTEINS}:")].set_index("feature")
        totals, genes = means.loc["total_counts"], means.drop(index="total_counts")
        gene = (genes["real"] - genes["generated"]).abs().idxmax()
        real, generated = genes.loc[gene, ["real", "generated"]]
        wrong = f"{gene}: {real:.1f}, {generated:.1f}" if abs(real - generated) > WRONG else ""
        numbers = [f"{totals[name]:,.0f}" for name in ("n_training_cells", "real", "generated")]
        rows.append([label.replace("|", ", "), *numbers, wrong])
    return markdown_table(["label", "training cells", "real", "generated", "wrong"], rows)


def _wrap(text: str, **indents: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False, **indents)


def _item(text: str) -> str:
    return _wrap(text, initial_indent="- ", subsequent_indent="  ")


def page_blocks(figures: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    rows = []
    for name in PRETRAINED:
        of_model = figures[figures["model"] == name]
        found = of_model[of_model["part"].isin([RNA, "attack"])].set_index(["part", "metric"])
        aucs = [
            f"{found['value'][RNA, metric]:.2f} ({found['floor'][RNA, metric]:.2f})"
            for metric in ("auc_boosting", "auc_genes")
        ]
        attack_auc = f"{found['value']['attack', 'auc']:.2f}"
        rows.append([f"`{name}`", *aucs, attack_auc])
    header = ["model", "AUC, PCs", "AUC, genes", "attack"]
    return {("docs/how_to/pretrained.md", "pretrained"): markdown_table(header, rows)}


# --- command line -----------------------------------------------------------------------------------------------------


def run(names: Sequence[str], steps: Sequence[str], max_epochs: int | None = None) -> None:
    """Take the steps for each model."""
    for name in names:
        for step in ("train", "judge", "card"):
            if step not in steps:
                continue
            logger.info("%s: %s", name, step)
            if step == "train":
                train(name, max_epochs)
            elif step == "judge":
                judge(name, FOLDER / name)
            else:
                write_text(FOLDER / name / "README.md", card(name, read_table(FIGURES), read_table(LABELS)))


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PRETRAINED, []], help="default: all")
    parser.add_argument("--steps", nargs="+", choices=("train", "judge", "card"), default=("train", "judge", "card"))
    parser.add_argument("--max-epochs", type=int, help="of each stage, to try the command out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run(arguments.names or list(PRETRAINED), arguments.steps, arguments.max_epochs)


if __name__ == "__main__":
    main()
