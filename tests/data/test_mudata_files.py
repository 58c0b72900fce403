"""MuData in files: the same cells as in memory, in any number of files, and what each error says."""

from __future__ import annotations

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.data import CellFiles, MuDataFiles, RegisteredCells
from scgen_diffusion.metrics import evaluate
from scgen_diffusion.model import MULTISCLDM, SCLDM
from scgen_diffusion.train import EpochBatches

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:var_names are not unique")

N_CELLS, N_WITH_PROTEIN = 60, 40
KEYS = {"condition_keys": ["cell_type"]}


def make_mudata(*, first="c"):
    """Build cells with rna, protein (of the first forty, in reverse order, dense), and 0/1 accessibility."""
    rng = np.random.default_rng(0)
    names = [f"{first}{number}" for number in range(N_CELLS)]

    def part(prefix, n_features, mean, largest=np.inf):
        counts = np.minimum(rng.poisson(mean, (N_CELLS, n_features)), largest)
        counts[:, 0] = 1
        var = pd.DataFrame({"symbol": "s"}, index=[f"{prefix}{number}" for number in range(n_features)])
        return anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=pd.DataFrame(index=names), var=var)

    parts = {"rna": part("f", 9, 2.0), "prot": part("f", 4, 9.0), "atac": part("peak", 7, 0.5, largest=1)}
    parts["prot"] = parts["prot"][:N_WITH_PROTEIN][::-1].copy()
    parts["prot"].X = parts["prot"].X.toarray()
    mdata = mudata.MuData(parts)
    mdata.obs["cell_type"] = pd.Categorical(rng.choice(["B", "T"], N_CELLS))
    mdata.obs["donor"] = "d1"
    return mdata


@pytest.fixture
def mdata():
    return make_mudata()


@pytest.fixture
def write(tmp_path):
    def written(mdata, name="cells.h5mu"):
        mdata.write_h5mu(tmp_path / name)
        return tmp_path / name

    return written


def registered(mdata, **options):
    MULTISCLDM.setup_mudata(mdata, **KEYS, **options)
    return RegisteredCells(MULTISCLDM._get_most_recent_anndata_manager(mdata, required=True))


