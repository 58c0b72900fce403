"""Private names of other libraries exist, and are used in one file only."""

import re
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anndata import AnnData
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors import accelerator_connector
from scvi.model.base import BaseModelClass
from scvi.module.base import BaseModuleClass

import scgen_diffusion
from scgen_diffusion import _compat
from scgen_diffusion.model import SCLDM

ROOT = Path(scgen_diffusion.__file__).parent


def cells(n_genes=3):
    return AnnData(np.ones((4, n_genes), np.float32))


def set_up():
    adata = cells()
    SCLDM.setup_anndata(adata)
    return adata


def set_up_model():
    return SCLDM(set_up())


def annbatch_sampler():
    return pytest.importorskip("annbatch.abc", reason="annbatch needs Python 3.12").Sampler


#: What ``_compat.py`` does with private names, and the hooks that subclasses here override or call.
USES = {
    "lightning: _AcceleratorConnector": lambda: _compat.parse_device_args("cpu", "auto"),
    "lightning: _checkpoint_connector": lambda: Trainer(logger=False)._checkpoint_connector.dump_checkpoint,
    "scvi-tools: _get_most_recent_anndata_manager": lambda: _compat.registered_manager(SCLDM, set_up()).registry,
    "scvi-tools: _per_instance_manager_store": lambda: BaseModelClass._per_instance_manager_store,
    "scvi-tools: _setup_adata_manager_store": lambda: SCLDM._setup_adata_manager_store,
    "scvi-tools: _SCVI_UUID_KEY": lambda: _compat.separate_copy(set_up_model(), cells()),
    "torch: _load_from_state_dict": lambda: torch.nn.Module._load_from_state_dict,
    "scvi-tools: _get_init_params": lambda: BaseModelClass._get_init_params,
    "scvi-tools: _get_setup_method_args": lambda: BaseModelClass._get_setup_method_args,
    "scvi-tools: _validate_anndata": lambda: BaseModelClass._validate_anndata,
    "scvi-tools: _get_inference_input": lambda: BaseModuleClass._get_inference_input,
    "scvi-tools: _get_generative_input": lambda: BaseModuleClass._get_generative_input,
    "lightning: _sigterm_notifier_fn": lambda: Trainer(logger=False)._signal_connector._sigterm_notifier_fn,
    "annbatch: _sample": lambda: annbatch_sampler()._sample,
}
HOOKS = {
    "_get_init_params",
    "_get_setup_method_args",
    "_validate_anndata",
    "_load_from_state_dict",
}


@pytest.mark.parametrize("use", USES)
def test_a_private_name_that_the_package_uses_is_still_there(use):
    library, name = use.split(": ")
    try:
        USES[use]()
    except (AttributeError, ImportError) as error:
        message = (
            f"{library} {version(library)} has no `{name}` any more, which scgen_diffusion uses: mend "
            "scgen_diffusion/_compat.py."
        )
        pytest.fail(f"{message} ({error})")


def test_private_names_of_other_libraries_are_in_one_file():
    texts = {path: path.read_text() for path in ROOT.rglob("*.py")}
    definition = r"(?:def|class) (_\w+)|\b(_[a-z]\w*)(?:: [^=\n]+)? = |^\s+(_[a-z]\w*): |self\.(_[a-z]\w*), "
    own = {name for text in texts.values() for names in re.findall(definition, text, re.MULTILINE) for name in names}
    own |= {path.stem for path in texts} | HOOKS | {"_fields", "_asdict"}  # those of named tuples are public
    used = {(path.name, name) for path, text in texts.items() for name in re.findall(r"[\w)\]]\.(_[a-z]\w*)", text)}
    assert {(file, name) for file, name in used if file != "_compat.py" and name not in own} == set()


def test_apples_mps_is_refused_before_any_work(monkeypatch):
    found = SimpleNamespace(_accelerator_flag="mps", _devices_flag=[0])
    monkeypatch.setattr(accelerator_connector, "_AcceleratorConnector", lambda **_: found)

    with pytest.raises(ValueError, match="accelerator"):
        _compat.parse_device_args("mps", "auto")


def test_numba_does_not_undo_the_limit_of_threads(run_apart):
    script = """
import numba, numpy as np, torch
from anndata import AnnData
from scgen_diffusion.model import SCRDIT

numba.set_num_threads(2)  # which starts its threads, as a parallel function does
after_numba = torch.get_num_threads()
cells = AnnData(np.random.default_rng(0).poisson(2, (60, 5)).astype("float32"))
SCRDIT.setup_anndata(cells)
model = SCRDIT(cells)
model.train(1, accelerator="cpu", enable_progress_bar=False)
trained = torch.get_num_threads()
torch.set_num_threads(3)
model.generate(2)
print(after_numba, trained, torch.get_num_threads())
"""
    assert run_apart(script)[0].split() == ["2", "1", "3"]
