"""Rules for the package as a whole that no linter checks; import rules are in ``pyproject.toml``."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import scgen_diffusion

ROOT = Path(scgen_diffusion.__file__).parent
PACKAGES = ["", *sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))]
DRAWS = {"rand", "randn", "randint", "randperm", "binomial", "poisson", "bernoulli", "multinomial", "normal"}


def import_package(name):
    return importlib.import_module(f"scgen_diffusion.{name}".rstrip("."))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_are_documented(package):
    module = import_package(package)
    assert inspect.getdoc(module)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
            doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
            # Dataclasses and named tuples write their signature where a docstring is missing.
            assert doc, f"{name} has no docstring"
            assert not doc.startswith(f"{name}("), f"{name} has no docstring"


def test_every_package_is_imported_as_an_attribute():
    assert [scgen_diffusion.__getattr__(name) for name in PACKAGES[1:]] == list(map(import_package, PACKAGES[1:]))


@pytest.mark.parametrize("package", ["datasets", "interpret", "metrics", "model", "pl", "report"])
def test_every_public_name_is_in_the_api_reference(package):
    reference = "".join(page.read_text() for page in (ROOT.parents[1] / "docs" / "api").glob("*.md"))
    module = import_package(package)
    named = [name for name in module.__all__ if callable(getattr(module, name))]
    assert [name for name in named if f"   {package}.{name}\n" not in reference] == []


def test_packages_import_only_public_names_of_each_other():
    private = re.compile(r"(from|import) scgen_diffusion\.\w+\._")
    assert [path for path in ROOT.rglob("*.py") if private.search(path.read_text())] == []


def test_random_numbers_come_from_a_generator_that_was_passed_in():
    calls = [
        (path.name, node.lineno, {keyword.arg for keyword in node.keywords})
        for package in ("diffusion", "module", "train")
        for path in (ROOT / package).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{draw}" for draw in DRAWS}
    ]
    assert len(calls) > 5
    assert [(path, line) for path, line, keywords in calls if "generator" not in keywords] == []
