"""Time and memory of masking a kernel, beside PyTorch's and tfmot's pruning.

    python benchmarks/masks.py

Prunes 90 % of a kernel of 10 million float32 weights. All sides take turns in one run;
medians of the repeats. torch and tensorflow-model-optimization are compared where they
are installed (tfmot with tf_keras and TF_USE_LEGACY_KERAS=1); of tfmot the mask update
itself runs, since its wrapper refuses Keras 3.
"""

import importlib.util
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import keras_pruning.pruning.masks as masks  # noqa: E402

SHAPE = (2500, 4000)
SPARSITY = 0.9
REPEATS = 7


def contenders(kernel: np.ndarray) -> dict[str, Callable[[], object]]:
    pruned = kernel * masks.weight_mask(kernel, SPARSITY)
    sides: dict[str, Callable[[], object]] = {
        "weight_mask": lambda: masks.weight_mask(kernel, SPARSITY),
        "weight_mask, 90 % of the kernel zero already": lambda: masks.weight_mask(pruned, 0.95),
        "one pass of np.abs": lambda: np.abs(kernel),
        "np.abs and np.partition": lambda: np.partition(
            np.abs(kernel).reshape(-1), round(SPARSITY * kernel.size)
        ),
        "np.abs and np.argsort": lambda: np.argsort(np.abs(kernel).reshape(-1)),
    }
    if importlib.util.find_spec("torch"):
        sides["torch.nn.utils.prune.l1_unstructured"] = torch_side(kernel)
    if importlib.util.find_spec("tensorflow_model_optimization"):
        sides["tfmot PruneLowMagnitude mask update"] = tfmot_side(kernel)
    return sides


def torch_side(kernel: np.ndarray) -> Callable[[], object]:
    import torch
    from torch.nn.utils import prune

    torch.set_num_threads(2)

    def run() -> object:
        layer = torch.nn.Linear(1, 1, bias=False)
        layer.weight = torch.nn.Parameter(torch.from_numpy(kernel))
        return prune.l1_unstructured(layer, "weight", amount=SPARSITY)

    return run


def tfmot_side(kernel: np.ndarray) -> Callable[[], object]:
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


def interleaved_seconds(sides: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(REPEATS + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_extra_bytes(run: Callable[[], object]) -> int:
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def main() -> None:
    kernel = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    seconds = interleaved_seconds(contenders(kernel))
    ours = seconds["weight_mask"]
    print(f"{kernel.size:,} float32 weights, {SPARSITY:.0%} pruned, {REPEATS} repeats\n")
    print(f"{'':46}{'median ms':>10}{'x weight_mask':>15}")
    for name, times in seconds.items():
        ratio = statistics.median(t / o for t, o in zip(times, ours, strict=True))
        print(f"{name:46}{1000 * statistics.median(times):10.1f}{ratio:15.2f}")
    peak = peak_extra_bytes(lambda: masks.weight_mask(kernel, SPARSITY))
    print(f"\npeak extra memory of weight_mask: {peak / kernel.nbytes:.2f} of the kernel's bytes")


if __name__ == "__main__":
    main()
