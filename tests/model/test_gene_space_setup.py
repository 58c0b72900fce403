"""Constructing and saving the gene-space models: options, genes, and what is refused before training starts."""

from __future__ import annotations

import numpy as np
import pytest
from builders import same_cells

from scgen_diffusion.model import SCRDIT


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patch_size": 13}, ValueError, "`patch_size` must be between 1 and .* found 13 for 12 genes"),
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
