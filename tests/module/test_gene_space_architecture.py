"""Options of the gene-space models: what is published, and what is refused."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgen_diffusion.module import GeneSpaceArchitecture, GeneSpaceModule, build_gene_space_architecture

MODELS = ["SCRDIT", "WBDIT"]
NAMES = [field.name for field in fields(GeneSpaceArchitecture)]
WHOLE = ["patch_size", "width", "n_heads", "unet_width"]


def published(model):
    return build_gene_space_architecture(model, "published")


@pytest.mark.parametrize(
    ("model", "backbone", "zero_value", "millions"),
    [("SCRDIT", "dit", -10.0, 34.0), ("WBDIT", "white_box", None, 18.1)],
)
def test_the_published_sizes_are_those_of_the_papers(model, backbone, zero_value, millions):
    """The papers count the fixed embeddings of positions too."""
    a = published(model)
    with torch.device("meta"):
        network = GeneSpaceModule(2000, architecture=a).network

    positions = [buffer.numel() for name, buffer in network.named_buffers() if name.endswith("positions")]
    n_parameters = sum(p.numel() for p in network.parameters()) + sum(positions)
    assert n_parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert (a.backbone, a.path, a.target, a.head) == (backbone, "vp_linear", "noise", "regression")
    assert (a.patch_size, a.width, a.n_layers, a.n_heads, a.n_global_tokens) == (10, 768, 3, 8, 0)
    assert (a.zero_value, a.scaling, a.ema_decay) == (zero_value, "none", 0.0)


def test_the_white_box_model_is_white_by_default():
    assert build_gene_space_architecture("WBDIT", "default").backbone == "white_box"
    assert build_gene_space_architecture("SCRDIT", "default").backbone != "white_box"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", ["default", "published"])
def test_an_architecture_is_rebuilt_from_its_own_options(model, size):
    a = build_gene_space_architecture(model, size)

    assert build_gene_space_architecture(model, "default", **asdict(a)) == a


@given(st.integers(1, 60_000), st.integers(1, 10**7), st.booleans())
def test_the_default_sizes_fit_any_data(n_genes, n_cells, on_gpu):
    a = build_gene_space_architecture("SCRDIT", "default", n_genes=n_genes, n_cells=n_cells, on_gpu=on_gpu)

    assert 1 <= a.patch_size <= n_genes
    assert a.width % a.n_heads == 0


def test_few_cells_have_few_axes_for_masked_molecules_alone():
    def n_axes(n_cells, **options):
        return build_gene_space_architecture("SCRDIT", "default", n_cells=n_cells, **options).n_axes

    assert (n_axes(4999), n_axes(5000), n_axes(4999, n_axes=None)) == (32, None, None)
    assert n_axes(10, path="vp_linear") is n_axes(10, backbone="dit") is None


def test_custom_and_published_sizes_do_not_depend_on_the_data():
    few = {"n_genes": 5, "n_cells": 5, "on_gpu": False}

    assert build_gene_space_architecture("WBDIT", "published", **few) == published("WBDIT")
    assert build_gene_space_architecture("WBDIT", "default", patch_size=3, width=12, **few).patch_size == 3


@pytest.mark.parametrize("model", MODELS)
def test_an_unknown_option_names_the_closest_first(model):
    with pytest.raises(TypeError, match=f"{model} has no option 'n_layer'.*closest first: 'n_layers'"):
        build_gene_space_architecture(model, "default", n_layer=2)


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match=r"`size` must be one of \['default', 'published'\], but found 'large'"):
        build_gene_space_architecture("SCRDIT", "large")


@pytest.mark.parametrize("value", [0, 0.0, 3, 10.0, -1001, float("nan"), -float("inf"), "-10", True, [-10]])
def test_a_value_for_zeros_must_be_below_them(value):
    with pytest.raises(ValueError, match="`zero_value` must be None or a number below 0"):
        replace(published("SCRDIT"), zero_value=value)


@given(st.one_of(st.none(), st.floats(-1000, -1e-6), st.integers(-1000, -1)))
def test_any_negative_value_for_zeros_is_allowed(value):
    assert replace(published("SCRDIT"), zero_value=value).zero_value == value


@pytest.mark.parametrize(("path", "target"), [("vp_linear", "kinds"), ("masking", "noise"), ("masking", "data")])
def test_a_target_that_the_path_does_not_have_is_refused(path, target):
    with pytest.raises(ValueError, match=rf"`target` must be one of .* on the path '{path}', but found '{target}'"):
        replace(published("SCRDIT"), path=path, target=target)


def test_the_spike_and_slab_predicts_the_data():
    with pytest.raises(ValueError, match="`head='spike_and_slab'` predicts the data.*'noise'"):
        replace(published("SCRDIT"), head="spike_and_slab")


@pytest.mark.parametrize(
    "name", ["backbone", "path", "target", "head", "scaling", "condition_strategy", "library_size"]
)
def test_an_unknown_choice_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*but found 'other'"):
        replace(published("SCRDIT"), **{name: "other"})


@given(st.sampled_from(WHOLE), st.one_of(st.integers(max_value=0), st.floats(), st.booleans(), st.text(), st.none()))
def test_sizes_are_whole_numbers_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1"):
        replace(published("SCRDIT"), **{name: value})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "backbone": st.sampled_from(["dit", "unet", "white_box"]),
            "scaling": st.sampled_from(["none", "gene"]),
            "patch_size": st.integers(1, 10_000),
            "n_layers": st.integers(1, 100),
            "n_global_tokens": st.integers(0, 100),
            "ema_decay": st.floats(0, 1),
        },
    )
)
def test_allowed_options_are_taken_over(options):
    a = build_gene_space_architecture("WBDIT", "published", **options)

    assert {name: getattr(a, name) for name in options} == options
    untouched = asdict(published("WBDIT"))
    assert all(getattr(a, name) == untouched[name] for name in NAMES if name not in options)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.9", True])
def test_a_decay_lies_between_zero_and_one(value):
    with pytest.raises(ValueError, match="`ema_decay` must be a number from 0 to 1"):
        replace(published("SCRDIT"), ema_decay=value)


def test_an_architecture_cannot_be_changed():
    with pytest.raises(AttributeError):
        published("SCRDIT").width = 3
