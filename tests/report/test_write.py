"""The report as a user gets it: one file, whole, true to the table, and shown rightly by a browser."""

import re
from html.parser import HTMLParser

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

import scgen_diffusion as sgd

pytestmark = pytest.mark.usefixtures("without_umap")


def cells(seed, n_cells=150, n_genes=60):
    """Three labels with markers of their own, negative-binomial counts."""
    rng = np.random.default_rng(seed)
    labels = np.resize(["A & B", "T <$_$>", "naïve"], n_cells)
    profile = np.random.default_rng(0).gamma(0.5, 2.0, (3, n_genes))
    means = profile[pd.Categorical(labels).codes] * rng.gamma(10, 0.1, (n_cells, 1))
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=[f"cell-{seed}-{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene-$_$-{i}" for i in range(n_genes)])
    return AnnData(sparse.csr_matrix(rng.poisson(means).astype(np.float32)), obs=obs, var=var)


@pytest.fixture
def without_rendering(monkeypatch):
    """Make the pictures and leave them unrendered, which takes seconds, where words are tested."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


TABLE = pd.DataFrame(
    [["precision", group, 0.9, 0.9, 0.5, 0.8, 1.0, "higher"] for group in ("all", "A & B")],
    columns=["metric", "group", "value", "real", "shuffled", "low", "high", "better"],
)


@pytest.fixture(scope="module")
def written(without_umap, tmp_path_factory):
    """A report on three draws from one distribution, and the table that it shows."""
    real, synthetic, train = cells(1), cells(2), cells(3, 300)
    quick = [name for name, metric in sgd.metrics.CATALOGUE.items() if "all" in metric.scopes and not metric.slow]
    options = {"groupby": "cell_type", "metrics": quick, "n_bootstrap": 5}
    table = sgd.metrics.evaluate(real, synthetic, train=train, **options)
    path = tmp_path_factory.mktemp("report") / "report.html"
    labelled = {"groupby": "cell_type", "title": "A <title>"}
    assert sgd.report.write(real, synthetic, path, train=train, table=table, **labelled) == path
    return path, table


class Parsed(HTMLParser):
    """Tags, their links and sources, and the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.links, self.images, self.identifiers, self.text = [], [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in {"meta", "img", "line", "rect", "circle", "br"}:
            self.open.append(tag)
        if "id" in attributes:
            self.identifiers.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"{tag} closes another tag"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_page_needs_no_other_file_and_no_network_and_every_tag_is_closed(written):
    page = written[0].read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert not parsed.open
    assert parsed.images
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.images)
    assert all(link.startswith("#") for link in parsed.links)
    captions = [image["alt"] for image in parsed.images]
    assert all(captions)
    assert len(set(captions)) == len(captions)
    assert not re.search(r"url\(|@import|<link|<script|<iframe", page)
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.identifiers)
    assert len(set(parsed.identifiers)) == len(parsed.identifiers)


def test_text_of_the_user_is_escaped_and_the_summary_and_what_each_metric_measures_are_shown(written):
    path, table = written
    page = path.read_text(encoding="utf-8")
    assert "A &lt;title&gt;" in page
    assert "A <title>" not in page
    text = Parsed(page).text
    summary = sgd.report.summary(table)
    assert summary.headline in text
    for metric in summary.table["metric"]:
        assert metric in text
        assert re.sub(r" \(``\w+``\)|``", "", sgd.metrics.CATALOGUE[metric].text) in text


@pytest.mark.usefixtures("without_rendering")
def test_every_label_is_shown_with_its_cells(tmp_path):
    real, synthetic = cells(1), cells(2)
    for adata in (real, synthetic):
        adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories(["rare"])
    real.obs.loc[real.obs_names[:5], "cell_type"] = "rare"
    path = sgd.report.write(real, synthetic, tmp_path / "rare.html", groupby="cell_type", table=TABLE)
    rows = re.findall(r"<tr>(<td>[^<]*</td><td>\d+</td><td>\d+</td>.*?)</tr>", path.read_text(encoding="utf-8"))
    cells_of = [re.findall(r">([^<>]+)<", row) for row in rows]
    assert {first: tuple(others) for first, *others in cells_of} == {
        "A &amp; B": ("48", "50", "0.9 ", "(0.9)", "–", "ok"),
        "T &lt;$_$&gt;": ("48", "50", "–", "–", "too few cells"),
        "naïve": ("49", "50", "–", "–", "too few cells"),
        "rare": ("5", "0", "–", "–", "too few cells"),
    }


@pytest.mark.usefixtures("without_rendering")
def test_a_lost_gene_is_the_first_of_those_that_differ(tmp_path):
    real, synthetic = cells(1), cells(2)
    lost = int(np.argmax(real.X[(real.obs["cell_type"] == "naïve").to_numpy()].sum(0)))
    synthetic.X = synthetic.X.multiply(np.arange(real.n_vars) != lost).tocsr()
    for groupby, label in (("cell_type", "<td>naïve</td>"), (None, "")):
        path = sgd.report.write(real, synthetic, tmp_path / "lost.html", groupby=groupby, table=TABLE[:1])
        first = re.search(
            r"Genes that differ most.*?<tbody>\s*<tr>(.*?)</tr>", path.read_text(encoding="utf-8"), re.DOTALL
        )
        assert first[1].startswith(f"<td>gene-$_$-{lost}</td>{label}")
        assert "<td>0</td>" in first[1]


