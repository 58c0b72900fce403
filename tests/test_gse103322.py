"""The deposited table of GSE103322, by small tables of the same form."""

from __future__ import annotations

import gzip

import anndata
import numpy as np
import pytest
from scipy import sparse

from scgen_diffusion import datasets
from scgen_diffusion.model import SCLDM

CELLS = {
    # name: Maxima, lymph node, cancer, non-cancer, type, values of three genes
    "HN28_P15_D06_S330_comb": ("1", "1", "0", "1", "Fibroblast", "1", "0", "2.5"),
    "HNSCC28_P6_G05_S173_comb": ("1", "0", "0", "1", "-Fibroblast", "0", "3", "0"),
    "HNSCC_17_P4_A01": ("0", "0", "1", "0", "0", "4.5", "0.25", "0"),
    "HNSCC_combo1_HNSCC_ComboP1_A02": ("1", "0", "0", "1", "myocyte", "0", "0", "16.6096"),
    "HNSCC5_p3_HNSCC5_P3_H01": ("0", "0", "0", "1", "B cell", "2", "2", "2"),
    "other": ("0", "0", "0", "0", "0", "0", "7", "1"),
}
ANNOTATIONS = [
    "processed by Maxima enzyme",
    "Lymph node",
    "classified  as cancer cell",
    "classified as non-cancer cells",
    "non-cancer cell type",
]
GENES = ["'TP53'", "'HLA-A'", "'KRT5'"]
VALUES = np.array([[float(text) for text in fields[5:]] for fields in CELLS.values()])


def make_rows():
    """Build the table, a list of fields per line, for tests to change."""
    return [
        ["", *CELLS],
        *([name, *fields] for name, *fields in zip(ANNOTATIONS + GENES, *CELLS.values(), strict=True)),
    ]


