"""The study of memory, on a few cells: from written files to the page that people read."""

import json

import pandas as pd
import pytest
import scipy.sparse as sp
import scvi

memory = pytest.importorskip("memory")


@pytest.fixture
def run_study(make_cells, tiny, tiny_gene_space, monkeypatch, tmp_path, capsys):
    """Run the very study, in this process, with tiny networks and repeated made-up cells."""
    monkeypatch.setattr(memory, "SYSTEMS", {"SCLDM": tiny, "SCRDIT": tiny_gene_space})
    monkeypatch.setattr(memory, "N_STEPS", 1)
    monkeypatch.setattr(memory, "_pbmc3k", lambda: make_cells(matrix=sp.csr_matrix))

    def in_this_process(system, source, path):
        memory.main(["--measure", system, source, str(path)])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(memory, "_in_own_process", in_this_process)

    def run(*options):
        memory.main(["--cells", "200", "--folder", str(tmp_path), "--results", str(tmp_path), *options])
        return pd.read_csv(tmp_path / "memory.csv"), (tmp_path / "memory.md").read_text()

    before = scvi.settings.seed
    yield run
    scvi.settings._seed = before


STAGES = {"SCLDM": ["autoencoder", "prior"], "SCRDIT": ["train"]}


def test_every_stage_of_every_system_is_measured_from_memory_and_from_a_file(run_study):
    rows, page = run_study("--sources", "memory", "h5ad")

    for (system, _), measured in rows.groupby(["system", "source"]):
        assert list(measured["stage"]) == ["import", "open and check", *STAGES[system], "read batches", "generate"]
    assert rows.groupby(["system", "source"]).ngroups == 4
    assert rows["cells"].eq(200).all()
    assert (rows["peak_mib"] > 0).all()
    assert "SCRDIT, train, h5ad" in page


def test_files_of_the_study_repeat_their_cells(make_cells, tmp_path):
    source = make_cells(matrix=sp.csr_matrix)
    memory.write_cells(source, tmp_path / "cells.h5ad", 200)

    written = memory.anndata.read_h5ad(tmp_path / "cells.h5ad")

    assert (written.X[96:192] != source.X).nnz == 0
    assert list(written.obs["cell_type"][192:]) == list(source.obs["cell_type"][:8])
