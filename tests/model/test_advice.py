"""Methods of scvi-tools: each works, or says what to use."""

from inspect import isroutine

import pytest
from scvi.model.base import BaseModelClass

from scgen_diffusion.model import SCLDM

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


def test_what_is_not_there_is_not_listed(trained_gene_space):
    assert not hasattr(trained_gene_space, "posterior_predictive_sample")
    with pytest.raises(NotImplementedError, match="get_normalized_expression"):
        trained_gene_space.get_normalized_expression()


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
