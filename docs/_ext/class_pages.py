"""How docstrings become pages: members of classes, sections, links to other projects, and what the search finds."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# The methods that users look for come first; the others follow in alphabetical order.
FIRST = (
    "setup_anndata",
    "setup_mudata",
    "train",
    "generate",
    "generate_to",
    "predict_perturbation",
    "predict_perturbation_to",
    "save",
    "load",
)
# What users need of scvi-tools' BaseModelClass. Its other members are for developers of models.
OF_SCVI_TOOLS = {"device", "history", "is_trained", "test_indices", "to_device", "train_indices", "validation_indices"}
# What the user part of the API lists: the search looks into these pages, and into those of methods of SCLDM.
USER_API = re.findall(r"^   ([\w.]+)$", Path(__file__).parents[1].joinpath("api", "user.md").read_text(), re.MULTILINE)
# The names by which annotations call what other projects document.
FULL_NAMES = {
    "AnnData": "anndata.AnnData",
    "Axes": "matplotlib.axes.Axes",
    "Callable": "collections.abc.Callable",
    "Figure": "matplotlib.figure.Figure",
    "Iterable": "collections.abc.Iterable",
    "Iterator": "collections.abc.Iterator",
    "Mapping": "collections.abc.Mapping",
    "MuData": "mudata.MuData",
    "Path": "pathlib.Path",
    "Sequence": "collections.abc.Sequence",
    "Tensor": "torch.Tensor",
    "nn.Module": "torch.nn.Module",
    "np.ndarray": "numpy.ndarray",
    "pd.Categorical": "pandas.Categorical",
    "pd.DataFrame": "pandas.DataFrame",
    "pd.Index": "pandas.Index",
    "pd.Series": "pandas.Series",
}


def use_full_name(_app: Sphinx, _environment: Any, node: Any, _text: Any) -> None:
    """Complete a name that no page of ours documents, before intersphinx looks it up."""
    node["reftarget"] = FULL_NAMES.get(node.get("reftarget"), node.get("reftarget"))


def skip_member(_app: Sphinx, _what: str, name: str, value: Any, _skip: bool, _options: Any) -> bool | None:
    """Show an object's calls, without plain values, what other packages define, and methods that refer to others."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, cached_property):
        value = value.func
    module = getattr(value, "__module__", None) or ""
    if module.startswith("scvi."):
        return None if name in OF_SCVI_TOOLS else True
    summary, *_ = (getattr(value, "__doc__", None) or "").partition("\n\n")
    if not module.startswith("scgen_diffusion.") or not summary or "NotImplementedError" in summary:
        return True
    return False if name == "__call__" else None


def returns_as_prose(docstring: NumpyDocstring, _section: str) -> list[str]:
    """Render a Returns section as the sentences that it is; napoleon takes every line for a value of its own."""
    lines = docstring._dedent(docstring._consume_to_next_section())
    return docstring._format_block(":returns: ", lines)


def unique_references(_app: Sphinx, _what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Let several docstrings of one page have a reference `[1]` each."""
    label = re.sub(r"\W+", "-", name).lower()
    lines[:] = [re.sub(r"\[(\d+)\](?=_|\s)", rf"[#{label}-\1]", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the functions above, and tell the templates which methods come first and which pages are searched."""
    NumpyDocstring._parse_returns_section = returns_as_prose
    app.config.autosummary_context |= {"first": FIRST, "searched": USER_API}
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", use_full_name, priority=100)
    app.connect("autodoc-process-docstring", unique_references, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
