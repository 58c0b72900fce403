"""Constructing and saving the gene-space models: options, genes, and what is refused before training starts."""

from __future__ import annotations

import numpy as np
import pytest
from builders import same_cells

from scgen_diffusion.model import SCRDIT


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patch_size": 13}, ValueError, "`patch_size` is 13, but there are only 12 genes"),
        ({"patch_sizes": 3}, TypeError, "has no option 'patch_sizes'.*closest first: .patch_size"),
        ({"width": 8, "n_heads": 3}, ValueError, "multiple.*found width 8 and 3 heads"),
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(make_model, gene_space_class, options, error, words):
    with pytest.raises(error, match=words):
        make_model(cls=gene_space_class, **options)


@pytest.mark.parametrize("n_genes", [1, 12])
def test_the_default_sizes_fit_any_number_of_genes(make_cells, gene_space_class, n_genes):
    adata = make_cells(n_genes=n_genes)
    gene_space_class.setup_anndata(adata)

    assert gene_space_class(adata).architecture.patch_size <= n_genes


def test_the_unet_has_no_patches_to_fit(make_model):
    assert make_model(cls=SCRDIT, backbone="unet", patch_size=1000).architecture.backbone == "unet"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: a.X.__setitem__((3, 1), -1), "negative.*scanpy.pp.scale"),
        (lambda a: a.X.__setitem__((3, 1), 21), "up to 21, too large for logarithms"),
        (lambda a: a.X.__setitem__(3, 0), "without any count.*cell_3"),
        (lambda a: setattr(a, "X", np.ceil(a.X)), "whole numbers only"),
    ],
    ids=["negative", "large", "empty cell", "counts"],
)
def test_cells_that_are_not_log_normalised_are_refused(make_cells, gene_space_class, spoil, words):
    adata = make_cells(values="log1p")
    spoil(adata)

    with pytest.raises(ValueError, match=words):
        gene_space_class.setup_anndata(adata, values="log1p")


def test_fractions_as_counts_are_refused_with_the_way_out(make_cells, gene_space_class):
    with pytest.raises(ValueError, match="values='log1p'.*SCRDIT, WBDIT"):
        gene_space_class.setup_anndata(make_cells(values="log1p"))


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "unet", "path": "flow_matching", "target": "velocity", "zero_value": -3, "scaling": "none"},
        {"backbone": "dit", "head": "spike_and_slab", "target": "data", "scaling": "gene"},
        {"condition_keys": [], "clamp": False, "ema_decay": np.float64(0.5), "library_size": "normal"},
        {"condition_keys": ["treated"], "condition_strategy": "mutually_exclusive", "zero_value": np.float64(-2.0)},
    ],
    ids=["flow", "spike and slab", "unconditional", "mutually exclusive"],
)
def test_every_part_survives_a_file(make_trained, gene_space_class, tmp_path, options):
    model = make_trained(cls=gene_space_class, **options)
    model.save(tmp_path / "m")
    loaded = gene_space_class.load(tmp_path / "m")

    assert loaded.architecture == model.architecture
    for request in ({"seed": 0, "n_steps": 4}, {"seed": 0, "n_steps": 4, "counts": True}):
        assert same_cells(model.generate(5, **request), loaded.generate(5, **request))
