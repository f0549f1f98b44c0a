"""The import direction of the house: flows -> tasks -> index_build -> redream, and the order of the rooms in each."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("redream", "index_build", "tasks", "flows")  # each may import itself and those before it
ROOMS = {  # of each package, from the bottom; a module imports its own room and those before it
    "redream": (
        {"devices", "limits", "methods"},
        {"method_settings"},
        {"settings"},
        {
            "presets",
            "records",
            "versions",
            "files",
            "weights",
            "cameras",
            "colors",
            "images",
            "seeds",
            "setting_table",
            "interpreter",
            "messages",
            "text_files",
        },
        {"overrides"},
        {"clip", "meshes", "render"},
        {"retrieval", "orientation", "field", "prior"},
        {"distill"},
        {"metrics", "export", "pages"},
        {"pipeline"},
        {"mini"},  # makes weights and catalogs with whatever it needs; nothing of the method imports it
    ),
    "index_build": (
        {"download", "wordnet"},
        {"catalogs", "views", "embeddings"},
        {"build", "check", "compacting", "filling"},
    ),
    "tasks": (
        {"tracking"},
        {"machinery"},
        {"runs"},
        {"indexing", "retrieval"},
        {"orientation"},
        {"rendering"},
        {"adaptation", "distillation"},
        {"evaluation"},
        {"exporting"},
        {"results"},
    ),
    "flows": (
        {"requests"},
        {"processes"},
        {"batches", "service"},
        {"build_index", "generate", "evaluate"},
        {"rerun", "batch"},
        {"compare"},
        {"command"},
    ),
}
FLOWS = {"generate", "build_index", "batch", "compare", "evaluate", "rerun"}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of the house that a file imports, and the packages of others."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # `from redream.field import hash_grid` names a module below the one it is imported from.
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return found


def floor_of(module: str) -> int | None:
    """Return how high a module stands in its package."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return next((number for number, rooms in enumerate(ROOMS.get(package, ())) if room in rooms), None)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_package_imports_one_above_it(path: Path) -> None:
    own = PACKAGES.index(path.relative_to(ROOT).parts[0])
    above = {module for module in imported_modules(path) if module.split(".")[0] in PACKAGES[own + 1 :]}
    assert not above


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_room_imports_one_above_it(module: str) -> None:
    own = floor_of(module)
    if own is None:
        assert module in PACKAGES, f"{module} is in no room that ROOMS knows"
        assert not {name for name in imported_modules(MODULES[module]) if name in MODULES}
        return
    package = module.split(".")[0]
    higher = {
        name
        for name in imported_modules(MODULES[module])
        if name.split(".")[0] == package and (floor_of(name) or 0) > own
    }
    assert not higher


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imported_modules(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


def test_the_top_of_flows_holds_the_flows_and_nothing_else() -> None:
    assert {path.stem for path in (ROOT / "flows").glob("*.py")} == {"__init__", *FLOWS}


def test_the_top_of_tasks_holds_the_stages_and_nothing_else() -> None:
    stages = [path for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__"]
    assert all("run_stage(" in path.read_text() for path in stages)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_orchestrators_stay_outside_the_method(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported_modules(path)}
    if path.relative_to(ROOT).parts[0] not in ("flows", "tasks"):
        assert "prefect" not in roots
    if path != ROOT / "tasks" / "tracking" / "tracker.py":
        assert "mlflow" not in roots


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "flows")], ids=name_of)
def test_flows_import_no_array_library_but_to_examine_it(path: Path) -> None:
    heavy = {"torch", "numpy", "diffusers", "open_clip"} & {m.split(".")[0] for m in imported_modules(path)}
    assert not heavy or path.name == "doctor.py"
