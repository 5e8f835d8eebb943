"""The notebook: its form as committed, and runs of it from the first cell to the last.

A run is in a real kernel, in a copy of only those files that the notebook needs.
"""

import json
import os
import re
import shutil
import sys
import time
import types
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import pruning_utils as pu

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "Model_pruning_exploration.ipynb"
NEEDED = [NOTEBOOK.name, "pruning_utils.py", "keras_pruning", "images", "examples"]

MAX_BYTES = 2_000_000  # GitHub draws larger notebooks slowly or not at all
MAX_CELLS = 75
MAX_LINES = 20  # of a code cell, without blank ones
MAX_MEMORY = 1.8 * 2**30  # bytes; Binder stops a kernel at 2 GiB
CELL_TIMEOUT = 600  # seconds
OFFLINE_TIMEOUT = 150  # less than the 200 s for which TFDS tries again and again to download
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


# ---- reading a notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_tag(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def output_text(notebook: NotebookNode) -> str:
    """All that the cells have printed or shown as text; pictures are left out."""
    texts = []
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        texts.append(output.get("text", ""))
        data = output.get("data", {})
        texts += [str(data[kind]) for kind in data if not kind.startswith("image/")]
    return "\n".join(texts)


def stderr_text(notebook: NotebookNode) -> str:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stderr")


