"""Figures of README and docs/ are those of benchmarks/RESULTS.md, which one run wrote."""

import argparse
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
if not README.exists():
    pytest.skip("the tests alone, without the documents", allow_module_level=True)

# By its first header cells, a table: the sections of RESULTS.md with the same rows.
SECTIONS = {
    ("weights pruned",): ("sparse", "sparse_conv_networks", "export"),
    ("data set", "method", "then"): ("five_seeds",),
    ("data set", "method"): ("figures",),
    ("", "this library"): ("peers",),
}

# In a sentence, and in a section: where both are found, the groups must agree.
SENTENCES = [
    (
        r"runs ([\d.]+) times as fast over 10,000 images in NumPy",
        "units",
        r"NumPy's BLAS +10,000 +[\d.]+ +[\d.]+ +([\d.]+)",
    ),
    *(
        (sentence, "sparse_conv_networks", rf"\| {network},[^|]+of 64 \|[^|]+\| ([\d.]+) \|")
        for network, sentence in (
            ("ResNet50", r"ResNet50 runs ([\d.]+) times"),
            ("VGG16", r"VGG16 ([\d.]+) times as fast"),
            ("MobileNetV2", r"MobileNetV2 ([\d.]+) times"),
        )
    ),
    (
        r"to ([\d.]+) % on MNIST and [\d.]+ % on Fashion-MNIST without 95 % of the weights",
        "five_seeds",
        r"\| MNIST \| weights \| reconstructed \|[^|]+\|[^|]+\| ([\d.]+) \(",
    ),
    (
        r"to [\d.]+ % on MNIST and ([\d.]+) % on Fashion-MNIST without 95 % of the weights",
        "five_seeds",
        r"\| Fashion-MNIST \| weights \| reconstructed \|[^|]+\|[^|]+\| ([\d.]+) \(",
    ),
    (
        r"two workers reach ([\d.]+) of twice one worker's speed",
        "scaling",
        r"median efficiency of \d+: ([\d.]+)",
    ),
]

Table = list[list[str]]


def tables(text: str) -> Iterator[Table]:
    """The Markdown tables of a text, as rows of cells; the first row is the header."""
    for found in re.finditer(r"(?m)^\|.*\n\|[-:| ]+\|\n(?:\|.*\n?)*", text):
        header, _, *rows = found[0].strip().splitlines()
        yield [cells(line) for line in (header, *rows)]


def cells(line: str) -> list[str]:
    """Without links and emphasis."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line).replace("**", "")
    return [
        cell.strip()
        for cell in re.split(r"(?<!\\)\|", plain.strip().removeprefix("|").removesuffix("|"))
    ]


def sections(results: str) -> dict[str, str]:
    parts = re.split(r"(?m)^## (.+)\n", results)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def has_figures(row: list[str]) -> bool:
    """Whether a cell begins with a number; words may hold some, as in "Keras 3"."""
    return any(re.match(r"\d", cell) for cell in row)


def labelled(table: Table, labels: int) -> dict[tuple[str, ...], dict[str, str]]:
    """For each row's labels, its other cells by their header."""
    header, *rows = table
    return {
        tuple(row[:labels]): dict(zip(header[labels:], row[labels:], strict=True)) for row in rows
    }


def differences(document: str, results: str) -> list[str]:
    """What stands in the document and not in the results."""
    of_section, found = sections(results), []
    for table in tables(document):
        header = table[0]
        key = next((k for k in SECTIONS if tuple(header[: len(k)]) == k), None)
        if key is None:
            if any(has_figures(row) for row in table[1:]):
                found.append(f"a table of figures that no section has: {header}")
            continue
        labels = 1 if key == ("", "this library") else len(key)
        measured: dict[tuple[str, ...], dict[str, str]] = {}
        for name in SECTIONS[key]:
            for other in tables(of_section.get(name, "")):
                if tuple(other[0][:labels]) == key[:labels]:
                    measured |= labelled(other, labels)
        for row, shown in labelled(table, labels).items():
            if row not in measured and has_figures([*shown.values()]):
                found.append(f"no row {row} in {SECTIONS[key]}")
            for column, value in shown.items():
                if row in measured and value != measured[row].get(column):
                    found.append(f"{row}, {column}: {value}, not {measured[row].get(column)}")
    for pattern, name, other in SENTENCES:
        said = re.search(pattern, " ".join(document.split()))
        if said:
            printed = re.search(other, of_section.get(name, ""))
            digits = len(said[1].partition(".")[2])
            if not printed or f"{float(printed[1]):.{digits}f}" != said[1]:
                found.append(f"{said[0]!r}, not {printed and printed[1]}")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_figures_are_those_of_one_run(path: Path) -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert "quick run" not in text
    assert differences(path.read_text(encoding="utf-8"), text) == []


def test_results_name_no_place() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.:/~-])/(?:home|root|tmp|work|Users|usr|opt)/\S*", text) == []


