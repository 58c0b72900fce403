"""Methods of scvi-tools: each works, or says what to use."""

from __future__ import annotations

from inspect import isroutine

import pytest
from scvi.model.base import BaseModelClass

from scgen_diffusion.model import SCLDM

IN_GENE_SPACE = {
    "get_latent_representation": "use SCLDM, or embed cells with scanpy.pp.pca",
    "get_elbo": "scgen_diffusion.metrics.evaluate",
    "get_normalized_expression": "generate.condition=",
    "posterior_predictive_sample": "generate.condition=",
    "differential_expression": "generated cells are not replicates",
}
ARGUMENTS = {
    "data_registry": lambda adata: ["X"],
    "get_anndata_manager": lambda adata: [adata],
    "get_from_registry": lambda adata: [adata, "X"],
    "get_setup_arg": lambda adata: ["values"],
    "get_state_registry": lambda adata: ["X"],
    "to_device": lambda adata: ["cpu"],
    "transfer_fields": lambda adata: [adata.copy()],
}
ELSEWHERE = {"convert_legacy_save", "load", "load_registry", "register_manager", "save", "setup_anndata", "train"}
NEVER_CALLED = {"deregister_manager", "update_setup_method_args"}  # by users; they change what models are made of
NAMES = [
    name for name in dir(BaseModelClass) if not name.startswith(("_", "view_")) and name not in ELSEWHERE | NEVER_CALLED
]


@pytest.fixture(scope="module")
def loaded(saved_model):
    return SCLDM.load(saved_model, adata=False, accelerator="cpu")


@pytest.mark.parametrize("name", IN_GENE_SPACE)
def test_a_gene_space_model_says_what_to_call_instead(trained_gene_space, name):
    with pytest.raises((AttributeError, NotImplementedError), match=f"has no `{name}`: .*{IN_GENE_SPACE[name]}"):
        getattr(trained_gene_space, name)()


@pytest.mark.parametrize("name", ["differential_expression", "get_marginal_ll", "minify_adata"])
def test_scldm_says_what_to_call_instead(trained, name):
    with pytest.raises((AttributeError, NotImplementedError), match=f"SCLDM has no `{name}`: "):
        getattr(trained, name)()


@pytest.mark.parametrize(
    ("name", "argument", "advice"),
    [
        ("get_normalized_expression", "transform_batch", "Known, closest first: 'batch_size'"),
        ("get_latent_representation", "mc_samples", "Known, closest first: "),
        ("get_elbo", "dataloader", "Known, closest first: "),
        ("get_reconstruction_error", "dataloader", "Known, closest first: "),
        ("posterior_predictive_sample", "silent", "Known, closest first: "),
        ("prepare_query_anndata", "inplace", "Known, closest first: "),
        ("load", "mdata", "Use `adata`"),
        ("load", "use_gpu", "Use `accelerator`"),
    ],
)
def test_an_argument_of_scvi_tools_is_answered_with_those_there_are(name, argument, advice):
    with pytest.raises(TypeError, match=f"`{name}` has no argument '{argument}'. {advice}"):
        getattr(SCLDM, name)(**{argument: None})


def test_what_is_not_there_is_not_listed(trained, trained_gene_space):
    assert not hasattr(trained_gene_space, "posterior_predictive_sample")
    assert "get_elbo" not in dir(trained_gene_space)
    assert hasattr(trained, "posterior_predictive_sample")
    with pytest.raises(AttributeError, match="'SCLDM' object has no attribute 'get_nothing'"):
        trained.get_nothing  # noqa: B018 - the access is the test


@pytest.mark.parametrize("has_cells", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_of_scvi_tools_works_or_says_why_not(trained, loaded, monkeypatch, has_cells, name):
    monkeypatch.setattr(SCLDM, "_setup_adata_manager_store", dict(SCLDM._setup_adata_manager_store))
    model = trained if has_cells else loaded

    answers = []
    try:
        value = getattr(model, name)
        if isroutine(value):
            value(*ARGUMENTS.get(name, lambda adata: [])(trained.adata))
    except (ValueError, NotImplementedError, AssertionError) as error:
        answers = str(error).split()
    assert answers == [] or len(answers) > 5
