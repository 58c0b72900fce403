"""Options of architectures: what is published, and what is refused before anything is built."""

from dataclasses import asdict, fields

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scgen_diffusion.module import (
    SCLDM_ARCHITECTURES,
    SCMDM_ARCHITECTURES,
    SCRDIT_ARCHITECTURES,
    WBDIT_ARCHITECTURES,
    MoleculeModule,
    ProfileModule,
    SCLDMArchitecture,
    SCLDMModule,
    change_options,
)

NAN, INF = float("nan"), float("inf")


def of_scldm(size, **changes):
    return change_options(SCLDM_ARCHITECTURES, size, changes)


def of_scrdit(size, **changes):
    return change_options(SCRDIT_ARCHITECTURES, size, changes)


def of_scmdm(**changes):
    return change_options(SCMDM_ARCHITECTURES, "default", changes)


@pytest.mark.parametrize("build", [of_scldm, of_scrdit])
def test_changes_leave_the_rest_and_what_is_unknown_is_named(build):
    before, after = build("published"), build("published", ema_decay=0.5)
    names = [field.name for field in fields(before)]
    assert [name for name in names if getattr(before, name) != getattr(after, name)] == ["ema_decay"]
    assert build("default", **asdict(before)) == before
    with pytest.raises(TypeError, match="'n_layer'"):
        build("default", n_layer=1)
    with pytest.raises(ValueError, match="`size`"):
        build("huge")
    with pytest.raises(AttributeError):
        before.ema_decay = 3


CHOICES = ["latent", "pooling", "decoder", "likelihood", "dispersion", "condition_strategy"]
BAD = [(name, "other") for name in CHOICES]
BAD += [("width", 0), ("n_latent", True), ("n_latent_tokens", 2.0), ("n_heads", "4"), ("prior_n_layers", -1)]
BAD += [("feed_forward_width", 0), ("padded_length", -3), ("mask_padding", 3), ("decoder", None)]
BAD += [("ema_decay", value) for value in (1.5, -0.1, "high", NAN, True)]
CHOICES_OF_GENE_SPACE = ["backbone", "target", "head", "scaling", "condition_strategy"]
BAD_IN_GENE_SPACE = [(name, "other") for name in CHOICES_OF_GENE_SPACE]
BAD_IN_GENE_SPACE += [("patch_size", value) for value in (0, -1, 2.0, NAN, True, "4")]
BAD_IN_GENE_SPACE += [("width", 0), ("n_heads", 0), ("unet_width", 0), ("ema_decay", 1.1)]
BAD_IN_GENE_SPACE += [("zero_value", value) for value in (0, 3, 10.0, -1001, NAN, -INF, "-10", True, [-10])]
BAD_IN_GENE_SPACE += [("head", "spike_and_slab")]


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [*[(of_scldm, *bad) for bad in BAD], *[(of_scrdit, *bad) for bad in BAD_IN_GENE_SPACE]],
)
def test_a_value_that_is_not_allowed_is_named(build, name, value):
    with pytest.raises(ValueError, match=f"`{name}[`=]"):
        build("published", **{name: value})


@pytest.mark.parametrize(("name", "value"), [("backbone", "unet"), ("n_axes", 0)])
def test_masked_molecules_have_options_of_their_own(name, value):
    with pytest.raises(ValueError, match=name):
        of_scmdm(**{name: value})


@pytest.mark.parametrize(
    "changes", [{"width": 9}, {"n_heads_cross": 3, "decoder": "gene_queries"}, {"prior_width": 10, "prior_n_heads": 4}]
)
def test_heads_must_divide_the_width(tiny, changes):
    with pytest.raises(ValueError, match="head"):
        SCLDMModule(5, architecture=SCLDMArchitecture(**{**tiny, **changes}))


@pytest.mark.parametrize(
    ("architectures", "backbone", "zero_value", "millions"),
    [(SCRDIT_ARCHITECTURES, "dit", -10.0, 34.0), (WBDIT_ARCHITECTURES, "white_box", None, 18.1)],
)
def test_the_published_sizes_are_those_of_the_papers(architectures, backbone, zero_value, millions):
    """The papers count the fixed embeddings of positions too."""
    a = architectures["published"]
    with torch.device("meta"):
        network = ProfileModule(2000, architecture=a).network

    positions = [buffer.numel() for name, buffer in network.named_buffers() if name.endswith("positions")]
    n_parameters = sum(p.numel() for p in network.parameters()) + sum(positions)
    assert n_parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert (a.backbone, a.target, a.head) == (backbone, "noise", "regression")
    assert (a.patch_size, a.width, a.n_layers, a.n_heads, a.n_global_tokens) == (10, 768, 3, 8, 0)
    assert (a.zero_value, a.scaling, a.ema_decay) == (zero_value, "none", 0.0)


@settings(max_examples=10)
@given(st.integers(1, 60_000))
@example(1)
@example(60_000)
def test_the_default_patches_fit_any_number_of_genes(n_genes):
    profiles, molecules = of_scrdit("default", width=8), of_scmdm(backbone="dit", width=8)
    for module, architecture in ((ProfileModule, profiles), (MoleculeModule, molecules)):
        with torch.device("meta"):
            backbone = module(n_genes, architecture=architecture).network.backbone

        assert 1 <= backbone.patch_size <= n_genes
        assert backbone.n_patches * backbone.patch_size >= n_genes
