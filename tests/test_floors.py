"""The house of the package: a file imports only from its own floor's package or from lower floors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxformer"
FLOORS = (
    {"interrupts", "errors", "extras", "schema", "locks", "flags", "machine", "backends", "ops", "config", "parallel"},
    {"layers"},
    {"model", "cache", "rereading", "presets"},
    {"generation", "training", "data", "pretrained", "visualize"},
    {"tasks"},
    {"cli"},
    {"__init__", "__main__"},
)
# Within the lowest floor operations know nothing of configurations; `config` names the activations that exist.
NEVER = {
    ("ops", "config"),
    ("backends", "config"),
    ("schema", "ops"),
    ("schema", "config"),
    ("errors", "ops"),
    ("errors", "config"),
    ("generation", "model"),
    ("training", "model"),
}
# Neighbours that need each other: a folder's weights come with settings for generation, and with a tokenizer.
NEIGHBOURS = {
    ("pretrained", "generation"),
    ("pretrained", "data"),
    ("ops", "errors"),
    ("ops", "backends"),
    ("backends", "errors"),
    ("backends", "machine"),
    ("backends", "schema"),
    ("extras", "errors"),
    ("schema", "errors"),
    ("locks", "errors"),
    ("parallel", "errors"),
    ("ops", "parallel"),
    ("machine", "errors"),
    ("config", "errors"),
    ("config", "schema"),
    ("config", "ops"),
    ("presets", "model"),
    ("model", "cache"),
    ("model", "rereading"),
    ("rereading", "cache"),
    ("__main__", "__init__"),
}


def part(module: str) -> str:
    """The part of the package that a dotted module name belongs to."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    """The parts that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {part(alias.name) for alias in node.names if alias.name.split(".")[0] == "jaxformer"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxformer":
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "jaxformer" else [node.module]
            )
            found |= {part(name) for name in names}
    return found


def floor(name: str) -> int:
    return next(index for index, names in enumerate(FLOORS) if name in names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports(path) - {own}:
        assert (own, other) not in NEVER
        assert floor(other) < floor(own) or (own, other) in NEIGHBOURS, f"{own} imports {other}"


@pytest.mark.smoke
def test_every_part_has_a_floor() -> None:
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    parts.discard("__pycache__")
    assert parts == set.union(*FLOORS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert [each.name for each in functions if each.end_lineno - each.lineno >= 60] == []
