"""Speed of the tutorial's network without 90 % of its units, over the dense one.

    python benchmarks/units.py [--repeats 15]

Each way of computing runs the dense network and the one that `shrink` made of it, in turns,
on 10,000 images of uint8 and on one. A speed-up is the median over the turns of dense time
/ own time. Random weights and random images with as many dark pixels as MNIST's. Torch-Pruning
on the same network (PyTorch's Linear layers, its MagnitudePruner with the L2 norm) stands
beside it where torch and torch-pruning are installed.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_pruning as kp  # noqa: E402
import pruning_utils as pu  # noqa: E402
from keras_pruning.inference.threads import count_cores, one_blas_thread  # noqa: E402

SPARSITY = 0.9
BATCHES = (10_000, 1)
LIT_PIXELS = 0.19  # of MNIST's
TURN_SECONDS = 0.25
SPIN_SECONDS = 0.15  # idle threads of OpenBLAS occupy their cores about so long
ROWS = 625  # examples a block: 2 MB, which the heap gives out anew without new pages
THREADS = ThreadPoolExecutor(count_cores())
Side = Callable[[np.ndarray], object]


def numpy_side(network: keras.Model) -> Side:
    """Blocks of examples that stay in the caches, each thread with a BLAS of one thread."""
    kernels = [layer.kernel.numpy() for layer in network.layers if layer.weights]
    kernels[0] = kernels[0] / np.float32(255)

    def run(images: np.ndarray) -> np.ndarray:
        outputs = np.empty((len(images), kernels[-1].shape[1]), np.float32)

        def block(start: int) -> None:
            x = images[start : start + ROWS].reshape(-1, len(kernels[0])).astype(np.float32)
            for kernel in kernels[:-1]:
                x = x @ kernel
                np.maximum(x, 0, out=x)
            np.matmul(x, kernels[-1], out=outputs[start : start + ROWS])

        with one_blas_thread():
            list(THREADS.map(block, range(0, len(images), ROWS)))
        return outputs

    return run


def keras_side(network: keras.Model) -> Side:
    return lambda images: (
        network.predict_on_batch(images)
        if len(images) == 1
        else network.predict(images, batch_size=1000, verbose=0)
    )


def torch_sides() -> tuple[Side, Side]:
    import torch
    import torch_pruning

    def network() -> torch.nn.Sequential:
        sizes = (784, 1000, 1000, 500, 200, 10)
        layers = [torch.nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False)]
        return torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))

    def side(model: torch.nn.Module) -> Side:
        def run(images: np.ndarray) -> torch.Tensor:
            with torch.inference_mode():
                return model(torch.from_numpy(images).flatten(1).float() / 255)

        return run

    dense, pruned = network(), network()
    pruner = torch_pruning.pruner.MagnitudePruner(
        pruned,
        torch.zeros(1, 784),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=SPARSITY,
        ignored_layers=[pruned[-2]],
    )
    pruner.step()
    return side(dense), side(pruned)


def seconds(run: Side, images: np.ndarray) -> float:
    """Returns the time of a call, the mean of as many as fill a quarter of a second."""
    time.sleep(SPIN_SECONDS)
    run(images)
    calls, taken = 0, 0.0
    start = time.perf_counter()
    while taken < TURN_SECONDS:
        run(images)
        calls, taken = calls + 1, time.perf_counter() - start
    return taken / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    dense = pu.build_dense_network()
    small = kp.shrink(kp.prune_units(dense, SPARSITY))
    pairs = {
        name: (side(dense), side(small))
        for name, side in {
            "NumPy's BLAS": numpy_side,
            "Keras predict": keras_side,
            "SparseModel": lambda network: kp.SparseModel(network).predict,
        }.items()
    }
    if importlib.util.find_spec("torch_pruning"):
        pairs["Torch-Pruning"] = torch_sides()
    rng = np.random.default_rng(0)
    x = rng.integers(1, 256, (max(BATCHES), 28, 28), np.uint8)
    x[rng.random(x.shape) > LIT_PIXELS] = 0
    fewer = kp.measure(dense, x[:1], repeats=1).multiply_adds / small.count_params()
    print(f"{SPARSITY:.0%} of the units removed: {fewer:.1f} times fewer multiply-adds\n")
    print(f"{'':16}{'images':>8}{'dense ms':>10}{'small ms':>10}{'speed-up':>10}   quartiles")
    for batch in BATCHES:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
        for _ in range(repeats):
            for name, (of_dense, of_small) in pairs.items():
                times[name].append((seconds(of_dense, x[:batch]), seconds(of_small, x[:batch])))
        for name, turns in times.items():
            before, after = (1000 * statistics.median(t) for t in zip(*turns, strict=True))
            ratios = [a / b for a, b in turns]
            low, high = np.percentile(ratios, (25, 75))
            numbers = f"{before:10.2f}{after:10.2f}{statistics.median(ratios):10.1f}"
            print(f"{name:16}{batch:8,}{numbers}   {low:.1f} to {high:.1f}", flush=True)


if __name__ == "__main__":
    main()
