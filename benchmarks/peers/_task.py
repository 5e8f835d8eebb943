"""The task that every tool gets, and how each reports: NumPy alone, for any environment."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np  # noqa: E402

SPARSITIES = (0.8, 0.9, 0.95)  # of the weights of the four hidden kernels
UNIT_SPARSITIES = (0.5, 0.8)  # of the units of the hidden layers
SPEED_SPARSITY = 0.95
LARGE_LAYER = (2500, 4000)  # inputs, units: 10 million weights
LARGE_SPARSITY = 0.9
BATCH = 256
LEARNING_RATE = 5e-3  # falls to 0 along a cosine over one epoch of Adam
TIMED_IMAGES = 1000  # in one call


class Task:
    """Networks trained by `make_task.py`, as arrays, and the images.

    `dense` holds a list of kernels (inputs, units) a network, without biases; `convolutional` the
    weights of one network in the order of Keras's `get_weights`. Images are uint8, (n, 28, 28).
    """

    def __init__(self, path: Path, quick: bool) -> None:
        arrays = np.load(path)
        self.quick = quick
        self.x_train, self.y_train = arrays["x_train"], arrays["y_train"]
        self.x_test, self.y_test = arrays["x_test"], arrays["y_test"]
        self.dense = _lists(arrays, "dense")
        [self.convolutional] = _lists(arrays, "convolutional")
        self.sparsities = SPARSITIES[1:2] if quick else SPARSITIES
        self.unit_sparsities = UNIT_SPARSITIES[:1] if quick else UNIT_SPARSITIES
        self.repeats = 1 if quick else 7

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-len(self.x_train) // BATCH)

    def large_kernel(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(LARGE_LAYER).astype(np.float32)

    def accuracy(self, predict: Callable[[np.ndarray], np.ndarray]) -> float:
        """In percent, of a function from images to one number a class."""
        answers = [
            np.asarray(predict(self.x_test[start : start + 1000])).argmax(1)
            for start in range(0, len(self.x_test), 1000)
        ]
        return 100 * float((np.concatenate(answers) == self.y_test).mean())


def _lists(arrays: np.lib.npyio.NpzFile, kind: str) -> list[list[np.ndarray]]:
    """The arrays named kind/network/place, as a list a network."""
    found: dict[int, list[np.ndarray]] = {}
    for name in arrays.files:
        if name.startswith(f"{kind}/"):
            found.setdefault(int(name.split("/")[1]), []).append(arrays[name])
    return list(found.values())


def flat(images: np.ndarray) -> np.ndarray:
    """Rows of 784 numbers from 0 to 1, what a network without its own rescaling takes."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def smallest_kept(kernel: np.ndarray, sparsity: float) -> np.ndarray:
    """The mask that every tool should find: all but the smallest magnitudes."""
    order = np.argsort(np.abs(kernel), axis=None, kind="stable")
    mask = np.ones(kernel.size, bool)
    mask[order[: round(sparsity * kernel.size)]] = False
    return mask.reshape(kernel.shape)


def partition(kernel: np.ndarray) -> np.ndarray:
    """What pruning is timed by: the selection without which no mask is found."""
    return np.partition(np.abs(kernel).reshape(-1), round(LARGE_SPARSITY * kernel.size))


def ratios(base: Callable[[], object], own: Callable[[], object], repeats: int) -> list[float]:
    """Time of `own` over that of `base`, which take turns; the first turn warms up."""
    found = []
    for turn in range(repeats + 1):
        seconds = []
        for run in (base, own):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        if turn:
            found.append(seconds[1] / seconds[0])
    return found


class Report:
    """Prints what is measured, a line a case, and keeps it for `table.py`."""

    def __init__(self, tool: str, packages: Sequence[str], results: Path | None) -> None:
        versions = {name: metadata.version(name) for name in packages}
        self._results = results
        self._kept: dict = {"tool": tool, "versions": versions, "measured": []}
        print(f"{tool}: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
        print(f"{'':52}{'median':>10}   lowest to highest")

    def add(self, what: str, case: float | None, values: Sequence[float], unit: str = "") -> None:
        """A measurement: one value a network, or one a repeat."""
        row = {"what": what, "case": case, "values": [float(value) for value in values]}
        self._kept["measured"].append(row)
        middle, low, high = statistics.median(values), min(values), max(values)
        title = what if case is None else f"{what}, {case:.0%}"
        spread = f"{low:.2f} to {high:.2f}" if len(values) > 1 else "one value"
        print(f"{title:52}{middle:10.2f}   {spread:18} {unit}".rstrip(), flush=True)

    def say(self, what: str, text: str) -> None:
        """A fact that is no number, or the reason why there is none."""
        self._kept["measured"].append({"what": what, "case": None, "text": text})
        print(f"{what}: {text}", flush=True)

    def save(self) -> None:
        if self._results:
            beside = self._results.with_suffix(".part")
            beside.write_text(json.dumps(self._kept, indent=1))
            beside.replace(self._results)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--task", type=Path, required=True, help="what make_task.py wrote")
    parser.add_argument("--results", type=Path, help="a JSON file for table.py")
    parser.add_argument("--quick", action="store_true", help="one sparsity, one repeat")
    return parser.parse_args()