PAGE = """
| data set | method | 0% | 90% |
|---|---|---|---|
| MNIST | weights | 98.6 | 93.8 |

| | this library | [tool](https://example.org) 1.0 |
|---|---|---|
| backends | three | one |
| zeros: times as fast | 8.1 | 1.0 |

The network runs 21 times as
fast over 10,000 images in NumPy.
"""
OUTPUT = """
## figures

| data set | method | 0% | 50% | 90% |
|---|---|---|---|---|
| MNIST | weights | 98.6 | 98.4 | 93.8 |

## peers

| | this library | tool 1.0 |
|---|---|---|
| zeros: times as fast | 8.1 | 1.0 |

## units

```
NumPy's BLAS      10,000     80.00      3.80      21.3   20.9 to 21.6
```
"""


def test_equal_figures_differ_in_nothing() -> None:
    assert differences(PAGE, OUTPUT) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("93.8", "93.9", "93.9, not 93.8"),
        ("| MNIST |", "| Fashion-MNIST |", "no row"),
        ("| 90% |", "| 95% |", "95%: 93.8, not None"),
        ("| 1.0 |", "| 1.1 |", "1.1, not 1.0"),
        ("| three |", "| 3 |", "no row"),
        ("runs 21", "runs 22", "'runs 22 times"),
        ("| data set | method |", "| network | pruned |", "that no section has"),
    ],
)
def test_a_figure_that_was_not_measured_is_told(old: str, new: str, told: str) -> None:
    [line] = differences(PAGE.replace(old, new), OUTPUT)
    assert told in line


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("run_all")


def test_figures_are_filled_in_where_a_row_has_the_same_labels(run_all) -> None:
    wrong = PAGE.replace("93.8", "11.1").replace("| 1.0 |", "| 2.0 |")
    assert run_all.filled(wrong, OUTPUT) == PAGE
    assert run_all.filled("| extra | 0% |\n|---|---|\n| MNIST | 5 |\n", OUTPUT).endswith("| 5 |\n")


def test_a_benchmark_that_fails_is_told_without_a_path(run_all, tmp_path: Path) -> None:
    options = argparse.Namespace(quick=True, peers=tmp_path, minutes=1)
    section = run_all.run(run_all.Benchmark("absent", "absent.py"), tmp_path, options)
    assert "exit code 2" in section["failed"] and "No such file" in section["failed"]
    assert str(ROOT) not in json.dumps(section)


def test_what_progress_lines_overwrote_is_not_shown(run_all, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('1 of 2\\r2 of 2\\rdone')", encoding="utf-8")
    options = argparse.Namespace(quick=True, peers=tmp_path, minutes=1)
    place = os.path.relpath(script, ROOT / "benchmarks")
    section = run_all.run(run_all.Benchmark("script", place), tmp_path, options)
    assert (section["failed"], section["output"]) == ("", "done")


def test_a_package_that_cannot_be_installed_is_told(run_all, tmp_path: Path) -> None:
    environment = run_all.Environment(("--no-index no-such-package",))
    _, missing = run_all.prepared("x", environment, tmp_path)
    assert len(missing) == 1 and "no-such-package" in missing[0]
    _, again = run_all.prepared("x", environment, tmp_path)
    assert again == missing


def test_tables_stay_tables_and_the_rest_is_as_printed(run_all) -> None:
    printed = "a  1\n\n| x |\n|---|\n| 2 |\n\nb  3"
    expected = "```\na  1\n\n```\n\n| x |\n|---|\n| 2 |\n\n```\nb  3\n```"
    lines = "\n".join(run_all.blocks(printed)).strip("\n")
    assert lines.replace("\n\n\n", "\n\n") == expected


def test_progress_lines_and_paths_are_not_shown(run_all) -> None:
    printed = "epoch 1\repoch 2\rdone in 3 ms/step\n/some/where/model.keras: 5/6, and/or\n"
    assert run_all.as_shown(printed) == "done in 3 ms/step\nmodel.keras: 5/6, and/or"


def test_sections_that_were_not_run_again_are_kept(run_all, tmp_path: Path) -> None:
    output = tmp_path / "RESULTS.md"
    output.write_text("# Old\n\n## units\n\n9 ms\n\n## sweep\n\n1 s\n", encoding="utf-8")
    section = {"name": "sweep", "command": "python", "date": "2026-01-01", "seconds": 1, "load": 0}
    section |= {"machine": run_all.machine(), "versions": {"Python": "3"}, "note": ""}
    section |= {"missing": [], "failed": "", "output": "2 s", "processor_seconds": 2}
    (tmp_path / "section-sweep.json").write_text(json.dumps(section), encoding="utf-8")
    text = run_all.render(tmp_path, output, quick=False)
    assert "9 ms" in text and "2 s" in text and "1 s\n\n##" not in text
    assert "Kept from an earlier run, see their dates: units." in text
