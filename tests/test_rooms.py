"""The rooms of the library: imports go downwards only, and in no circle."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import keras_pruning

LIBRARY = Path(keras_pruning.__file__).parent
ORDER = ("models", "channels", "pruning", "inference", "recovery", "measuring", "studies", "plots")


def imports_of(file: Path) -> set[str]:
    """Dotted names of the library that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("keras_pruning")}


def modules() -> dict[str, set[str]]:
    """Each module in a room, and what it imports of the library."""
    return {
        f"keras_pruning.{room}.{file.stem}": imports_of(file)
        for room in ORDER
        for file in sorted((LIBRARY / room).glob("*.py"))
    }


def test_the_library_has_a_small_root_and_rooms_of_three_to_eight_files():
    entries = {path.name for path in LIBRARY.iterdir()} - {"__pycache__"}
    assert len(entries) <= 12
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir()} - {"__pycache__"} == {*ORDER}
    for room in ORDER:
        assert 3 <= len(list((LIBRARY / room).glob("*.py"))) - 1 <= 8, room


def test_a_room_imports_from_the_rooms_below_it_alone_and_only_what_they_offer():
    for module, imported in modules().items():
        room = module.split(".")[1]
        for name in imported:
            other = name.split(".")[1] if "." in name else ""
            assert other in ORDER, f"{module} imports from the root"
            assert name != f"keras_pruning.{room}", f"{module} imports its own room whole"
            if other != room:
                assert ORDER.index(other) < ORDER.index(room), f"{module} imports {name}"
                module_file = (
                    LIBRARY / other / f"{name.split('.')[2]}.py" if name.count(".") == 2 else None
                )
                assert module_file is None or not module_file.exists(), f"{module}: {name}"


def test_no_modules_import_each_other_in_a_circle():
    known = modules()
    graph = {name: imported & known.keys() for name, imported in known.items()}
    assert sum(map(len, graph.values())) > 40
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("room", ORDER)
def test_a_room_offers_what_its_list_says(room):
    if room == "plots":
        pytest.importorskip("matplotlib")
    module = importlib.import_module(f"keras_pruning.{room}")
    assert all(hasattr(module, name) for name in module.__all__)
    assert module.__doc__


def test_the_package_alone_loads_nothing_heavy(root):
    code = (
        "import sys, keras_pruning; heavy = {'keras', 'numba', 'scipy', 'matplotlib', 'pandas', "
        "'tensorflow', 'jax', 'torch'} & sys.modules.keys(); sys.exit(str(heavy) if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
