"""Configuration of the documentation site (Sphinx)."""

from __future__ import annotations

import os
import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "scgen-diffusion"
author = "scgen-diffusion developers"
copyright = f"2026, {author}"
release = version = installed_version(project)

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}  # rst first: autosummary writes it
default_role = "literal"
suppress_warnings = ["ref.footnote"]  # a docstring may list a paper without pointing to it

# The notebooks stand at the top of the repository, where users look for them; a link, which git ignores, shows them here.
TUTORIALS = Path(__file__).parent / "tutorials"
if not TUTORIALS.is_symlink():
    TUTORIALS.symlink_to(Path("..", "tutorials"), target_is_directory=True)

# Docstrings
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_preprocess_types = False

# Pages and notebooks
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = os.environ.get(
    "SCGEN_DIFFUSION_DOCS_EXECUTE", "off"
)  # the notebooks show stored outputs; "force" runs them
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
nb_output_stderr = "remove"
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# Links into other projects' pages need the network, which not every machine that builds the site has.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "mudata": ("https://mudata.readthedocs.io/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {"show_navbar_depth": 1, "use_download_button": False}


def returns_as_prose(docstring: NumpyDocstring, _section: str) -> list[str]:
    """Render a Returns section as the sentences that it is; napoleon takes every line for a value of its own."""
    lines = docstring._dedent(docstring._consume_to_next_section())
    return docstring._format_block(":returns: ", lines)


def unique_references(_app: Sphinx, _what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Let several docstrings of one page have a reference `[1]` each."""
    label = re.sub(r"\W+", "-", name).lower()
    lines[:] = [re.sub(r"\[(\d+)\](?=_|\s)", rf"[#{label}-\1]", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Adapt how docstrings are rendered."""
    NumpyDocstring._parse_returns_section = returns_as_prose
    app.connect("autodoc-process-docstring", unique_references, priority=900)
