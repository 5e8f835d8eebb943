"""Prunes five networks of each data set, with and without fine-tuning, on a local Dask cluster.

    TFDS_DATA_DIR=... python benchmarks/five_seeds.py
    python benchmarks/five_seeds.py --draw  # the figure and the table again, from the CSV file

Needs `pip install distributed`. Takes about 40 minutes on two cores. Each finished point is kept in
results/five_seeds/: a run that was stopped goes on from there. Writes images/five_seeds.csv, a row
a point, and images/five_seeds.png, and prints the README's table.
"""

import argparse
import os
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
from keras_pruning.sweep import METHODS  # noqa: E402

SEEDS = range(5)
FINE_TUNED = (0.5, 0.8, 0.9, 0.95, 0.99)  # sparsities; each costs one epoch of training
SHOWN = (0.5, 0.8, 0.9, 0.95, 0.99)
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
        "networks": {"dense": "five_seeds:train"},
        "seeds": SEEDS,
        "methods": METHODS,
        "store": ROOT / "results" / "five_seeds",
    }
    with Client(threads_per_worker=1, dashboard_address=":0") as client:
        common["executor"] = client.get_executor()
        one_shot = kp.experiment(**common)
        tuned = kp.experiment(
            **common, sparsities=FINE_TUNED, fine_tuning={"one epoch": "five_seeds:one_epoch"}
        )
    return pd.concat([one_shot, tuned], ignore_index=True)


def draw(table: pd.DataFrame) -> plt.Figure:
    """One row of panels a way of training, one column a data set; bands over the seeds."""
    figure = plt.figure(figsize=(8.7, 8.4), layout="constrained")
    ways = {"none": "pruned, not trained on", "one epoch": "pruned, then one epoch of training"}
    for part, (way, title) in zip(figure.subfigures(2, 1), ways.items(), strict=True):
        part.suptitle(title)
        dense = table[table["sparsity"] == 0]  # the grey line of every panel
        of_way = pd.concat([dense, table[(table["fine_tuning"] == way) & (table["sparsity"] > 0)]])
        panels = {title: of_way[of_way["data"] == name] for name, title in TITLES.items()}
        pu.plot_accuracy_panels(panels, figure=part, chance=0.1)
    return figure


def markdown(table: pd.DataFrame) -> str:
    """Median, smallest and largest accuracy over the seeds, in percent."""
    lines = [
        "| data set | method | trained on | " + " | ".join(f"{s:.0%}" for s in SHOWN) + " |",
        "|---" * (3 + len(SHOWN)) + "|",
    ]
    for (data, method, way), part in table.groupby(["data", "method", "fine_tuning"], sort=False):
        cells = []
        for sparsity in SHOWN:
            percent = 100 * part.loc[part["sparsity"] == sparsity, "accuracy"]
            low, high = percent.min(), percent.max()
            cells.append(f"{percent.median():.1f} ({low:.1f}–{high:.1f})")
        name = method.replace("_", " ")
        lines.append(f"| {TITLES[data]} | {name} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw from the CSV file, run nothing")
    if not parser.parse_args().draw:
        run().to_csv(CSV, index=False)
    table = pd.read_csv(CSV, keep_default_na=False)  # "none" is a name
    draw(table).savefig(CSV.with_suffix(".png"), dpi=150)
    print(markdown(table))


if __name__ == "__main__":
    main()
