"""Options of the architecture: unknown names and bad values are refused before anything is built."""

from __future__ import annotations

from dataclasses import fields

import pytest

from scgen_diffusion.module import (
    ARCHITECTURES,
    SCLDMArchitecture,
    SCLDMModule,
    build_architecture,
)


@pytest.mark.parametrize(
    ("name", "closest"),
    [("n_latents", "n_latent"), ("prior_layers", "prior_n_layers"), ("likelyhood", "likelihood"), ("heads", "n_heads")],
)
def test_an_unknown_option_names_the_closest_first(name, closest):
    with pytest.raises(TypeError, match=f"no option '{name}'.*closest first: '{closest}'"):
        build_architecture("default", **{name: 1})


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(ValueError, match="'default', 'published'.*'huge'"):
        build_architecture("huge")


def test_only_the_default_is_wider_for_many_cells_and_given_sizes_stay():
    few, many = (build_architecture("default", n_cells=n, n_factors=5) for n in (19_999, 20_000))

    assert few == build_architecture("default", n_factors=5)
    assert (many.pooling_width, many.decoder_width, many.n_factors) == (512, 256, 5)
    assert build_architecture("published", n_cells=10**6) == ARCHITECTURES["published"]


def test_changes_leave_the_rest_of_the_named_architecture():
    changed = build_architecture("published", n_latent=3)

    differing = [
        f.name for f in fields(changed) if getattr(changed, f.name) != getattr(ARCHITECTURES["published"], f.name)
    ]
    assert differing == ["n_latent"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latent", "vae"),
        ("pooling", "mean"),
        ("decoder", None),
        ("likelihood", "poisson"),
        ("dispersion", "cell"),
        ("condition_strategy", "mutually exclusive"),
        ("library_size", "normals"),
        ("width", 0),
        ("n_latent", -1),
        ("n_latent_tokens", 2.0),
        ("n_heads", "4"),
        ("prior_n_layers", -1),
        ("ema_decay", 1.5),
        ("ema_decay", -0.1),
        ("ema_decay", "high"),
        ("padded_length", -3),
        ("feed_forward_width", 0),
        ("outliers", "yes"),
        ("mask_padding", 3),
        ("n_latent", True),
    ],
)
def test_a_value_that_is_not_allowed_is_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be.*{value!r}"):
        build_architecture("default", **{name: value})


def test_no_layers_are_allowed(tiny):
    SCLDMModule(5, architecture=SCLDMArchitecture(**{**tiny, "n_layers": 0, "prior_n_layers": 0}))


@pytest.mark.parametrize(
    "changes", [{"width": 9}, {"n_heads_cross": 3, "decoder": "gene_queries"}, {"prior_width": 10, "prior_n_heads": 4}]
)
def test_heads_must_divide_the_width(tiny, changes):
    with pytest.raises(ValueError, match="head"):
        SCLDMModule(5, architecture=SCLDMArchitecture(**{**tiny, **changes}))


def test_an_architecture_cannot_be_changed_after_it_was_checked():
    with pytest.raises(AttributeError):
        ARCHITECTURES["default"].width = 3
