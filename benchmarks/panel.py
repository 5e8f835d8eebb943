"""Time of one move in the interactive panel.

    TFDS_DATA_DIR=... python benchmarks/panel.py

The tutorial's network on MNIST. A move is a change of one slider: pruning, a forward pass,
the pictures, the page; the time that the browser takes to draw it is not in it.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pruning_utils as pu  # noqa: E402

SPARSITIES = (0.1, 0.5, 0.6, 0.8, 0.9, 0.95, 0.99)


def seconds_of_moves(slider, values: Iterable) -> list[float]:
    seconds = []
    for value in values:
        start = time.perf_counter()
        slider.value = value
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default="mnist", help="mnist, fashion_mnist or digits")
    arguments = parser.parse_args()
    data = pu.load_dataset(arguments.data)
    network = pu.build_dense_network(data.image_shape)
    pu.train(network, data, epochs=1)
    start = time.perf_counter()
    panel = pu.explore(network, data)
    print(f"first view {1e3 * (time.perf_counter() - start):.0f} ms")
    sliders = {child.description: child for child in panel.children[:-1]}
    for method in ("weights", "units"):
        for scope in ("layer", "global"):
            sliders["method"].value, sliders["scope"].value = method, scope
            seconds = seconds_of_moves(sliders["sparsity"], SPARSITIES * arguments.repeats)
            print(
                f"sparsity moved, {method:>7}, scope {scope:>6}: "
                f"median {1e3 * statistics.median(seconds):.0f} ms, "
                f"slowest {1e3 * max(seconds):.0f} ms"
            )
    seconds = seconds_of_moves(sliders["image"], range(1, 21))
    print(f"image moved: median {1e3 * statistics.median(seconds):.0f} ms")


if __name__ == "__main__":
    main()
