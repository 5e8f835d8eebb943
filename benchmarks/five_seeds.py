"""Prunes five networks of each data set, refits them, trains them on, on a local Dask cluster.

    TFDS_DATA_DIR=... python benchmarks/five_seeds.py
    python benchmarks/five_seeds.py --draw  # the figure and the table again, from the CSV file
    python benchmarks/five_seeds.py --table  # the table alone, and the day of the CSV file

Needs `pip install distributed`. Takes about an hour on two cores. Each finished point is kept in
results/five_seeds/: a run that was stopped goes on from there. Writes images/five_seeds.csv, a row
a point, images/five_seeds.png and images/reconstruct.png, and prints docs/results.md's table.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # in the workers too
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # where the workers find this module

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402

import keras_pruning as kp  # noqa: E402
import pruning_utils as pu  # noqa: E402
from keras_pruning.studies.sweep import METHODS  # noqa: E402

SEEDS = range(5)
RECONSTRUCTED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)  # sparsities
FINE_TUNED = (0.8, 0.9, 0.95, 0.99)  # sparsities; each costs one epoch of training
FROM_SCRATCH = (0.8, 0.9, 0.95, 0.99)  # networks with as few units, never pruned
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
CSV = ROOT / "images" / "five_seeds.csv"


def mnist() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return _arrays("mnist")


def fashion_mnist() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return _arrays("fashion_mnist")


def _arrays(name: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    data = pu.load_dataset(name)
    return (data.x_train, data.y_train), (data.x_test, data.y_test)


def train(x: Any, y: Any, *, seed: int) -> Any:
    """As the notebook trains it: the same network, five epochs."""
    network = pu.build_dense_network(x.shape[1:], seed=seed)
    pu.train(network, _dataset(x, y), seed=seed, verbose=False)
    return network


def _train_small(x: Any, y: Any, seed: int, sparsity: float) -> Any:
    """The control: as many units as pruning leaves, and as many epochs in all."""
    units = [round((1 - sparsity) * count) for count in (1000, 1000, 500, 200)]
    network = pu.build_dense_network(x.shape[1:], units=units, seed=seed)
    pu.train(network, _dataset(x, y), epochs=6, seed=seed, verbose=False)
    return network


def small_80(x: Any, y: Any, *, seed: int) -> Any:
    return _train_small(x, y, seed, 0.8)


def small_90(x: Any, y: Any, *, seed: int) -> Any:
    return _train_small(x, y, seed, 0.9)


def small_95(x: Any, y: Any, *, seed: int) -> Any:
    return _train_small(x, y, seed, 0.95)


def small_99(x: Any, y: Any, *, seed: int) -> Any:
    return _train_small(x, y, seed, 0.99)


def one_epoch(model: Any, x: Any, y: Any, *, seed: int) -> None:
    """As the notebook's section on getting the accuracy back."""
    pu.train(model, _dataset(x, y), epochs=1, learning_rate=5e-3, seed=seed, verbose=False)


def _dataset(x: Any, y: Any) -> pu.Dataset:
    """What `train` takes; what it says about test images is not looked at here."""
    return pu.Dataset("", "", x, y, x[:1000], y[:1000], tuple("0123456789"))


def run() -> pd.DataFrame:
    from distributed import Client

    common: dict[str, Any] = {
        "data": {name: f"five_seeds:{name}" for name in TITLES},
        "seeds": SEEDS,
        "store": ROOT / "results" / "five_seeds",
    }
    dense = {"dense": "five_seeds:train"}
    refitted, tuned = {"reconstructed": "reconstruct"}, {"one epoch": "five_seeds:one_epoch"}
    small = {f"small_{100 * s:.0f}": f"five_seeds:small_{100 * s:.0f}" for s in FROM_SCRATCH}
    with Client(threads_per_worker=1, dashboard_address=":0") as client:
        common |= {"executor": client.get_executor(), "methods": METHODS}
        tables = [
            kp.experiment(**common, networks=dense),
            kp.experiment(**common, networks=dense, sparsities=RECONSTRUCTED, fine_tuning=refitted),
            kp.experiment(**common, networks=dense, sparsities=FINE_TUNED, fine_tuning=tuned),
        ]
        common |= {"methods": ["units"], "sparsities": [0]}
        scratch = kp.experiment(**common, networks=small)
    shares = dict(zip(small, FROM_SCRATCH, strict=True))
    scratch["sparsity"] = scratch["network"].map(shares)
    return pd.concat([*tables, scratch.assign(method="from_scratch")], ignore_index=True)