def as_text(rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def read(folder, rows):
    path = folder / "table.txt"
    path.write_text(as_text(rows))
    return datasets.read_gse103322(path)


class TestContent:
    @pytest.mark.parametrize("name", ["table.txt.gz", "table.txt"])
    @pytest.mark.parametrize("compressed", [True, False])
    def test_gzipped_and_plain_tables_are_recognised_by_their_content(self, tmp_path, name, compressed):
        content = as_text(make_rows()).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
        adata = datasets.read_gse103322(str(tmp_path / name))
        assert list(adata.obs_names) == list(CELLS)
        assert list(adata.var_names) == ["TP53", "HLA-A", "KRT5"]
        assert adata.uns["source"]["path"] == name

    def test_the_layer_holds_the_deposited_values(self, tmp_path):
        layer = read(tmp_path, make_rows()).layers["log2_tpm"]
        assert sparse.isspmatrix_csr(layer)
        assert layer.dtype == np.float32
        assert layer.nnz == (VALUES > 0).sum()
        np.testing.assert_array_equal(layer.toarray(), VALUES.astype(np.float32))

    def test_x_is_log1p_of_ten_thousand_per_cell(self, tmp_path):
        adata = read(tmp_path, make_rows())
        tpm = 10 * (2**VALUES - 1)
        expected = np.log1p(1e4 * tpm / tpm.sum(axis=1, keepdims=True))
        assert sparse.isspmatrix_csr(adata.X)
        assert adata.X.dtype == np.float32
        np.testing.assert_allclose(adata.X.toarray(), expected, rtol=1e-6)  # float32
        np.testing.assert_allclose(np.expm1(adata.X.toarray().astype(float)).sum(axis=1), 1e4, rtol=1e-5)
        assert "log1p" in adata.uns

    def test_x_and_the_layer_share_no_memory(self, tmp_path):
        adata = read(tmp_path, make_rows())
        for part in ("data", "indices", "indptr"):
            assert not np.shares_memory(getattr(adata.X, part), getattr(adata.layers["log2_tpm"], part))

    def test_labels_follow_from_the_annotation(self, tmp_path):
        obs = read(tmp_path, make_rows()).obs
        assert obs["cell_type"].dtype == "category"
        assert list(obs["cell_type"]) == ["Fibroblast", "Fibroblast", "malignant", "Myocyte", "B cell", "unclassified"]
        for column, expected in {
            "is_malignant": [0, 0, 1, 0, 0, 0],
            "lymph_node": [1, 0, 0, 0, 0, 0],
            "maxima_enzyme": [1, 1, 0, 1, 0, 0],
        }.items():
            assert obs[column].dtype == bool
            assert list(obs[column]) == expected

    def test_a_patient_has_one_name_whichever_prefix_its_cells_have(self, tmp_path):
        patient = read(tmp_path, make_rows()).obs["patient"]
        assert patient.dtype == "category"
        assert list(patient) == ["HN28", "HN28", "HN17", "unknown", "HN5", "unknown"]

    def test_case_and_spaces_of_annotation_names_quotes_and_line_ends_do_not_matter(self, tmp_path):
        rows = make_rows()
        rows[0][0] = "cell"
        rows[3][0] = " Classified as  CANCER cell "
        rows[5][1] = "'Fibroblast'"
        rows[6][0] = "TP53"
        path = tmp_path / "table.txt"
        path.write_bytes(as_text(rows).replace("\n", "\r\n").encode() + b"\r\n")
        adata = datasets.read_gse103322(path)
        assert adata.var_names[0] == "TP53"
        assert adata.obs["cell_type"].iloc[0] == "Fibroblast"
        assert adata.obs["is_malignant"].sum() == 1

    def test_a_single_gene_is_enough(self, tmp_path):
        rows = make_rows()[:7]
        rows[6][1:] = ["1"] * len(CELLS)
        assert read(tmp_path, rows).shape == (len(CELLS), 1)

    def test_can_be_written_and_read_again(self, tmp_path):
        adata = read(tmp_path, make_rows())
        adata.write_h5ad(tmp_path / "cells.h5ad")
        again = anndata.read_h5ad(tmp_path / "cells.h5ad")
        assert again.uns["source"] == adata.uns["source"]
        assert "log1p" in again.uns
        assert list(again.obs["cell_type"]) == list(adata.obs["cell_type"])

    def test_models_take_it_as_log_normalised(self, tmp_path):
        adata = read(tmp_path, make_rows())
        SCLDM.setup_anndata(adata, values="log1p", condition_keys=["cell_type", "patient"])


class TestRefusals:
    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent.txt.gz"):
            datasets.read_gse103322(tmp_path / "absent.txt.gz")

    @pytest.mark.parametrize("line", [1, 5])
    def test_the_error_names_a_missing_annotation_and_what_was_found(self, tmp_path, line):
        rows = make_rows()
        del rows[line]
        found = rows[line][0].strip("'")
        expected = " ".join(ANNOTATIONS[line - 1].split())
        with pytest.raises(ValueError, match=f"Line {line + 1} must be .*'{expected}' of 6 cells, but is '{found}'"):
            read(tmp_path, rows)

    def test_a_table_that_ends_within_the_annotation_is_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match="Line 4 must be the annotation 'classified as cancer cell' of 6 cells, but is ''"
        ):
            read(tmp_path, make_rows()[:3])

    @pytest.mark.parametrize("flag", ["2", "yes", ""])
    def test_a_flag_other_than_0_and_1_is_refused(self, tmp_path, flag):
        rows = make_rows()
        rows[2][6] = flag
        with pytest.raises(ValueError, match=f"'{ANNOTATIONS[1]}' must be 0 or 1, but found '{flag}'"):
            read(tmp_path, rows)

    @pytest.mark.parametrize("value", ["text", "", "nan", "-0.5", "812.4"])
    def test_values_that_are_no_log2_tpm_are_named(self, tmp_path, value):
        rows = make_rows()
        rows[7][2] = value
        with pytest.raises(ValueError, match=f"found '{value}' for gene 'HLA-A' in cell 'HNSCC28_P6_G05_S173_comb'"):
            read(tmp_path, rows)

    def test_duplicate_genes_are_refused(self, tmp_path):
        rows = make_rows()
        rows[8][0] = "TP53"
        with pytest.raises(ValueError, match="gene names must be unique.*'TP53'"):
            read(tmp_path, rows)

    def test_duplicate_cells_are_refused(self, tmp_path):
        rows = make_rows()
        rows[0][2] = rows[0][1]
        with pytest.raises(ValueError, match="cell names must be unique.*'HN28_P15_D06_S330_comb'"):
            read(tmp_path, rows)

    def test_a_table_without_genes_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="has no genes"):
            read(tmp_path, make_rows()[:6])

    @pytest.mark.parametrize("text", ["", "cells\n"])
    def test_a_table_without_cells_is_refused(self, tmp_path, text):
        (tmp_path / "table.txt").write_text(text)
        with pytest.raises(ValueError, match="After the cell names, the lines must be"):
            datasets.read_gse103322(tmp_path / "table.txt")

    @pytest.mark.parametrize("line", [1, 6, 8])
    @pytest.mark.parametrize("change", [-1, 1])
    def test_a_line_with_too_few_or_too_many_fields_is_refused(self, tmp_path, line, change):
        rows = make_rows()
        rows[line] = rows[line][:-1] if change < 0 else [*rows[line], "0"]
        with pytest.raises(ValueError, match="of 6 cells|of the 6 cells|different lengths|file is truncated"):
            read(tmp_path, rows)

    def test_a_plain_table_truncated_within_a_line_is_refused(self, tmp_path):
        (tmp_path / "table.txt").write_text(as_text(make_rows())[:-12])
        with pytest.raises(ValueError, match="file is truncated"):
            datasets.read_gse103322(tmp_path / "table.txt")

    @pytest.mark.parametrize("kept", [0.1, 0.9])
    def test_a_truncated_gzipped_table_is_refused(self, tmp_path, kept):
        content = gzip.compress(as_text(make_rows()).encode())
        (tmp_path / "table.txt.gz").write_bytes(content[: int(kept * len(content))])
        with pytest.raises(ValueError, match="truncated"):
            datasets.read_gse103322(tmp_path / "table.txt.gz")

    def test_a_gzipped_table_with_other_bytes_inside_is_refused(self, tmp_path):
        content = bytearray(gzip.compress(as_text(make_rows()).encode()))
        content[-8] ^= 0xFF  # the checksum
        (tmp_path / "table.txt.gz").write_bytes(content)
        with pytest.raises(ValueError, match="truncated or damaged"):
            datasets.read_gse103322(tmp_path / "table.txt.gz")