def plain(value):
    """Turn a registry into what can be compared."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in ("_scvi_uuid", "model_name")}
    return [plain(item) for item in value] if isinstance(value, list | tuple | np.ndarray) else value


def gathered(batches):
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("layers", [None, {"rna": "raw"}])
def test_files_are_registered_as_the_same_cells_in_memory_are(mdata, write, layers):
    mdata["rna"].layers["raw"] = mdata["rna"].X

    found, expected = MuDataFiles(write(mdata), layers=layers, **KEYS), registered(mdata, layers=layers)

    assert plain(found.registry) == plain(dict(expected.registry))
    assert np.array_equal(found.codes, expected.codes)
    assert found.digest == expected.digest
    assert (found.n_cells, found.match_labels(["donor"])["donor"].unique().tolist()) == (N_CELLS, ["d1"])


def test_batches_in_order_are_those_of_memory(mdata, write):
    rows = np.array([5, 1, 59, 17, 17, 0, 44])

    found = gathered(MuDataFiles(write(mdata), **KEYS).loader(rows, 3))
    expected = gathered(registered(mdata).loader(rows, 3))

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[part], expected[part]) for part in found)


def test_several_files_are_one_set_of_cells_even_if_one_lacks_a_modality(mdata, write):
    without = mudata.MuData({"atac": mdata["atac"][30:].copy(), "rna": mdata["rna"][30:, ::-1].copy()})
    without.obs["cell_type"] = mdata.obs["cell_type"].iloc[30:]
    cells = MuDataFiles([write(mdata[:30].copy(), "a.h5mu"), write(without, "b.h5mu")], **KEYS)

    x = gathered(cells.loader(None, 7))["X"]

    expected = gathered(registered(mdata).loader(None, 7))["X"]
    expected[30:, 9:13] = 0
    assert torch.equal(x, expected)
    assert repr(cells) == (
        "MuDataFiles of 60 cells with rna (9 features), prot (4 features), atac (7 features) in a.h5mu, b.h5mu; "
        "conditions: ['cell_type']"
    )


def test_shuffled_batches_are_a_permutation_of_the_cells(mdata, write):
    cells = MuDataFiles(write(mdata), **KEYS, window_size=20, block_size=4)

    shuffled = gathered(cells.loader(None, 7, batches=EpochBatches(N_CELLS, 7, seed=0)))["X"].numpy()

    ordered = gathered(cells.loader(None, 7))["X"].numpy()
    assert not np.array_equal(shuffled, ordered)
    assert np.array_equal(np.unique(shuffled, axis=0), np.unique(ordered, axis=0))


def test_cells_are_read_into_memory(mdata, write):
    cells = MuDataFiles(write(mdata), **KEYS).read([50, 3])

    assert cells.obs_names.tolist() == ["c50", "c3"]
    assert cells.obs["cell_type"].tolist() == mdata.obs["cell_type"].iloc[[50, 3]].tolist()
    assert (cells["rna"].X != mdata["rna"].X[[50, 3]]).nnz == 0
    assert cells["prot"].X.toarray()[0].tolist() == [0, 0, 0, 0]  # the cell has no protein
    assert cells["prot"]["c3"].X.toarray().tolist() == mdata["prot"]["c3"].X.tolist()
    assert cells["prot"].var["symbol"].tolist() == ["s"] * 4


def test_cells_of_one_name_in_several_files_stay_apart(mdata, write):
    other = mdata.copy()
    other["rna"].X = 2 * other["rna"].X
    files = MuDataFiles([write(mdata, "a.h5mu"), write(other, "b.h5mu")], **KEYS)

    with pytest.warns(UserWarning, match="2 of 4 cells have the name of another one, such as 'c3'"):
        cells = files.read([3, 63, 5, 65]).copy()

    assert cells.obs_names.tolist() == ["c3", "c3-1", "c5", "c5-1"]
    assert (cells["rna"].X[1::2] != 2 * cells["rna"].X[::2]).nnz == 0


def test_files_are_opened_for_a_model(mdata, write):
    fewer = mudata.MuData({"rna": mdata["rna"][:20].copy()})
    fewer["rna"].uns["scgen_diffusion"] = {}  # generated cells have their counts in X
    mdata["rna"].layers["raw"] = mdata["rna"].X
    known = registered(mdata, layers={"rna": "raw"}).registry
    fewer.obs["cell_type"] = mdata.obs["cell_type"].iloc[:20]

    cells = MuDataFiles.like(known, write(fewer))

    assert gathered(cells.loader(None, 20))["X"].shape == (20, 20)
    assert cells.registry["setup_args"] == known["setup_args"]
    SCLDM.setup_anndata(mdata["rna"])
    one_modality = SCLDM(mdata["rna"]).registry
    with pytest.raises(ValueError, match="set up for one modality.*CellFiles.like"):
        MuDataFiles.like(one_modality, write(fewer, "a.h5mu"))
    with pytest.raises(ValueError, match=r"set up for several modalities.*MuDataFiles.like"):
        CellFiles.like(known, write(fewer, "b.h5mu"))


def test_metrics_of_several_modalities_need_cells_in_memory(mdata, write):
    with pytest.raises(TypeError, match=r"`train` must be in memory.*cells.read"):
        evaluate(mdata, mdata, train=MuDataFiles(write(mdata), **KEYS))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modalities": ["rna", "protein"]}, KeyError, "no modality 'protein'.*closest first: 'prot'"),
        ({"modalities": {"rna": "normal"}}, ValueError, r"`modalities\['rna'\]` is 'normal'"),
        ({"modalities": {"rna": "bernoulli"}}, ValueError, r"X of cells.h5mu\['rna'\] holds values above 1"),
        ({"modalities": []}, ValueError, "at least one modality"),
        ({"layers": "counts"}, KeyError, r"'counts' is not in the layers of cells.h5mu\['rna'\]"),
        ({"layers": {"protein": "counts"}}, KeyError, "`layers` names the modality 'protein'"),
        ({"condition_keys": ["type"]}, KeyError, "'type' is not a column of obs in cells.h5mu"),
    ],
)
def test_what_the_files_lack_is_named(mdata, write, options, error, message):
    with pytest.raises(error, match=message):
        MuDataFiles(write(mdata), **{**KEYS, **options})


def test_a_column_of_a_modality_alone_is_found_there(mdata, write):
    mdata["rna"].obs["type"] = "T"
    message = r"not a column of obs in cells.h5mu, but of its modality 'rna'.*mdata.obs\['type'\] = mdata\['rna'\].obs"
    with pytest.raises(KeyError, match=message):
        MuDataFiles(write(mdata), **{**KEYS, "condition_keys": ["type"]})


def change(path, edit):
    with h5py.File(path, "r+") as root:
        edit(root)
    return path


def test_files_that_cannot_be_used_are_refused(mdata, write, tmp_path):
    mdata["rna"].write_h5ad(tmp_path / "rna.h5ad")
    (tmp_path / "text.h5mu").write_text("no cells")

    with pytest.raises(FileNotFoundError, match="There is no file"):
        MuDataFiles(tmp_path / "none.h5mu", **KEYS)
    with pytest.raises(ValueError, match=r"text.h5mu is not an .h5mu file, or is damaged"):
        MuDataFiles(tmp_path / "text.h5mu", **KEYS)
    with pytest.raises(ValueError, match=r"rna.h5ad is not MuData \(.h5mu\).*CellFiles"):
        MuDataFiles(tmp_path / "rna.h5ad", **KEYS)
    with pytest.raises(ValueError, match=r"cells.h5mu is MuData, .*MuDataFiles"):
        CellFiles(write(mdata))
    with pytest.raises(ValueError, match="must share cells"):
        MuDataFiles(change(write(mdata), lambda root: root.attrs.update({"axis": 1})), **KEYS)
    with pytest.raises(ValueError, match=r"has other cells than obs of cells.h5mu.*mdata.update\(\)"):
        MuDataFiles(change(write(mdata), lambda root: root["obsmap"]["prot"].write_direct(np.zeros(60, "u4"))), **KEYS)
    with pytest.raises(ValueError, match=r"cells.h5mu\['prot'\] has other cells than obs of cells.h5mu"):
        MuDataFiles(change(write(mdata), lambda root: root["obsmap"].pop("prot")), **KEYS)


def test_values_that_are_wrong_are_refused(mdata, write):
    empty = make_mudata()
    empty["prot"].X[:] = 0
    with pytest.raises(ValueError, match="modality 'prot' holds no counts"):
        MuDataFiles(write(empty), **KEYS)

    fractional = make_mudata()
    fractional["prot"].X[2, 1] = 0.5
    with pytest.raises(ValueError, match=r"cells.h5mu\['prot'\] holds values that are not whole.*layers=\{'prot'"):
        MuDataFiles(write(fractional), **KEYS)

    for name in ("rna", "atac"):
        mdata[name].X = sp.csr_matrix(mdata[name].X.toarray() * (np.arange(N_CELLS) != 50)[:, None])
    with pytest.raises(ValueError, match=r"cells.h5mu has cells without any count: 1 \('c50'\)"):
        MuDataFiles(write(mdata), **KEYS)


def test_features_must_be_the_same_in_all_files(mdata, write):
    fewer = mudata.MuData({"rna": mdata["rna"][:, 1:].copy()})
    with pytest.raises(ValueError, match=r"genes of b.h5mu\['rna'\] .* 1 \('f0'\) missing, none .* Write files"):
        MuDataFiles([write(mdata, "a.h5mu"), write(fewer, "b.h5mu")], **KEYS)


def test_modalities_must_share_cells(mdata, write):
    other = make_mudata(first="x")
    apart = mudata.MuData({"rna": mdata["rna"].copy(), "prot": other["prot"].copy()})
    apart.obs["cell_type"] = "B"

    with pytest.raises(ValueError, match="No cell of the modality 'rna' is in another modality"):
        MuDataFiles(write(apart), **KEYS)
