"""Private names of other libraries exist, and are used in one file only."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.connectors import accelerator_connector

import scgen_diffusion
from scgen_diffusion import _compat

ROOT = Path(scgen_diffusion.__file__).parent


HOOKS = {"_get_init_params", "_get_setup_method_args", "_load_from_state_dict"}


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
