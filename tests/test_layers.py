"""The import direction: every module may import only rooms at or below its own."""

import ast
from pathlib import Path

import pytest

import clease_nn

ROOT = Path(clease_nn.__file__).parent

# lowest first; a room may import the rooms of lower floors and, without circles, of its own
FLOORS = [
    [
        "lattice",
        "symmetry",
        "conditions",
        "statistics",
        "warnings",
        "errors",
        "cost",
        "compute",
        "compiled",
        "executors",
        "files",
        "named",
        "distances",
    ],
    ["configurations", "schedules"],
    ["energies", "ensemble", "networks"],
    ["montecarlo", "single_chain", "models"],
    ["thermodynamics", "sampling", "sources", "objectives"],
    ["phases", "diagnostics", "training", "recipes", "io", "surrogate"],
    ["sampler"],
    ["export"],
    ["hosts", "plotting", "cli", "__main__"],
]
FLOOR = {room: k for k, rooms in enumerate(FLOORS) for room in rooms}

# walls within what the floors allow
FORBIDDEN = {
    "networks": {"energies", "ensemble"},
    "models": {"energies", "ensemble", "montecarlo"},
    "energies": {"networks", "ensemble"},
    "ensemble": {"networks", "energies"},
    "montecarlo": {"networks", "models"},
    "single_chain": {"networks", "models", "montecarlo"},
    "thermodynamics": {"models", "networks", "montecarlo", "sampling", "sources", "objectives"},
    "plotting": {"hosts", "cli"},
    "hosts": {"cli"},
}

# packages that only these rooms may import
RESERVED = {
    "clease": {"hosts", "cli"},
    "icet": {"hosts"},
    "mchammer": {"hosts"},
    "matplotlib": {"plotting"},
    "click": {"cli"},
}

MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    """First part of a module's path below the package."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names imported anywhere in a module, also inside functions."""
    package = ("clease_nn", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            # ``from clease_nn import x`` imports the room x or a name of the top module
            found |= (
                {f"clease_nn.{alias.name}" for alias in node.names}
                if name == "clease_nn"
                else {name}
            )
    return found


def rooms_imported(path: Path) -> set[str]:
    """Rooms of the package that a module imports, its own left out."""
    inner = {name.split(".")[1] for name in imports(path) if name.startswith("clease_nn.")}
    return inner - {room_of(path), "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_has_a_room_and_imports_downwards(path):
    """A module imports rooms of its own floor or below, and none behind a wall."""
    room = room_of(path)
    assert room in FLOOR, f"{room} is no room of the design; put it on a floor of this test"
    for other in sorted(rooms_imported(path)):
        assert other in FLOOR, f"{room} imports {other}, which is no room (import from its module)"
        assert FLOOR[other] <= FLOOR[room], f"{room} imports {other} from a floor above"
        assert other not in FORBIDDEN.get(room, ()), f"{room} must not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_reserved_packages_stay_in_their_rooms(path):
    """The core imports neither a host code nor matplotlib nor click."""
    room = room_of(path)
    for name in imports(path):
        top = name.split(".")[0]
        assert room in RESERVED.get(top, {room}), f"{room} must not import {top}"


def test_rooms_import_one_another_without_circles():
    """The imports between rooms can be put in an order."""
    below = {room: set() for room in FLOOR}
    for path in MODULES:
        below[room_of(path)] |= rooms_imported(path)
    while free := [room for room, needs in below.items() if not needs & set(below)]:
        for room in free:
            del below[room]
    assert not below, f"circular imports between {sorted(below)}"


def test_top_module_imports_no_host_eagerly():
    """Importing the package needs neither a host code nor matplotlib nor click."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    eager = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            eager |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            eager.add(node.module or "")
    for name in eager:
        parts = name.split(".")
        assert parts[0] not in RESERVED
        assert not {"hosts", "plotting", "cli"} & set(parts)


def test_imports_are_found_in_every_form(tmp_path, monkeypatch):
    """Absolute, relative, aliased and local imports are all seen."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "energies").mkdir()
    path = tmp_path / "energies" / "x.py"
    path.write_text(
        "from clease_nn import models as m, __version__\n"
        "from .tables import ClusterTables\n"
        "from ..lattice import Lattice\n"
        "def f():\n    import matplotlib.pyplot as plt\n    from clease_nn.hosts.clease import y\n"
    )
    assert rooms_imported(path) == {"models", "lattice", "hosts"}
    assert "matplotlib.pyplot" in imports(path)
