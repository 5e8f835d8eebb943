"""The notebook as Colab opens it: alone in a folder, everything else fetched by its first cell.

Git takes the repository's address from a clone of this very checkout, with its uncommitted files,
and pip is replaced by a note that it was called.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from test_notebook import (
    CELL_TIMEOUT,
    NOTEBOOK,
    ROOT,
    code_cells,
    kernel_environment,
    output_problems,
    with_parameters,
)

pytestmark = pytest.mark.slow

ADDRESS = "https://github.com/matthew-mcateer/Keras_pruning"

# Run by every Python that has its folder on PYTHONPATH: notes the calls of pip, and stops them.
SITECUSTOMIZE = """
import os, sys
if "pip" in sys.orig_argv or any(part.endswith("/pip") for part in sys.orig_argv[:2]):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write("pip " + " ".join(sys.orig_argv) + chr(10))
    os._exit(1)
"""
# Stands before git on PATH: notes the call, then does it.
GIT = """#!/bin/sh
echo "git $*" >> "$CALLS"
exec "{git}" "$@"
"""
REPORT = """
import json, sys
state = {"folder": os.getcwd(), "helper": pu.__file__, "colab": "google.colab" in sys.modules}
print(json.dumps(state))
"""


def git(*arguments: str, cwd: Path) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    command = ["git", *who, "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"]
    done = subprocess.run(
        [*command, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A bare repository of the checkout as it is now, committed or not."""
    copy = tmp_path_factory.mktemp("checkout")
    listing = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, git(*listing, cwd=ROOT).split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    git("init", "--quiet", "--initial-branch=main", cwd=copy)
    git("add", "--all", cwd=copy)
    git("commit", "--quiet", "--message=All", cwd=copy)
    bare = tmp_path_factory.mktemp("address") / "Keras_pruning.git"
    git("clone", "--quiet", "--bare", str(copy), str(bare), cwd=copy)
    return bare


@pytest.fixture(scope="module")
def machine(repository, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Colab's folder, which holds the notebook alone, and the environment of its kernel."""
    folder, tools = tmp_path_factory.mktemp("content"), tmp_path_factory.mktemp("tools")
    shutil.copy(NOTEBOOK, folder)
    (tools / "google" / "colab").mkdir(parents=True)
    (tools / "google" / "colab" / "__init__.py").write_text("IN_COLAB = True\n")
    (tools / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (tools / "bin").mkdir()
    (tools / "bin" / "git").write_text(GIT.format(git=shutil.which("git")))
    (tools / "bin" / "git").chmod(0o755)
    environment = kernel_environment(
        PYTHONPATH=str(tools),
        PATH=f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}",
        CALLS=str(tools / "calls"),
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"url.{repository.as_uri()}.insteadOf",
        GIT_CONFIG_VALUE_0=ADDRESS,
    )
    return folder, environment


def calls(environment: dict[str, str], program: str) -> list[str]:
    path = Path(environment["CALLS"])
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.startswith(program)]


def set_up_source(notebook: NotebookNode) -> str:
    return next(cell.source for cell in code_cells(notebook) if ADDRESS in cell.source)


@pytest.fixture(scope="module")
def executed(machine) -> NotebookNode:
    """The notebook run to its end; then its set-up cell once more, and a report of the state."""
    folder, environment = machine
    notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    notebook = with_parameters(notebook, FAST=True, DATASETS=("digits",))
    set_up = set_up_source(notebook)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    notebook.cells.insert(0, new_code_cell("import google.colab"))
    notebook.cells += [new_code_cell(source) for source in (REPORT, set_up, set_up, REPORT)]
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        skip_cells_with_tag="",  # the panel too
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env=environment)


def reports(executed: NotebookNode) -> list[dict]:
    cells = [cell for cell in code_cells(executed) if cell.source == REPORT]
    return [json.loads(cell.outputs[0].text) for cell in cells]


def test_the_notebook_runs_to_its_end(executed):
    assert output_problems(executed) == []
    assert all(cell.execution_count for cell in code_cells(executed))


def test_everything_comes_from_the_clone(executed, machine):
    first, _ = reports(executed)
    clone = machine[0] / "Keras_pruning"
    assert first == {
        "folder": str(clone.resolve()),
        "helper": str((clone / "pruning_utils.py").resolve()),
        "colab": True,
    }


def test_the_clone_is_shallow_and_made_once(executed, machine):
    folder, environment = machine
    [clone] = [line for line in calls(environment, "git") if " clone " in f" {line} "]
    assert "--depth 1" in clone
    assert git("rev-parse", "--is-shallow-repository", cwd=folder / "Keras_pruning") == "true\n"


def test_setting_up_again_changes_nothing(executed, machine):
    first, second = reports(executed)
    assert second == first
    assert [path.name for path in machine[0].rglob("Keras_pruning")] == ["Keras_pruning"]


def test_nothing_is_installed_where_the_imports_work(executed, machine):
    assert calls(machine[1], "pip") == []


def test_only_what_is_missing_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pruning_utils.py").touch()  # nothing to clone
    missing, ran = ("tensorflow_datasets", "sklearn"), []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else 1)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: ran.append(command))
    exec(set_up_source(nbformat.read(NOTEBOOK, as_version=4)), {})
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    assert ran == [[*pip, "tensorflow-datasets", "scikit-learn"]]


def test_a_call_of_pip_would_have_been_noticed(machine, tmp_path):
    environment = {**machine[1], "CALLS": str(tmp_path / "calls")}
    command = [sys.executable, "-m", "pip", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 1
    [call] = calls(environment, "pip")
    assert "-m pip --version" in call
