"""The import direction of the house: flows -> tasks -> index_build -> redream, and the order inside redream."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("redream", "index_build", "tasks", "flows")  # each may import itself and those before it
LAYERS = (
    {"config", "cameras", "colors", "images", "neighbors", "scenes", "versions", "weights"},
    {"clip", "text_tower", "mesh_files", "render"},
    {"assets", "licenses"},
    {"retrieval", "index_files", "text_recall", "orientation", "field", "prior"},
    {"distill"},
    {"metrics", "export", "page", "gallery"},
    {"mini"},  # makes weights and catalogs with whatever it needs; nothing of the method imports it
)
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # `from redream.field import hash_grid` names a module below the one it is imported from.
            modules |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return modules


def layer_of(module: str) -> int | None:
    topic = module.split(".")[1] if module.startswith("redream.") else None
    return next((number for number, layer in enumerate(LAYERS) if topic in layer), None)


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=names)
def test_no_package_imports_one_above_it(path: Path) -> None:
    own = PACKAGES.index(path.relative_to(ROOT).parts[0])
    above = {module for module in imported_modules(path) if module.split(".")[0] in PACKAGES[own + 1 :]}
    assert not above


@pytest.mark.parametrize("path", FILES, ids=names)
def test_orchestrators_stay_outside_the_method(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported_modules(path)}
    if path.relative_to(ROOT).parts[0] not in ("flows", "tasks"):
        assert "prefect" not in roots
    if path != ROOT / "tasks" / "tracking.py":
        assert "mlflow" not in roots


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[-2] == "flows"], ids=names)
def test_flows_import_no_array_library_but_to_examine_it(path: Path) -> None:
    heavy = {"torch", "numpy", "diffusers", "open_clip"} & {m.split(".")[0] for m in imported_modules(path)}
    assert not heavy or path.name == "doctor.py"


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "redream")], ids=names)
def test_lower_layers_of_the_method_import_no_higher_ones(path: Path) -> None:
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:  # redream/__init__.py
        assert not any(module.startswith("redream.") for module in imported_modules(path))
        return
    higher = {module for module in imported_modules(path) if (layer_of(module) or 0) > own}
    assert not higher


def test_config_imports_nothing_of_ours() -> None:
    assert not {m for m in imported_modules(ROOT / "redream" / "config.py") if m.split(".")[0] in PACKAGES}
