"""Data sets: counts, labels, and a download that can be trusted."""

from __future__ import annotations

import os
import re
from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pooch
import pytest
import requests
from scipy import sparse

from scgen_diffusion import datasets
from scgen_diffusion.datasets import _loaders as loaders
from scgen_diffusion.datasets import _originals as originals

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ADDRESS = "https://example.org/file.rda"
ORIGINALS = Path(os.environ.get(originals.DATA_DIR_VARIABLE, SHARED_DATA / "originals"))

CONVERTED = {
    "pbmc3k": ("pbmc3k.h5ad", (2638, 13714)),
    "kang_ifnb": ("kang_ifnb.h5ad", (2800, 14053)),
    "paul15": ("paul15.h5ad", (2660, 3004)),
    "norman_mcfaline_devel": ("perturb_norman_mcfaline.h5ad", (5955, 500)),
    "worm_embryo": ("worm_embryo.h5ad", (1805, 10000)),
}
#: A file of each set that may be absent where those of the other sets are.
OWN_FILES = {"osmfish_cortex": "osmFISH_SScortex_mouse_all_cells.loom", "worm_embryo": "worm_embryo_rowdata.rds"}


@pytest.fixture(scope="module")
def load():
    """Load a data set from the original files, once per module, or skip where they are absent."""
    loaded = {}

    def load_once(name):
        if not (ORIGINALS / OWN_FILES.get(name, "pbmc_matrix.rda")).exists():
            pytest.skip(f"the original files are not in {ORIGINALS}; set {originals.DATA_DIR_VARIABLE}")
        if name not in loaded:
            loaded[name] = getattr(datasets, name)(data_dir=ORIGINALS)
        return loaded[name]

    return load_once


def converted_file(name):
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"the converted file {path} is absent")
    return path


def assert_integer_counts(counts):
    assert sparse.isspmatrix_csr(counts)
    assert counts.dtype == np.float32
    np.testing.assert_array_equal(counts.data, np.rint(counts.data))
    assert counts.data.min() >= 1
    assert counts.sum(axis=1).min() > 0


def assert_log_normalised(adata):
    counts = adata.layers["counts"].toarray().astype(float)
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(adata.X.toarray(), expected, rtol=1e-4)  # X is float32


def assert_same_cells(adata, expected):
    """Compare counts and labels with those of a file whose `X` are counts."""
    assert adata.shape == expected.shape
    assert list(adata.obs_names) == list(expected.obs_names)
    assert list(adata.var_names) == list(expected.var_names)
    assert (adata.layers["counts"] != expected.X).nnz == 0
    # rtol: percentages may differ in the last bits between R, pandas and HDF5
    pd.testing.assert_frame_equal(adata.obs, expected.obs, check_like=True, rtol=1e-12)


class TestPbmc68kReduced:
    def test_counts_are_integers_and_labels_are_scanpys_bulk_labels(self):
        adata = datasets.pbmc68k_reduced()
        assert adata.shape == (700, 765)
        assert_integer_counts(adata.layers["counts"])
        assert_log_normalised(adata)
        cell_type = adata.obs["cell_type"]
        assert cell_type.dtype == "category"
        assert cell_type.notna().all()
        assert cell_type.value_counts()["CD19+ B"] == 95
        assert cell_type.nunique() == 10

    def test_counts_follow_the_rule_of_the_smallest_value(self):
        import scanpy as sc

        log_values = sc.datasets.pbmc68k_reduced().raw.X[3].toarray().ravel()
        values = np.expm1(log_values.astype(float))
        expected = np.rint(values / values[values > 0].min())
        np.testing.assert_array_equal(datasets.pbmc68k_reduced().layers["counts"][3].toarray().ravel(), expected)

    def test_can_be_written_and_read_again(self, tmp_path):
        adata = datasets.pbmc68k_reduced()
        adata.write_h5ad(tmp_path / "cells.h5ad")
        again = anndata.read_h5ad(tmp_path / "cells.h5ad")
        assert again.uns["source"] == adata.uns["source"]
        pd.testing.assert_frame_equal(again.obs, adata.obs)
        pd.testing.assert_frame_equal(again.var, adata.var)
        assert "log1p" in again.uns


@pytest.mark.parametrize("name", sorted(CONVERTED))
def test_downloaded_sets_have_integer_counts_and_labels_and_equal_the_converted_files(load, name):
    adata, (file, shape) = load(name), CONVERTED[name]
    assert adata.shape == shape
    assert_integer_counts(adata.layers["counts"])
    assert_log_normalised(adata[:50])
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.obs.notna().all(axis=None)
    assert adata.obs["cell_type"].dtype == "category"
    assert_same_cells(adata, anndata.read_h5ad(converted_file(file)))


@pytest.mark.filterwarnings("ignore::FutureWarning:mudata", "ignore::UserWarning:mudata")
def test_citeseq_holds_counts_in_both_modalities_and_equals_the_converted_file(load):
    mdata = load("pbmc10k_citeseq")
    assert (mdata["rna"].shape, mdata["prot"].shape) == ((5994, 4000), (5994, 14))
    for modality in ("rna", "prot"):
        assert_integer_counts(mdata[modality].layers["counts"])
    assert (mdata["prot"].X != mdata["prot"].layers["counts"]).nnz == 0
    assert mdata.obs["cell_type"].dtype == "category"
    expected = mudata.read_h5mu(converted_file("pbmc10k_citeseq.h5mu"))
    for modality in ("rna", "prot"):
        assert_same_cells(mdata[modality], expected[modality])
    assert (mdata.obs["cell_type"] == expected.obs["cell_type"]).all()


