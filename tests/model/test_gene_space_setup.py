"""Constructing the gene-space models: options, genes, registries, and what is refused before training starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgen_diffusion.model import SCRDIT


def test_a_model_can_be_built_from_a_registry_alone(make_gene_space, gene_space_class, tiny_gene_space):
    with_cells = make_gene_space(gene_space_class)

    model = gene_space_class(registry=with_cells.registry_, **tiny_gene_space)

    assert model.adata is None
    assert model.conditions.categories == with_cells.conditions.categories
    assert model.get_var_names().tolist() == with_cells.get_var_names().tolist()
    with pytest.raises(ValueError, match="no cells to train on"):
        model.train()
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        model.generate(3)


def test_weights_fit_into_a_model_from_a_registry_alone(trained_gene_space, tiny_gene_space):
    model = type(trained_gene_space)(registry=trained_gene_space.registry_, **tiny_gene_space)

    model.module.load_state_dict(trained_gene_space.module.state_dict())


def test_the_printed_model_names_its_class(trained_gene_space, capsys):
    assert type(trained_gene_space).__name__ in repr(trained_gene_space) + capsys.readouterr().out


def test_unregistered_cells_are_refused(make_cells, gene_space_class, tiny_gene_space):
    with pytest.raises(ValueError, match="setup_anndata"):
        gene_space_class(make_cells(), **tiny_gene_space)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patch_size": 13}, ValueError, "`patch_size` is 13, but there are only 12 genes"),
        ({"patch_sizes": 3}, TypeError, "has no option 'patch_sizes'.*closest first: .patch_size"),
        ({"size": "small"}, ValueError, r"`size` must be one of \['default', 'published'\], but found 'small'"),
        ({"zero_value": 0}, ValueError, "`zero_value` must be None or a number below 0.*found 0"),
        ({"zero_value": 10.0}, ValueError, "`zero_value` must be None or a number below 0.*10"),
        (
            {"target": "velocity"},
            ValueError,
            "`target` must be one of .* on the path 'vp_linear', but found 'velocity'",
        ),
        ({"path": "flow_matching"}, ValueError, "`target` must be one of .* on the path 'flow_matching'"),
        ({"backbone": "resnet"}, ValueError, "`backbone` must be one of .*'resnet'"),
        ({"width": 0}, ValueError, "`width` must be a whole number of at least 1, but found 0"),
        ({"width": 8, "n_heads": 3}, ValueError, "multiple.*found width 8 and 3 heads"),
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(make_gene_space, gene_space_class, options, error, words):
    with pytest.raises(error, match=words):
        make_gene_space(gene_space_class, **options)


@pytest.mark.parametrize("n_genes", [1, 12])
def test_the_default_sizes_fit_any_number_of_genes(make_cells, gene_space_class, n_genes):
    adata = make_cells(n_genes=n_genes)
    gene_space_class.setup_anndata(adata)

    assert gene_space_class(adata).architecture.patch_size <= n_genes


def test_the_unet_has_no_patches_to_fit(make_gene_space):
    assert make_gene_space(backbone="unet", patch_size=1000).architecture.backbone == "unet"


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


def test_values_may_come_from_a_layer(make_trained_gene_space, make_cells):
    adata = make_cells()
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X / 7

    model = make_trained_gene_space(SCRDIT, adata, condition_keys=[], setup={"layer": "raw"})

    assert model.generate(3, seed=0).shape == (3, 12)


def test_sparse_cells_give_the_same_model(make_trained_gene_space, make_cells):
    import scipy.sparse as sp

    one, other = (make_trained_gene_space(adata=make_cells(matrix=m)) for m in (np.asarray, sp.csr_matrix))

    for name, tensor in one.module.state_dict().items():
        torch.testing.assert_close(tensor, other.module.state_dict()[name], msg=name)  # sums in another order
