"""A file imports only from floors below its own, and never reaches up."""

import ast
from pathlib import Path

import pytest

import metaopt

ROOT = Path(metaopt.__file__).parent

# A room is a top-level file or folder; inside a folder, files may import one another.
FLOORS = {
    0: ["errors", "progress", "_version"],
    1: ["tree", "types", "exact", "peek", "skeleton", "slots", "replay", "heap"],
    2: ["show", "peak", "optim", "tasks", "functional", "gradient", "recompute", "workers"],
    3: ["step", "linsolve", "revolve"],
    4: ["memory", "root"],
    5: ["compiled"],
    6: ["batch"],
    7: ["unroll"],
    8: ["hypergrad"],
    9: ["algorithms"],
    10: ["stateful", "doctor", "plot"],
    11: ["train", "catalogue"],
    12: ["__main__", "__init__"],
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports, at the top or inside a function."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            parts = (node.module or "").split(".")
            if parts[0] == "metaopt":
                rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "metaopt":
                    rooms.add((alias.name + ".__init__").split(".")[1])
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_floors_below(path: Path) -> None:
    here = room_of(path)
    for room in imported_rooms(path) - {here}:
        assert room in FLOOR, f"{path.name} imports {room}, which has no floor"
        assert FLOOR[room] < FLOOR[here], f"{here} (floor {FLOOR[here]}) imports {room} above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert path.read_text().count("\n") <= 300, "one idea a file; stop at 300 lines"


def test_only_tree_imports_optree() -> None:
    users = [p.name for p in FILES if "import optree" in p.read_text()]
    assert users == ["tree.py"]