def test_osmfish_equals_the_converted_file(load):
    adata, expected = load("osmfish_cortex"), anndata.read_h5ad(converted_file("osmfish_cortex.h5ad"))
    expected = expected[loaders.is_first_of_its_place(expected.obsm["spatial"])].copy()
    np.testing.assert_array_equal(adata.obsm["spatial"], expected.obsm["spatial"])
    expected.obs = expected.obs[["cell_type", "region", "size_um2"]]
    assert_same_cells(adata, expected)


def test_osmfish_has_no_cells_that_are_not_valid_empty_or_there_twice(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "section.loom", "w") as file:
        file["matrix"] = [[1, 5, 0, 2, 1], [3, 0, 0, 4, 2]]  # (genes, cells)
        file["row_attrs/Gene"] = ["Gad2", "Vip"]
        file["col_attrs/Valid"] = [1, 0, 1, 1, 1]
        file["col_attrs/CellID"] = np.array([b"7", b"8", b"9", b"10", b"11"])
        file["col_attrs/ClusterName"] = np.array([b"Astrocyte", b"Microglia", b"Microglia", b"Ependymal", b"Astrocyte"])
        file["col_attrs/Region"] = np.array([b"Layer 4", b"Layer 4", b"Layer 4", b"Ventricle", b"Layer 4"])
        file["col_attrs/size_um2"] = [10.0, 20.0, 30.0, 40.0, 11.0]
        file["col_attrs/X"], file["col_attrs/Y"] = [0.5, 0.5, 0.5, 50.5, 6.5], [5.0, 5.0, 5.0, 8.0, 13.0]
    monkeypatch.setattr(originals, "fetch", lambda *_: tmp_path / "section.loom")
    adata = datasets.osmfish_cortex()
    assert list(adata.obs_names) == ["cell7", "cell10"]
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), [[1, 3], [2, 4]])
    np.testing.assert_array_equal(adata.obsm["spatial"], [[0.5, 5], [50.5, 8]])
    assert list(adata.obs["region"]) == ["Layer 4", "Ventricle"]
    assert list(adata.obs["cell_type"].cat.categories) == ["Astrocyte", "Ependymal"]


def test_tables_of_worms_may_have_another_order_than_the_counts(monkeypatch):
    columns = {"cell.type": ["ADL", "AWC"], "batch": ["b", "a"], "lineage": ["x", "y"], "embryo.time": [700, 300]}
    parts = [
        anndata.AnnData(np.array([[1, 0], [3, 2]]), pd.DataFrame(index=["c1", "c2"]), pd.DataFrame(index=["g1", "g2"])),
        pd.DataFrame(columns, index=["c2", "c1"]),
        pd.DataFrame({"gene_short_name": ["str-2", "hlh-16"]}, index=["g2", "g1"]),
    ]
    monkeypatch.setattr(originals, "fetch", lambda original, _: original)
    monkeypatch.setattr(originals, "read_r", lambda _: parts.pop(0))
    adata = datasets.worm_embryo()
    assert list(adata.obs["cell_type"]) == ["AWC", "ADL"]
    assert list(adata.obs["embryo_time"]) == [300, 700]
    assert list(adata.var["gene_symbol"]) == ["hlh-16", "str-2"]


@pytest.fixture
def original(tmp_path_factory, monkeypatch):
    """Register a made-up file with the content "right"; return its name."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "file.rda").write_bytes(b"right")
    sha256 = pooch.file_hash(str(folder / "file.rda"))
    (folder / "registry.txt").write_text(f"file.rda sha256:{sha256} {ADDRESS}")
    monkeypatch.setattr(originals, "REGISTRY", folder / "registry.txt")
    return "file.rda"


@pytest.fixture
def offline(monkeypatch):
    """Let every download fail as it does without a network."""

    def refuse(url, output_file, pooch_object, **_):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: refuse)


class TestFetch:
    def test_a_cached_file_is_used_from_the_folder_that_is_given_or_else_the_environments(
        self, original, tmp_path, monkeypatch, offline
    ):
        (tmp_path / original).write_bytes(b"right")
        monkeypatch.setenv(originals.DATA_DIR_VARIABLE, str(tmp_path / "elsewhere"))
        assert originals.fetch(original, tmp_path) == tmp_path / "file.rda"
        monkeypatch.setenv(originals.DATA_DIR_VARIABLE, str(tmp_path))
        assert originals.fetch(original).parent == tmp_path

    @pytest.mark.parametrize("altered", [None, b"wrong"])
    def test_a_missing_or_altered_file_needs_a_network_or_the_folder_of_the_variable(
        self, original, tmp_path, offline, altered
    ):
        if altered is not None:
            (tmp_path / original).write_bytes(altered)
        with pytest.raises(OSError, match=f"(?s){re.escape(str(tmp_path))}.*{originals.DATA_DIR_VARIABLE}"):
            originals.fetch(original, tmp_path)

    def test_a_good_download_is_kept_under_its_own_name(self, original, tmp_path, monkeypatch):
        asked = []

        def send(url, output_file, pooch_object, **_):
            asked.append(url)
            Path(output_file).write_bytes(b"right")

        monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: send)
        path = originals.fetch(original, tmp_path / "new")
        assert path.read_bytes() == b"right"
        assert asked == [ADDRESS]
        assert originals.source(original, "A paper") == {"url": ADDRESS, "publication": "A paper"}