def read_table() -> pd.DataFrame:
    return pd.read_csv(CSV, keep_default_na=False)  # "none" is a name


def draw(table: pd.DataFrame) -> plt.Figure:
    """A row of panels for each treatment, a column a data set, bands over seeds."""
    treatment, is_dense = table["fine_tuning"], table["sparsity"] == 0
    is_control = table["method"] == "from_scratch"
    return _panels(
        {
            "Pruned, no more": table[(treatment == "none") & ~is_control],
            "Pruned, then refitted to 2,000 images without labels": table[
                is_dense | (treatment == "reconstructed")
            ],
            "Pruned, then one epoch of training": table[
                is_dense | is_control | (treatment == "one epoch")
            ],
        }
    )


def draw_treatments(table: pd.DataFrame) -> plt.Figure:
    """A row of panels for weights and one for units, a line a treatment."""
    names = {"reconstructed": "refitted", "one epoch": "trained_on"}
    return _panels(
        {
            f"{method.capitalize()} of smallest {measure} removed": rows.assign(
                method=rows["fine_tuning"].map(names).fillna(method)
            )
            for method, measure in {"weights": "magnitude", "units": "norm"}.items()
            for rows in [table[table["method"] == method]]
        }
    )


def _panels(rows: dict[str, pd.DataFrame]) -> plt.Figure:
    figure = plt.figure(figsize=(8.7, 4.2 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), 1)
    for part, (title, shown) in zip(parts, rows.items(), strict=True):
        part.suptitle(title)
        panels = {title: shown[shown["data"] == name] for name, title in TITLES.items()}
        pu.plot_accuracy_panels(panels, figure=part, chance=0.1)
    return figure


def markdown(table: pd.DataFrame) -> str:
    """Median, smallest and largest accuracy of each treatment and of the control, in percent."""
    lines = [
        "| data set | method | then | " + " | ".join(f"{s:.0%}" for s in FINE_TUNED) + " |",
        "|---" * (3 + len(FINE_TUNED)) + "|",
    ]
    shown = table[(table["fine_tuning"] != "none") | (table["method"] == "from_scratch")]
    for (data, method, then), part in shown.groupby(["data", "method", "fine_tuning"], sort=False):
        cells = []
        for sparsity in FINE_TUNED:
            percent = 100 * part.loc[part["sparsity"] == sparsity, "accuracy"]
            cells.append(f"{percent.median():.1f} ({percent.min():.1f}–{percent.max():.1f})")
        what = [TITLES[data], method.replace("_", " "), "" if then == "none" else then]
        lines.append(f"| {' | '.join([*what, *cells])} |")
    return "\n".join(lines)


def last_change(path: Path) -> str:
    """The day of the commit that last changed it."""
    command = ["git", "log", "-1", "--format=%cs", "--", str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "on a day that only the repository tells"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw from the CSV file, run nothing")
    parser.add_argument("--table", action="store_true", help="print the table of the CSV file")
    options = parser.parse_args()
    if options.table:
        print(f"images/five_seeds.csv, last changed {last_change(CSV)}\n")
        print(markdown(read_table()))
        return
    if not options.draw:
        run().to_csv(CSV, index=False)
    table = read_table()
    draw(table).savefig(CSV.with_suffix(".png"), dpi=150)
    draw_treatments(table).savefig(CSV.with_name("reconstruct.png"), dpi=150)
    print(markdown(table))


if __name__ == "__main__":
    main()
