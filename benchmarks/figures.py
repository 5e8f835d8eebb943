"""Draws the pictures in images/ and prints the table of results in docs/results.md.

    TFDS_DATA_DIR=... python benchmarks/figures.py [--quick]

Trains the tutorial's network on MNIST and on Fashion-MNIST and sweeps it, as the notebook
does: about three minutes on two cores. --quick trains for one epoch, sweeps a thousand images and
draws nothing.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402

import pruning_utils as pu  # noqa: E402
from keras_pruning.studies.sweep import METHODS  # noqa: E402


def sweep(name: str, quick: bool) -> tuple[str, pd.DataFrame]:
    data = pu.load_dataset(name, test_size=1_000 if quick else None)
    network = pu.build_dense_network(data.image_shape, seed=0)
    pu.train(network, data, epochs=1 if quick else None, seed=0)
    how = {"methods": METHODS, "repeats": 1 if quick else 3, "progress": False}
    table = pu.sparsity_sweep(network, data.x_test, data.y_test, **how)
    return data.title, table


def markdown(sweeps: dict[str, pd.DataFrame]) -> str:
    lines = [
        "| data set | method | " + " | ".join(f"{s:.0%}" for s in SPARSITIES_SHOWN) + " |",
        "|---" * (2 + len(SPARSITIES_SHOWN)) + "|",
    ]
    for title, table in sweeps.items():
        median = table.groupby(["method", "sparsity"])["accuracy"].median()
        for method in METHODS:
            cells = [f"{100 * median[method, s]:.1f}" for s in SPARSITIES_SHOWN]
            lines.append(f"| {title} | {method.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


SPARSITIES_SHOWN = (0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see above")
    quick = parser.parse_args().quick
    sweeps = dict(sweep(name, quick) for name in ("mnist", "fashion_mnist"))
    if not quick:
        images = ROOT / "images"
        images.mkdir(exist_ok=True)
        pu.draw_network_pruning().savefig(images / "pruning.png", dpi=150)
        pu.plot_accuracy_panels(sweeps, chance=0.1).savefig(images / "accuracy.png", dpi=150)
    print(markdown(sweeps))


if __name__ == "__main__":
    main()
