"""Configuration of the documentation site (Sphinx)."""

from __future__ import annotations

import os
import sys
import tomllib
from importlib.metadata import files
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

# The notebooks are in a top-level folder, where users look for them. A link, which git ignores, shows them here.
TUTORIALS = HERE / "tutorials"
if not TUTORIALS.is_symlink():
    TUTORIALS.symlink_to(Path("..", "tutorials"), target_is_directory=True)

# The repository's address is in pyproject.toml, [project.urls] Source. Links to it appear when it is set.
REPOSITORY = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"].get("urls", {}).get("Source", "")

project = "scgen-diffusion"
author = "scgen-diffusion developers"
copyright = f"2026, {author}"
release = version = installed_version(project)

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "class_pages",
    "page_buttons",
    "tutorial_cards",
]
exclude_patterns = ["_build", "_inventories", "jupyter_execute", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}  # rst first: autosummary writes it
default_role = "literal"
suppress_warnings = ["ref.footnote"]  # a docstring may list a paper without pointing to it

# Docstrings
autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Points": "AnnData | ArrayLike", "ArrayLike": "ArrayLike"}  # numpy spells it out in four lines
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_preprocess_types = False
toc_object_entries_show_parents = "hide"

# Pages and notebooks
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # run_tutorials.py stores their outputs
nb_output_stderr = "remove"
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# Without network, links go by the few names that are listed in _inventories.
intersphinx_timeout = 5
intersphinx_mapping = {
    name: (address, (None, f"_inventories/{name}.txt"))
    for name, address in {
        "anndata": "https://anndata.readthedocs.io/en/stable/",
        "matplotlib": "https://matplotlib.org/stable/",
        "mudata": "https://mudata.readthedocs.io/stable/",
        "numpy": "https://numpy.org/doc/stable/",
        "pandas": "https://pandas.pydata.org/docs/",
        "python": "https://docs.python.org/3/",
        "scanpy": "https://scanpy.readthedocs.io/en/stable/",
        "scvi": "https://docs.scvi-tools.org/en/stable/",
        "torch": "https://docs.pytorch.org/docs/stable/",
    }.items()
}

# Formulas need no network either: MathJax comes from a Python package, as one file.
MATHJAX = next(file for file in files("sphinx-mathjax-offline") if file.name == "tex-svg.js")
mathjax_path = MATHJAX.name

html_theme = "sphinx_book_theme"
html_title = project
html_logo = html_favicon = "_static/logo.svg"
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_static_path = ["_static", str(MATHJAX.locate())]
html_css_files = ["custom.css"]
html_js_files = ["custom.js"]
html_search_scorer = str(HERE / "_ext" / "scorer.js")
html_context = {"default_mode": "auto"}  # light or dark, as the browser says
html_theme_options = {
    "logo": {"text": f"{project} {release.partition('+')[0]}", "alt_text": project},
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search box is in the sidebar
    "show_navbar_depth": 1,
    "use_download_button": True,
}
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": os.environ.get("READTHEDOCS_GIT_IDENTIFIER", "main"),
        "use_repository_button": True,
        "use_source_button": True,
        "use_edit_page_button": True,
        "use_issues_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }
