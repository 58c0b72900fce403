"""How the package is built: imports go one way, every public name is documented, files stay small.

What may import what is in the developer guide; a new package needs a line in ``MAY_IMPORT``.
"""

import ast
import importlib
import inspect
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import scgen_diffusion

ROOT = Path(scgen_diffusion.__file__).parent
NAME = "scgen_diffusion"
FILES = sorted(ROOT.rglob("*.py"))

MODELS = {"diffusion", "nn", "module", "train", "data", "model"}
BESIDE = {"metrics", "pl", "pp", "datasets", "reporting", "settings"}
MAY_IMPORT = {
    "diffusion": set(),
    "nn": set(),
    "module": {"diffusion", "nn"},
    "train": {"module", "diffusion", "nn"},
    "data": set(),
    "model": (MODELS | BESIDE) - {"model"},
    "metrics": {"data"},
    "pl": {"data", "metrics"},
    "pp": {"data"},
    "reporting": {"data", "metrics", "pl"},
    "datasets": {"data"},
    "settings": set(),
    "cli": MODELS | BESIDE,
    "main__": {"cli"},
    "compat": set(),
    "": MODELS | BESIDE | {"cli"},  # the package's own __init__
}
THIRD_PARTIES_OF_THE_MATHEMATICS = {"torch", "torchdiffeq", "numpy", "ot"}  # ot: optimal transport
MAX_LINES = 400
DRAWS = {"rand", "randn", "randint", "randperm", "binomial", "poisson", "bernoulli", "multinomial", "normal"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def package_of(path):
    """Return the folder or file right below the package that a file belongs to, "" for the package's own __init__."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py").lstrip("_")
    return "" if first == "init__" else first


def module_of(path):
    """Return a file's dotted name."""
    parts = (NAME, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path):
    return ast.parse(path.read_text(), filename=str(path))


def imports_of(path, tree=None):
    """List (module, names) of every import in a file, relative ones resolved, those for type checkers included."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    found = []
    for node in ast.walk(tree or parse(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            found.append((".".join(filter(None, [base, node.module])), [alias.name for alias in node.names]))
    return found


def own_targets(path, tree=None):
    """List what a file imports from this package, as dotted names of modules or of names in them."""
    targets = []
    for module, names in imports_of(path, tree):
        if module.split(".")[0] == NAME:
            targets += [f"{module}.{name}" for name in names] or [module]
    return targets


def imported_packages(path):
    """Return the other packages of ours that a file imports from."""
    own = package_of(path)
    return {package for target in own_targets(path) if (package := (target.split(".") + [""])[1]) != own} - {""}


per_file = pytest.mark.parametrize("path", FILES, ids=name_of)


def test_there_are_files_to_look_at():
    assert len(FILES) > 30
    assert {package_of(path) for path in FILES} >= MODELS


@per_file
def test_imports_go_one_way(path):
    assert package_of(path) in MAY_IMPORT, "a new package needs a line in MAY_IMPORT"
    imported = {package.lstrip("_") for package in imported_packages(path)} - {"version__", "compat"}
    assert imported <= MAY_IMPORT[package_of(path)]


def test_the_rules_themselves_have_no_cycle():
    list(TopologicalSorter(MAY_IMPORT).static_order())


@per_file
def test_packages_import_only_public_names_of_each_other(path):
    own = package_of(path)
    for target in own_targets(path):
        parts = target.split(".")[1:]
        if own and parts and parts[0].lstrip("_") not in (own, "compat"):
            private = [part for part in parts if part.startswith("_") and not part.startswith("__")]
            assert not private, f"{target} is private to {parts[0]}"


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


class WithoutLateImports(ast.NodeTransformer):
    """Drop what is not executed on import."""

    def visit_If(self, node):
        return None if is_for_type_checkers(node) else self.generic_visit(node)

    def visit_FunctionDef(self, node):
        return None


def test_no_module_imports_itself_through_others():
    modules = {module_of(path): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        targets = own_targets(path, WithoutLateImports().visit(parse(path)))
        # A target is a module, or a name in one.
        hits = {target if target in modules else target.rpartition(".")[0] for target in targets}
        graph[module] = {hit for hit in hits if hit in modules and hit != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"These modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", [path for path in FILES if package_of(path) in ("diffusion", "nn")], ids=name_of)
def test_the_mathematics_needs_torch_only(path):
    roots = {module.split(".")[0] for module, _ in imports_of(path)}
    assert roots - sys.stdlib_module_names - {NAME} <= THIRD_PARTIES_OF_THE_MATHEMATICS


@pytest.mark.parametrize("package", sorted({package_of(path) for path in FILES if path.name == "__init__.py"}))
def test_public_names_exist_and_are_documented(package):
    module = importlib.import_module(f"{NAME}.{package}".rstrip("."))
    assert inspect.getdoc(module)
    assert sorted(set(module.__all__)) == sorted(module.__all__), "a name is listed twice"
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
            doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
            assert doc, f"{name} has no docstring"
            # Dataclasses and named tuples write their signature where a docstring is missing.
            assert not doc.startswith(f"{name}("), f"{name} has no docstring"


@pytest.mark.parametrize("package", sorted({package_of(path) for path in FILES if path.name == "__init__.py"}))
def test_everything_that_a_package_exports_is_listed(package):
    path = ROOT / package / "__init__.py"
    exported = {
        alias.asname or alias.name
        for node in parse(path).body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert exported <= set(importlib.import_module(f"{NAME}.{package}".rstrip(".")).__all__)


@pytest.mark.parametrize("package", ["datasets", "metrics", "model", "pl"])
def test_every_public_name_is_in_the_api_reference(package):
    reference = (ROOT.parents[1] / "docs" / "api.md").read_text()
    module = importlib.import_module(f"{NAME}.{package}")
    named = [name for name in module.__all__ if callable(getattr(module, name))]
    assert [name for name in named if f"   {package}.{name}\n" not in reference] == []


@per_file
def test_nothing_is_printed(path):
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    printed = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not printed, f"print in lines {printed}; use logging"


@per_file
def test_files_are_one_idea_long(path):
    assert len(path.read_text().splitlines()) < MAX_LINES


@pytest.mark.parametrize(
    "path", [path for path in FILES if package_of(path) in ("diffusion", "module", "train")], ids=name_of
)
def test_random_numbers_come_from_a_generator_that_was_passed_in(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DRAWS:
            if ast.unparse(node.func.value) == "torch":
                keywords = {keyword.arg for keyword in node.keywords}
                assert "generator" in keywords, f"line {node.lineno} draws from the global generator"


@per_file
def test_the_global_random_state_is_never_set(path):
    setters = {"torch.manual_seed", "np.random.seed", "numpy.random.seed", "random.seed", "torch.cuda.manual_seed_all"}
    called = {ast.unparse(node.func) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)}
    assert not called & setters