@pytest.mark.usefixtures("without_pictures")
def test_what_is_worse_is_shown_and_what_passed_is_folded(tmp_path):
    table = pd.concat([TABLE, TABLE.assign(metric="recall", value=0.3, low=0.2, high=0.4)])
    path = sgd.report.write(cells(1), cells(2), tmp_path / "report.html", groupby="cell_type", table=table)
    page = path.read_text(encoding="utf-8")
    shown, folded = page[: page.index("<details>")], page[page.index("<details>") : page.rindex("</details>")]
    assert ["recall" in part for part in (shown[shown.index('id="scores"') :], folded)] == [True, False]
    assert ["precision" in part for part in (shown[shown.index('id="scores"') :], folded)] == [False, True]
    assert "1 ok" in folded
    assert '<span class="level warning">warning</span> <small>recall</small>' in page  # of the label


@pytest.mark.usefixtures("without_rendering")
def test_cells_without_labels_counts_or_training_get_a_report_without_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    logarithms = [cells(seed) for seed in (1, 2)]
    logarithms[1].uns["scgen_diffusion"] = {"model": "its tool"}
    for adata in logarithms:
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    text = Parsed(sgd.report.write(*logarithms, "~/bare.html").read_text(encoding="utf-8")).text
    assert "its tool" in text
    assert "training cells not given" in text
    assert not [section for section in ("total counts of both", "Labels", "Training") if section in text]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cells": 0}, "`max_cells`"),
        ({"groupby": ["cell_type"] * 2}, "more than once"),
        ({"groupby": "batch"}, "`table`.*'A & B'"),  # other labels
    ],
)
def test_arguments_are_checked_beside_a_table(tmp_path, options, message):
    real, synthetic = (AnnData(own.X, own.obs.assign(batch="x"), own.var) for own in (cells(1), cells(2)))
    with pytest.raises(ValueError, match=message):
        sgd.report.write(real, synthetic, tmp_path / "report.html", table=TABLE, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_rendering")
def test_generated_cells_may_lack_the_layer_of_the_real_ones(tmp_path):
    real, synthetic = cells(1), cells(2)
    real.layers["raw"] = real.X.copy()
    table = sgd.metrics.evaluate(real, synthetic, layer="raw", metrics="library_size_ks", n_bootstrap=0)
    path = sgd.report.write(real, synthetic, tmp_path / "layer.html", layer="raw", table=table)
    assert "total counts of both" in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_rendering")
def test_cells_of_one_label_get_a_report_without_marker_genes(tmp_path):
    real, synthetic = (cells(seed)[::3].copy() for seed in (1, 2))
    path = sgd.report.write(real, synthetic, tmp_path / "one.html", groupby="cell_type", table=TABLE)
    assert "marker genes" not in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_rendering")
def test_several_label_columns_are_joined_and_the_cells_stay_as_they_are(tmp_path):
    real, synthetic = cells(1), cells(2)
    for adata in (real, synthetic):
        adata.obs["batch"] = pd.Categorical(np.resize(["x", "y"], adata.n_obs))
    before = [(adata.X.copy(), adata.obs.copy(), set(adata.uns), set(adata.obsm)) for adata in (real, synthetic)]
    keys = ["cell_type", "batch"]
    table = TABLE.replace({"group": {"A & B": "A & B|x"}})
    path = sgd.report.write(real, synthetic, tmp_path / "joined.html", groupby=keys, table=table)
    assert "cell_type|batch" in Parsed(path.read_text(encoding="utf-8")).text
    for adata, (x, obs, uns, obsm) in zip((real, synthetic), before, strict=True):
        assert (adata.X != x).nnz == 0
        pd.testing.assert_frame_equal(adata.obs, obs)
        assert (set(adata.uns), set(adata.obsm)) == (uns, obsm)


@pytest.mark.usefixtures("without_rendering")
def test_cells_may_be_views_of_files(tmp_path):
    cells(1).write_h5ad(tmp_path / "real.h5ad")
    cells(2).write_h5ad(tmp_path / "synthetic.h5ad")
    real, synthetic = (ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")[:100] for name in ("real", "synthetic"))
    page = sgd.report.write(real, synthetic, tmp_path / "report.html", groupby="cell_type", table=TABLE).read_text()
    assert "100 synthetic cells, 100 real cells held out" in page


@pytest.mark.parametrize(
    ("synthetic", "place", "error", "name"),
    [
        (None, "report.pdf", ValueError, "`path`"),
        (None, "absent/report.html", FileNotFoundError, "`path`"),
        (cells(2).X.toarray(), "report.html", TypeError, "`synthetic`"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(tmp_path, synthetic, place, error, name):
    with pytest.raises(error, match=name):
        sgd.report.write(cells(1), synthetic, tmp_path / place)