def has_figure(cell: NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def heading_events(notebook: NotebookNode) -> list[tuple[int, str]]:
    """(level, title) of every heading, and (0, "") for what stands between two of them."""
    events = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            events.append((0, ""))
            continue
        fenced = False
        for line in filter(str.strip, cell.source.splitlines()):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            heading = None if fenced else re.match(r"(#{1,6})(?:\s+(.*))?$", line)
            level, title = (len(heading[1]), heading[2] or "") if heading else (0, "")
            events.append((level, title.strip()))
    return events


# ---- judging its form: each function gives a list of problems


def count_problems(notebook: NotebookNode) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    expected = list(range(1, len(counts) + 1))
    return [] if counts == expected else [f"execution counts {counts}: run it afresh"]


def output_problems(notebook: NotebookNode) -> list[str]:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    problems = [f"error: {o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
    text = stderr_text(notebook)
    return problems + ([f"stderr: {text[:2000]}"] if text else [])


def metadata_problems(notebook: NotebookNode) -> list[str]:
    problems = []
    if "widgets" in notebook.metadata:  # GitHub then shows "Invalid Notebook"
        problems.append("widget state in the metadata")
    kinds = {kind for c in code_cells(notebook) for o in c.outputs for kind in o.get("data", {})}
    if WIDGET_VIEW in kinds:  # without a kernel it is an error message in place of the output
        problems.append("a widget among the outputs: leave its text only")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("the kernelspec is not python3")
    return problems


def parameter_problems(notebook: NotebookNode) -> list[str]:
    tagged = [cell for cell in code_cells(notebook) if has_tag(cell, "parameters")]
    if len(tagged) != 1:
        return [f"{len(tagged)} code cells are tagged parameters, expected 1"]
    names = re.findall(r"^(\w+)\s*(?::[^=\n]+)?=", tagged[0].source, re.M)
    return [f"no parameter {name}" for name in ("FAST", "DATASETS") if name not in names]


def length_problems(notebook: NotebookNode) -> list[str]:
    problems = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        lines = sum(1 for line in cell.source.splitlines() if line.strip())
        if not 1 <= lines <= MAX_LINES:
            problems.append(f"code cell {number} has {lines} lines, expected 1 to {MAX_LINES}")
    return problems


def order_problems(notebook: NotebookNode) -> list[str]:
    kinds = "".join("c" if cell.cell_type == "code" else "t" for cell in notebook.cells)
    return [f"cells {m.start()} on: three code cells in a row" for m in re.finditer("ccc", kinds)]


def path_problems(notebook: NotebookNode) -> list[str]:
    text = "\n".join(cell.source for cell in notebook.cells) + "\n" + output_text(notebook)
    # Not inside of an address or of a longer path.
    pattern = r"(?<![\w.:/~-])/(?:home|root|Users|tmp|work|var/folders)/\S*|\b[A-Z]:\\Users\S*"
    return [f"a path of one machine: {path}" for path in re.findall(pattern, text)]


def widget_problems(notebook: NotebookNode) -> list[str]:
    # nbclient handles the messages of Output widgets, which `interact` makes too, in a racy way:
    # now and then the cell never ends (jupyter/nbclient #312). Other widgets are safe.
    text = "\n".join(cell.source for cell in code_cells(notebook))
    found = re.findall(r"\b(?:interact(?:ive(?:_output)?|_manual)?|Output)\b(?=\(|$)", text, re.M)
    return [f"{name}: may block a run, use HTML or Image with observe" for name in found]


def heading_problems(notebook: NotebookNode) -> list[str]:
    problems, last_level, empty = [], 0, None
    for level, title in heading_events(notebook):
        if level == 0:
            empty = None
            continue
        if not title:
            problems.append(f"a heading of level {level} without words")
        if level > last_level + 1:
            problems.append(f"{title!r}: level {level} after level {last_level}")
        if level == 1 and last_level:
            problems.append(f"{title!r}: a second title")
        if empty:
            problems.append(f"{empty!r}: nothing before the next heading")
        last_level, empty = level, title
    return problems + ([f"{empty!r}: nothing after it"] if empty else [])


FORM_CHECKS = [
    count_problems,
    output_problems,
    metadata_problems,
    parameter_problems,
    length_problems,
    order_problems,
    path_problems,
    widget_problems,
    heading_problems,
]


# ---- the form of the committed notebook


@pytest.fixture(scope="module")
def committed() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_valid(committed):
    nbformat.validate(committed)


def test_notebook_is_small():
    assert NOTEBOOK.stat().st_size < MAX_BYTES


def test_notebook_has_at_most_75_cells(committed):
    assert len(committed.cells) <= MAX_CELLS


@pytest.mark.parametrize("check", FORM_CHECKS, ids=lambda check: check.__name__)
def test_notebook_has_no(check, committed):
    assert check(committed) == []


# ---- the report, read far from its folder


def test_every_picture_of_the_report_shows_wherever_it_is_opened(committed):
    html, _ = HTMLExporter().from_notebook_node(committed)
    sources = re.findall(r"<img\b[^>]*?\bsrc=[\"']([^\"']*)", html)
    assert sources
    assert [src[:80] for src in sources if not src.startswith(("data:", "https://"))] == []


def test_a_run_that_only_makes_a_page_leaves_the_panels_picture(committed):
    # nbconvert would store the widgets' state otherwise, and a page draw nothing without internet.
    [place] = [i for i, c in enumerate(committed.cells) if "pu.explore(" in c.source]
    assert place == len(committed.cells) - 1
    tagged = [i for i, c in enumerate(committed.cells) if has_tag(c, "skip-execution")]
    assert tagged == [place]
    assert NotebookClient.skip_cells_with_tag.default_value == "skip-execution"


def test_readers_without_a_kernel_see_a_picture_and_others_the_live_panel_alone(committed):
    [place] = [i for i, c in enumerate(committed.cells) if "pu.explore(" in c.source]
    assert "![" not in committed.cells[place - 1].source
    [output] = committed.cells[place].outputs
    assert output.data["image/png"]


# ---- cells taken by themselves


def ticks(committed, capsys, accuracies, savings, recovery) -> list[str]:
    """The first letters of the lines that the closing cells print for these results."""
    [sweeping] = [c.source for c in code_cells(committed) if "def largest_sparsity(" in c.source]
    helpers = sweeping.partition("METHODS = ")[0]
    closing = [c.source for c in code_cells(committed) if "tick(" in c.source]
    W = np.array([[0.1, 0.9]])
    rows = [
        (method, sparsity, value)
        for method, values in accuracies.items()
        for sparsity, value in zip((0.0, 0.5, 0.99), values, strict=True)
    ]
    sweep = pd.DataFrame(rows, columns=["method", "sparsity", "accuracy"])
    names = {"pu": pu, "W": W, "weights_kept": W > 0.5, "sweeps": {"MNIST": sweep}}
    names["savings"] = pd.DataFrame(savings, ["dense", "small"], ["MB", "batch_256_ms"])
    dense, *columns = recovery
    columns = dict(zip(("pruned", "refitted", "trained on"), columns, strict=True))
    case = pd.MultiIndex.from_tuples([("units", 0.8), ("units", 0.9)])
    names |= {"dense": dense, "recovery": pd.DataFrame(columns, case), "CASES": [case[0]] * 2}
    exec(helpers, names)
    capsys.readouterr()
    for source in closing:
        exec(source, names)
    return [line[0] for line in capsys.readouterr().out.splitlines() if line[0] in "✓○"]


def test_good_results_earn_their_ticks(committed, capsys):
    good = {"weights": (0.985, 0.98, 0.2), "units": (0.985, 0.8, 0.1)}
    good |= {f"random_{method}": (0.985, 0.5, 0.05) for method in good}
    marks = ticks(committed, capsys, good, [(9.6, 9.0), (0.9, 2.0)], (0.985, 0.3, 0.98, 0.9))
    assert marks == ["✓"] * 7


def test_poor_results_earn_none(committed, capsys):
    poor = {"weights": (0.92, 0.5, 0.05), "units": (0.92, 0.5, 0.05)}
    poor |= {f"random_{method}": (0.92, 0.6, 0.1) for method in poor}
    marks = ticks(committed, capsys, poor, [(9.6, 2.0), (9.6, 9.0)], (0.92, 0.3, 0.4, 0.5))
    assert marks == ["✓", "○", "✓", "○", "○", "○", "○"]  # by hand and swept: that was done


def test_the_speed_figure_gets_medians_and_quartiles(committed, capsys):
    def costs(variants):
        ms = pd.Series([12.0, 3.0, 20.0], list(variants))
        times = {"": ms, "_lower": 0.9 * ms, "_upper": 1.2 * ms}
        return pd.DataFrame({f"batch_256_ms{end}": times[end] for end in times})

    def same(*given):
        return given

    library = dict.fromkeys(("SparseModel", "prune_weights", "prune_units", "shrink"), same)
    drawn = []
    fake = types.SimpleNamespace(**library, plot_speed=drawn.append)
    names = {"pu": fake, "pd": pd, "network": None, "FAST": True, "costs": costs}
    names |= dict.fromkeys(("model", "models", "zero_weights", "zero_units", "sparse", "small"))
    [source] = [c.source for c in code_cells(committed) if "plot_speed(" in c.source]
    exec(source, names)
    [table] = drawn
    assert table["method"].tolist() == ["weights", "units"] * 3
    assert table["sparsity"].tolist() == [0.5, 0.5, 0.9, 0.9, 0.99, 0.99]
    np.testing.assert_allclose(table["speedup"], [4, 0.6] * 3)
    np.testing.assert_allclose(table["lower"], [4 / 1.2, 0.6 / 1.2] * 3)
    np.testing.assert_allclose(table["upper"], [4 / 0.9, 0.6 / 0.9] * 3)
    said = capsys.readouterr().out.splitlines()
    assert "skipping zeros: faster than the dense network from 50% on" in said[0]
    assert "removing units: faster than the dense network nowhere" in said[1]


# ---- runs


def with_parameters(notebook: NotebookNode, **parameters) -> NotebookNode:
    """The notebook with a cell after the one tagged `parameters`, as papermill does it."""
    [place] = [i for i, cell in enumerate(notebook.cells) if has_tag(cell, "parameters")]
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    injected = new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    cells = [*notebook.cells[: place + 1], injected, *notebook.cells[place + 1 :]]
    return NotebookNode({**notebook, "cells": cells})


def kernel_environment(**changes: str) -> dict[str, str]:
    """A reader's environment: without what the tests have set to be quiet and to draw nothing."""
    ours = {"TF_CPP_MIN_LOG_LEVEL", "MPLBACKEND", "TFDS_DATA_DIR"}
    # In a process that has this one, ipykernel does not pass on what C++ code writes to stderr.
    ours.add("PYTEST_CURRENT_TEST")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    # The kernel of this very Python, not one that the user has installed under the same name.
    return {**kept, "JUPYTER_PREFER_ENV_PATH": "1", **changes}


REPORT = """
import json, resource, sys
if sys.platform == "linux":  # ru_maxrss counts the parent's memory from before exec, too
    with open("/proc/self/status") as status:
        [line] = [line for line in status if line.startswith("VmHWM")]
    peak = 1024 * int(line.split()[1])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # a Mac counts in bytes
print(json.dumps({"prefix": sys.prefix, "peak": peak}))
"""


def run(
    folder: Path, environment: dict[str, str], timeout: float = CELL_TIMEOUT, **parameters
) -> NotebookNode:
    """The notebook after a run in `folder`.

    Its last output is a report: the kernel's sys.prefix, and its peak memory in bytes. The
    seconds that the run took are in its metadata.
    """
    for name in NEEDED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    notebook = with_parameters(nbformat.read(folder / NOTEBOOK.name, as_version=4), **parameters)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    notebook.cells.append(new_code_cell(REPORT))
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        skip_cells_with_tag="",  # the panel too
        resources={"metadata": {"path": str(folder)}},
    )
    start = time.monotonic()
    executed = client.execute(env=environment)
    executed.metadata["seconds"] = time.monotonic() - start
    return executed


def report(executed: NotebookNode) -> dict:
    return json.loads(executed.cells[-1].outputs[0].text)


def told(executed: NotebookNode, kind: str) -> str:
    peak, seconds = report(executed)["peak"] / 2**30, executed.metadata["seconds"]
    return f"\n{kind} of the notebook: {peak:.2f} GiB at the peak, {seconds:.0f} s"


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> NotebookNode:
    """A quick run without data and network, which has raised no error."""
    # Nothing listens on port 9, so every download is refused at once.
    nowhere = "http://127.0.0.1:9"
    proxies = {f"{kind}_proxy": nowhere for kind in ("http", "https", "all")}
    proxies |= {name.upper(): nowhere for name in proxies}
    environment = kernel_environment(
        TFDS_DATA_DIR=str(tmp_path_factory.mktemp("no_data")),
        no_proxy="",
        NO_PROXY="",
        **proxies,
    )
    folder = tmp_path_factory.mktemp("offline")
    return run(folder, environment, timeout=OFFLINE_TIMEOUT, FAST=True)


@pytest.fixture(scope="module")
def full(shared_data, tmp_path_factory) -> NotebookNode:
    """A run on the full data, which has raised no error."""
    environment = kernel_environment(TFDS_DATA_DIR=str(shared_data))
    return run(tmp_path_factory.mktemp("full"), environment, FAST=False)


@pytest.fixture(scope="module", params=["offline", "full"])
def executed(request) -> NotebookNode:
    notebook = request.getfixturevalue(request.param)
    notebook.metadata["kind"] = f"{request.param} run"
    return notebook


@pytest.mark.slow
def test_run_is_in_this_python(executed):
    assert report(executed)["prefix"] == sys.prefix


@pytest.mark.slow
def test_run_executes_every_cell(executed):
    assert count_problems(executed) == []


@pytest.mark.slow
def test_run_has_neither_errors_nor_stderr(executed, capsys):
    with capsys.disabled():
        print(told(executed, executed.metadata["kind"]))
    assert output_problems(executed) == []


@pytest.mark.slow
def test_run_draws_the_figures_of_the_committed_notebook(executed, committed):
    ran = [cell for cell in code_cells(executed) if not has_tag(cell, "injected-parameters")]
    expected = [number for number, cell in enumerate(code_cells(committed)) if has_figure(cell)]
    assert expected, "the committed notebook has no figure"
    assert [number for number in expected if not has_figure(ran[number])] == []


@pytest.mark.slow
def test_run_without_data_and_network_goes_on_with_digits_and_says_so(offline):
    said = [line.lower() for line in output_text(offline).splitlines() if "digits" in line.lower()]
    assert any(re.search(r"instead|network|offline|download|unavailable", line) for line in said)


@pytest.mark.slow
def test_run_on_full_data_stays_within_binders_memory(full):
    assert report(full)["peak"] < MAX_MEMORY


# ---- the checks themselves, on samples


def sample(*cells: NotebookNode) -> NotebookNode:
    """A notebook that passes every check, then `cells`."""
    parameters = new_code_cell(
        "FAST = False\nDATASETS = ('mnist',)",
        execution_count=1,
        metadata={"tags": ["parameters"]},
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    title = new_markdown_cell("# Title\nA promise.")
    return new_notebook(cells=[title, parameters, *cells], metadata=kernel)


def ran_cell(source: str = "1", count: int = 2, *outputs: NotebookNode) -> NotebookNode:
    return new_code_cell(source, execution_count=count, outputs=list(outputs))


def stream(name: str, text: str) -> NotebookNode:
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [new_markdown_cell("## Two\nWords.\n### Three\nWords.\n## Four"), ran_cell()],
        [new_markdown_cell("## Code\n```\n# no heading\n```")],
        [ran_cell("1\n\n" * MAX_LINES)],
        [ran_cell("1"), new_markdown_cell("Words."), ran_cell("1", 3), ran_cell("2", 4)],
        [ran_cell("1", 2, stream("stdout", "https://example.com/home/a and ../tmp/b"))],
    ],
)
def test_good_form_has_no_problem(cells):
    assert [problem for check in FORM_CHECKS for problem in check(sample(*cells))] == []


