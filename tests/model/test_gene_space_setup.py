"""Constructing and saving the gene-space models: options, genes, and what is refused before training starts."""

from __future__ import annotations

import numpy as np
import pytest
from builders import same_cells


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patch_size": 13}, ValueError, "patch_size"),
        ({"patch_sizes": 3}, TypeError, "patch_size"),
        ({"width": 8, "n_heads": 3}, ValueError, "width"),
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


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "unet", "target": "noise", "zero_value": -3, "scaling": "none"},
        {"backbone": "dit", "head": "spike_and_slab", "target": "data", "scaling": "gene"},
        {"condition_keys": [], "ema_decay": np.float64(0.5), "library_size": "normal"},
        {"condition_keys": ["treated"], "condition_strategy": "mutually_exclusive", "zero_value": np.float64(-2.0)},
    ],
    ids=["noise", "spike and slab", "unconditional", "mutually exclusive"],
)
def test_every_part_survives_a_file(make_trained, gene_space_class, tmp_path, options):
    model = make_trained(cls=gene_space_class, **options)
    model.save(tmp_path / "m")
    loaded = gene_space_class.load(tmp_path / "m")

    assert loaded.architecture == model.architecture
    for request in ({"seed": 0, "n_steps": 4}, {"seed": 0, "n_steps": 4, "counts": True}):
        assert same_cells(model.generate(5, **request), loaded.generate(5, **request))
