"""The tools beside each other: a compact table of what their scripts measured.

    python benchmarks/peers/table.py FOLDER

FOLDER holds the JSON files that the scripts wrote with --results. Medians over the networks, or
over the turns where it is a time; each script prints the spreads. A dash: the tool has no such
thing, or was not run.
"""

import argparse
import json
import statistics
from pathlib import Path

TOOLS = {  # the file, and the package whose version stands in the table
    "keras_pruning": None,
    "tfmot": "tensorflow-model-optimization",
    "torch_prune": "torch",
    "torch_pruning": "torch-pruning",
    "pquant": "pquant-ml",
    "keras_surgeon": "kerassurgeon",
}
ROWS = [  # title, what is measured, digits after the point
    ("accuracy without {cases} of the weights, in %", "weights, at once", 1),
    ("these weights: refitted without labels", "weights, refitted", 1),
    ("these weights: after one epoch of training", "weights, one epoch", 1),
    ("accuracy without {cases} of the units, in %", "units, at once", 1),
    ("these units: refitted without labels", "units, refitted", 1),
    ("these units: after one epoch of training", "units, one epoch", 1),
    ("these units: parameters left, in %", "units, parameters left", 0),
    ("these units: times as fast", "units, times as fast", 1),
    (
        "parameters without {cases} of a residual network's filters, in %",
        "filters, parameters left",
        0,
    ),
    ("these filters: accuracy after one epoch of training", "filters, one epoch", 1),
    ("time to prune 10 million weights, in `np.partition`s", "prune 10 million weights", 1),
    ("{cases} zeros: times as fast", "zeros, times as fast", 1),
]


def measured(results: dict | None, what: str) -> list[dict]:
    return [row for row in (results or {}).get("measured", []) if row["what"] == what]


def cell(results: dict | None, what: str, digits: int) -> str:
    rows = measured(results, what)
    if texts := [row["text"] for row in rows if "text" in row]:
        return texts[0]
    return " / ".join(f"{statistics.median(row['values']):.{digits}f}" for row in rows) or "–"


def cases(tools: dict[str, dict | None], what: str) -> str:
    for results in tools.values():
        shares = [row["case"] for row in measured(results, what) if row["case"]]
        if shares:
            return " / ".join(f"{100 * share:.0f}" for share in shares) + " %"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    tools = {}
    for name in TOOLS:
        path = folder / f"{name}.json"
        tools[name] = json.loads(path.read_text()) if path.exists() else None
    titles = ["this library"]
    for name, package in list(TOOLS.items())[1:]:
        results = tools[name]
        title = {"torch_prune": "torch.nn.utils.prune", "pquant": "PQuantML"}.get(name, name)
        title = title.replace("torch_pruning", "Torch-Pruning").replace("_", "-")
        titles.append(f"{title} {results['versions'][package].split('+')[0]}" if results else title)
    print(f"| | {' | '.join(titles)} |\n|---" + "|---" * len(titles) + "|")
    for title, what, digits in ROWS:
        cells = [cell(results, what, digits) for results in tools.values()]
        print(f"| {title.format(cases=cases(tools, what))} | {' | '.join(cells)} |")
    dense = [row["values"] for row in measured(tools["keras_pruning"], "dense")]
    if dense:
        accuracies = ", ".join(f"{value:.2f}" for value in dense[0])
        print(f"\nDense networks' accuracies in %: {accuracies}. A residual network's: ", end="")
        print(f"{cell(tools['keras_pruning'], 'filters, dense', 2)}.")
    for name in tools:
        if tools[name] is None:
            print(f"\n{name} was not run.")


if __name__ == "__main__":
    main()