@pytest.mark.parametrize(
    ("check", "cells"),
    [
        (count_problems, [ran_cell("1", 3)]),
        (count_problems, [ran_cell("1", None)]),
        (output_problems, [ran_cell("1", 2, stream("stderr", "a warning"))]),
        (
            output_problems,
            [ran_cell("1", 2, new_output("error", ename="E", evalue="", traceback=[]))],
        ),
        (length_problems, [ran_cell("1\n" * (MAX_LINES + 1))]),
        (length_problems, [ran_cell(" ")]),
        (order_problems, [ran_cell("1", 2), ran_cell("1", 3)]),
        (path_problems, [ran_cell("open('/home/me/a')")]),
        (path_problems, [ran_cell("1", 2, stream("stdout", "saved in /tmp/x/a.keras"))]),
        (path_problems, [new_markdown_cell(r"C:\Users\me")]),
        (
            path_problems,
            [ran_cell("1", 2, new_output("display_data", {"text/html": "<b>/Users/a</b>"}))],
        ),
        (widget_problems, [ran_cell("widgets.interact(f, a=1)")]),
        (widget_problems, [ran_cell("@interact\ndef f(a=1): ...")]),
        (widget_problems, [ran_cell("out = widgets.Output()")]),
        (heading_problems, [new_markdown_cell("### Three\nWords.")]),
        (heading_problems, [new_markdown_cell("# Title again\nWords.")]),
        (heading_problems, [new_markdown_cell("## Two"), new_markdown_cell("## Three\nWords.")]),
        (heading_problems, [new_markdown_cell("## Last")]),
        (heading_problems, [new_markdown_cell("##\nWords.")]),
        (parameter_problems, [new_code_cell("A = 1", metadata={"tags": ["parameters"]})]),
    ],
)
def test_bad_form_is_found(check, cells):
    assert len(check(sample(*cells))) == 1


@pytest.mark.parametrize("top", ["home", "root", "Users", "tmp", "work", "var/folders"])
def test_every_kind_of_machine_path_is_found(top):
    assert len(path_problems(sample(ran_cell(f"open('/{top}/a')")))) == 1


def test_bad_metadata_is_found():
    notebook = sample()
    notebook.metadata = NotebookNode({"widgets": {}, "kernelspec": {"name": "my_env"}})
    assert len(metadata_problems(notebook)) == 2


def test_a_widget_among_the_outputs_is_found():
    widget = new_output("display_data", {WIDGET_VIEW: {"model_id": "1"}, "text/plain": "Words."})
    assert len(metadata_problems(sample(ran_cell("1", 2, widget)))) == 1


def test_missing_parameters_are_found():
    notebook = sample()
    notebook.cells[1].source = "FAST = False"
    assert parameter_problems(notebook) == ["no parameter DATASETS"]


def test_parameters_are_injected_after_the_tagged_cell():
    notebook = with_parameters(sample(ran_cell()), FAST=True, DATASETS=("digits",))
    assert notebook.cells[2].source == "FAST = True\nDATASETS = ('digits',)"
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
