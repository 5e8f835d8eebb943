"""Time and memory of masking a kernel, beside NumPy's, PyTorch's and tfmot's selection.

    python benchmarks/masks.py [--repeats 7]

Prunes 90 % of 10 million weights of several kinds. All sides take turns in one run; medians
of the repeats, and of the ratios in brackets the lowest and the highest. "radix selection" is
what `weight_mask` did before it took `np.partition`. torch and tensorflow-model-optimization are
compared where they are installed (tfmot with tf_keras); of tfmot the mask update itself runs,
since its wrapper refuses Keras 3. A machine with AVX2 alone is imitated, as far as NumPy goes, by

    NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" python benchmarks/masks.py

(before NumPy 2.4: "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR").
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

if importlib.util.find_spec("tensorflow_model_optimization"):
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # read when TensorFlow is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import keras_pruning as kp  # noqa: E402

SHAPE = (2500, 4000)
SPARSITY = 0.9
BLOCK = 2**17  # entries that radix_selection looks at together

Side = Callable[[], object]


def kernels() -> Iterator[tuple[str, np.ndarray, float]]:
    """Yields what the weights are, the kernel, and the sparsity to prune it to."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(SHAPE).astype(np.float32)
    mostly_equal = np.where(rng.random(SHAPE) < SPARSITY, np.float32(1), normal)
    yield "normal, float32", normal, SPARSITY
    yield "90 % zero already, to 95 %", normal * kp.weight_mask(normal, 0.9), 0.95
    yield "half zero already, to 70 %", normal * kp.weight_mask(normal, 0.5), 0.7
    yield "90 % equal but not zero", mostly_equal, SPARSITY
    yield "normal, float16", normal.astype(np.float16), SPARSITY
    yield "normal, float64", normal.astype(np.float64), SPARSITY


def numpy_selection(kernel: np.ndarray, sparsity: float) -> np.ndarray:
    return np.partition(np.abs(kernel).reshape(-1), round(sparsity * kernel.size))


def radix_selection(kernel: np.ndarray, sparsity: float) -> np.ndarray:
    """Returns the mask of `weight_mask`, by one pass over the kernel per 16 bits of a float."""
    if np.isnan(kernel).any():
        raise ValueError("NaN has no rank.")
    width = 8 * kernel.itemsize
    bits = kernel.reshape(-1).view(f"u{kernel.itemsize}")
    without_sign = bits.dtype.type(2 ** (width - 1) - 1)
    threshold, ties_to_drop = 0, round(sparsity * kernel.size)
    for shift in range(width - 16, -1, -16):
        counts = np.zeros(2**16, np.int64)
        for start in range(0, bits.size, BLOCK):
            keys = bits[start : start + BLOCK] & without_sign
            if shift < width - 16:
                keys = keys[keys >> (shift + 16) == threshold]
            counts += np.bincount((keys >> shift).astype(np.uint16), minlength=counts.size)
        ends = counts.cumsum()
        digit = int(np.searchsorted(ends, ties_to_drop, side="right"))
        ties_to_drop -= int(ends[digit] - counts[digit])
        threshold = threshold << 16 | digit
    mask = np.empty(bits.size, bool)
    for start in range(0, bits.size, BLOCK):
        keys = bits[start : start + BLOCK] & without_sign
        kept = np.greater_equal(keys, threshold, out=mask[start : start + BLOCK])
        if ties_to_drop:
            ties = np.flatnonzero(keys == threshold)[:ties_to_drop]
            kept[ties] = False
            ties_to_drop -= ties.size
    return mask.reshape(kernel.shape)


def other_libraries(kernel: np.ndarray) -> dict[str, Side]:
    sides: dict[str, Side] = {
        "weight_mask": lambda: kp.weight_mask(kernel, SPARSITY),
        "one pass of np.abs": lambda: np.abs(kernel),
        "np.abs and np.argsort": lambda: np.argsort(np.abs(kernel).reshape(-1)),
    }
    if importlib.util.find_spec("torch"):
        sides["torch.nn.utils.prune.l1_unstructured"] = torch_side(kernel)
    if importlib.util.find_spec("tensorflow_model_optimization"):
        sides["tfmot PruneLowMagnitude mask update"] = tfmot_side(kernel)
    return sides


def torch_side(kernel: np.ndarray) -> Side:
    import torch
    from torch.nn.utils import prune

    torch.set_num_threads(2)

    def run() -> object:
        layer = torch.nn.Linear(1, 1, bias=False)
        layer.weight = torch.nn.Parameter(torch.from_numpy(kernel))
        return prune.l1_unstructured(layer, "weight", amount=SPARSITY)

    return run


def tfmot_side(kernel: np.ndarray) -> Side:
    import tensorflow as tf
    from tensorflow_model_optimization.python.core.sparsity.keras import (
        pruning_impl,
        pruning_schedule,
    )

    weight, mask = tf.Variable(kernel), tf.Variable(tf.ones_like(kernel))
    threshold = tf.Variable(0.0)
    pruning = pruning_impl.Pruning(
        training_step_fn=lambda: 0,
        pruning_vars=[(weight, mask, threshold)],
        pruning_schedule=pruning_schedule.ConstantSparsity(SPARSITY, 0),
        block_size=(1, 1),
        block_pooling_type="AVG",
    )
    return lambda: pruning._update_mask(weight)


def interleaved_ms(sides: dict[str, Side], repeats: int) -> dict[str, list[float]]:
    """Returns the times of each side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first is a warm-up
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def ratio(own: list[float], base: list[float]) -> str:
    ratios = [a / b for a, b in zip(own, base, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def peak_extra_bytes(run: Side) -> int:
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def print_selections(repeats: int) -> None:
    print(f"{'':28}{'weight_mask':>22}{'radix selection':>22}{'np.abs + np.partition':>32}")
    print(f"{'':28}" + 2 * f"{'ms':>13}{'memory':>9}" + f"{'ms':>13}{'ratio':>19}")
    for kind, kernel, sparsity in kernels():
        mask = kp.weight_mask(kernel, sparsity)
        np.testing.assert_array_equal(mask, radix_selection(kernel, sparsity))
        selections = [kp.weight_mask, radix_selection, numpy_selection]
        sides = {f.__name__: partial(f, kernel, sparsity) for f in selections}
        ms = interleaved_ms(sides, repeats)
        line = f"{kind:28}"
        for name in ("weight_mask", "radix_selection"):
            memory = peak_extra_bytes(sides[name]) / kernel.nbytes
            line += f"{statistics.median(ms[name]):13.1f}{memory:9.2f}"
        line += f"{statistics.median(ms['numpy_selection']):13.1f}"
        print(f"{line}{ratio(ms['weight_mask'], ms['numpy_selection']):>19}", flush=True)
    print("\nmemory: peak beside the kernel, in kernels. ratio: weight_mask / np.partition.\n")


def print_other_libraries(repeats: int) -> None:
    _, kernel, _ = next(kernels())
    ms = interleaved_ms(other_libraries(kernel), repeats)
    print(f"{'normal, float32':46}{'ms':>10}{'x weight_mask':>23}")
    for name, times in ms.items():
        print(f"{name:46}{statistics.median(times):10.1f}{ratio(times, ms['weight_mask']):>23}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    size = SHAPE[0] * SHAPE[1]
    print(f"{size:,} weights, {SPARSITY:.0%} pruned unless said, {repeats} repeats\n")
    print_selections(repeats)
    print_other_libraries(repeats)


if __name__ == "__main__":
    main()
