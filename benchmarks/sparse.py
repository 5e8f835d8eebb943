"""Speed and size of SparseModel, beside dense NumPy, SciPy's CSR, MKL's and tf.sparse.

    python benchmarks/sparse.py [--threads 2] [--repeats 9] [--batches 10000 256 1]

The tutorial's network 784-1000-1000-500-200-10, its hidden layers pruned by weight
magnitude. Each side computes the whole network, from images of uint8 to outputs. All sides
take turns in one run, with as many threads; a speed-up is the median over the turns of
dense time / own time, and beside it the quartiles, and the ratio of the shortest times, which
other programs disturb least. Random weights and random images with as many dark pixels as MNIST's:
half of the inputs of the hidden layers are zero, as ReLU leaves them. MKL needs the package
sparse_dot_mkl and a library: that of `pip install mkl`, or the one that MKL_RT names.
"""

import argparse
import gzip
import importlib.util
import operator
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
parser.add_argument("--repeats", type=int, default=9)
parser.add_argument("--batches", type=int, nargs="+", default=[10_000, 256, 1])
ARGUMENTS = parser.parse_args()
for name in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "TF_NUM_INTRAOP"):
    os.environ[f"{name}_THREADS"] = str(ARGUMENTS.threads)  # read at the imports below
for library in Path(sys.prefix, "lib").glob("libmkl_rt.so*"):
    os.environ.setdefault("MKL_RT", str(library))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from scipy.sparse import csr_array  # noqa: E402
from sgemm import sgemm_gflops  # noqa: E402

import keras_pruning as kp  # noqa: E402
import pruning_utils as pu  # noqa: E402
from keras_pruning.inference.dense_chain import DenseStep, read_dense_chain  # noqa: E402
from keras_pruning.inference.sparse_model import SparseModel  # noqa: E402

SPARSITIES = (0, 0.5, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)
SIZE_SPARSITIES = (0, 0.5, 0.8, 0.9, 0.95, 0.99)
LIT_PIXELS = 0.19  # of MNIST's
SPIN_SECONDS = 0.15  # idle threads of OpenBLAS occupy their cores about so long
TURN_SECONDS = 0.05
Side = Callable[[np.ndarray], np.ndarray]


def dense_side(steps: list[DenseStep]) -> Side:
    def run(images: np.ndarray) -> np.ndarray:
        x = images.reshape(len(images), -1).astype(np.float32)
        for step in steps:
            x = x @ step.kernel
            if step.activation is keras.activations.relu:
                np.maximum(x, 0, out=x)
        return x

    return run


def csr_side(steps: list[DenseStep], multiply: Callable[..., np.ndarray]) -> Side:
    matrices = [csr_array(step.kernel.T) for step in steps]

    def run(images: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(images.reshape(len(images), -1).T, np.float32)
        for matrix, step in zip(matrices, steps, strict=True):
            x = multiply(matrix, x)
            if step.activation is keras.activations.relu:
                np.maximum(x, 0, out=x)
        return x.T

    return run


def tf_sparse_side(steps: list[DenseStep]) -> Side:
    import tensorflow as tf

    kernels = [tf.sparse.from_dense(step.kernel.T) for step in steps]

    @tf.function
    def forward(x: tf.Tensor) -> tf.Tensor:
        x = tf.transpose(x)
        for kernel, step in zip(kernels, steps, strict=True):
            x = tf.sparse.sparse_dense_matmul(kernel, x)
            if step.activation is keras.activations.relu:
                x = tf.nn.relu(x)
        return tf.transpose(x)

    return lambda images: forward(images.reshape(len(images), -1).astype(np.float32)).numpy()


def interleaved_seconds(sides: dict[str, Side], x: np.ndarray) -> dict[str, list[float]]:
    """Times the sides in turns, after a turn that warms up and compares the outputs."""
    expected = sides["dense"](x)
    for name, run in sides.items():
        np.testing.assert_allclose(
            run(x), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name
        )
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ARGUMENTS.repeats):
        for name, run in sides.items():
            seconds[name].append(seconds_a_call(run, x))
    return seconds


def seconds_a_call(run: Side, x: np.ndarray) -> float:
    time.sleep(SPIN_SECONDS)
    run(x)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() < start + TURN_SECONDS or not calls:
        run(x)
        calls += 1
    return (time.perf_counter() - start) / calls


def print_speed(networks: dict[float, keras.Model], x: np.ndarray) -> dict[int, dict[float, float]]:
    """Returns the median speed-up of SparseModel for each batch and sparsity."""
    found: dict[int, dict[float, float]] = {batch: {} for batch in ARGUMENTS.batches}
    print(
        f"{ARGUMENTS.threads} threads; sgemm of (10000, 1000) x (1000, 1000): "
        f"{sgemm_gflops():.0f} GFLOP/s\n\n"
        f"{'':>7}{'':>10}{'ms':>10}{'ms':>13}{'speed-up':>10}{'speed-up':>14}{'speed-up':>10}"
        f"{'GFLOP/s':>9}"
        f"{'speed-up':>11}{'speed-up':>11}{'speed-up':>11}\n"
        f"{'batch':>7}{'sparsity':>10}{'dense':>10}{'SparseModel':>13}{'median':>10}"
        f"{'quartiles':>14}{'shortest':>10}{'useful':>9}"
        f"{'SciPy CSR':>11}{'MKL CSR':>11}{'tf.sparse':>11}"
    )
    for batch in ARGUMENTS.batches:
        for sparsity, network in networks.items():
            steps = read_dense_chain(network)
            sides = {"dense": dense_side(steps)}
            sides["ours"] = SparseModel(network, n_threads=ARGUMENTS.threads).predict
            if batch <= 256:  # half a minute a turn for 10,000
                sides["scipy"] = csr_side(steps, operator.matmul)
                if importlib.util.find_spec("sparse_dot_mkl"):
                    from sparse_dot_mkl import dot_product_mkl

                    sides["mkl"] = csr_side(steps, dot_product_mkl)
                if importlib.util.find_spec("tensorflow"):
                    sides["tf"] = tf_sparse_side(steps)
            seconds = interleaved_seconds(sides, x[:batch])
            ms = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
            faster = {
                name: f"{ratio(seconds['dense'], seconds[name]):.2f}" if name in seconds else "-"
                for name in ("ours", "scipy", "mkl", "tf")
            }
            found[batch][sparsity] = ratio(seconds["dense"], seconds["ours"])
            low, high = quartiles(seconds["dense"], seconds["ours"])
            weights = sum(np.count_nonzero(step.kernel) for step in steps)
            shortest = min(seconds["dense"]) / min(seconds["ours"])
            print(
                f"{batch:7,}{sparsity:10.0%}{ms['dense']:10.3f}{ms['ours']:13.3f}"
                f"{faster['ours']:>10}{f'{low:.2f}-{high:.2f}':>14}{shortest:10.2f}"
                f"{2e-6 * batch * weights / ms['ours']:9.0f}"
                f"{faster['scipy']:>11}{faster['mkl']:>11}{faster['tf']:>11}",
                flush=True,
            )
    return found


def quartiles(dense: list[float], own: list[float]) -> np.ndarray:
    return np.percentile([d / o for d, o in zip(dense, own, strict=True)], (25, 75))


def ratio(dense: list[float], own: list[float]) -> float:
    return statistics.median(d / o for d, o in zip(dense, own, strict=True))


def print_in_short(found: dict[int, dict[float, float]]) -> None:
    """The README's rows."""
    print("\n| weights pruned | " + " | ".join(f"{s:.0%}" for s in SIZE_SPARSITIES) + " |")
    print("|---" * (1 + len(SIZE_SPARSITIES)) + "|")
    for batch, speedups in found.items():
        shown = [speedups[sparsity] for sparsity in SIZE_SPARSITIES]
        cells = [f"{x:.1f}" if x < 9.95 else f"{x:.0f}" for x in shown]
        images = "1 image" if batch == 1 else f"{batch:,} images"
        print(f"| times as fast, {images} | " + " | ".join(cells) + " |")


def information_bytes(network: keras.Model) -> float:
    """4 bytes a weight left, and the entropy of each kernel's mask."""
    total = 0.0
    for step in read_dense_chain(network):
        left = np.count_nonzero(step.kernel) / step.kernel.size
        shares = np.array([p for p in (left, 1 - left) if p])
        total += step.kernel.size * (4 * left - (shares * np.log2(shares)).sum() / 8)
    return total


def print_sizes(networks: dict[float, keras.Model]) -> None:
    print(
        f"\n{'':>10}{'bytes':>14}{'bytes':>14}{'bytes':>14}{'SparseModel':>13}"
        f"\n{'sparsity':>10}{'.keras.gz':>14}{'SparseModel':>14}{'information':>14}{'/ inf.':>13}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.keras"
        for sparsity in SIZE_SPARSITIES:
            networks[sparsity].save(path)
            zipped = len(gzip.compress(path.read_bytes()))
            ours = SparseModel(networks[sparsity]).size_bytes
            limit = information_bytes(networks[sparsity])
            print(f"{sparsity:10.0%}{zipped:14,}{ours:14,}{limit:14,.0f}{ours / limit:13.2f}")


def main() -> None:
    network = pu.build_dense_network()
    networks = {sparsity: kp.prune_weights(network, sparsity) for sparsity in SPARSITIES}
    rng = np.random.default_rng(0)
    x = rng.integers(1, 256, (max(ARGUMENTS.batches), 28, 28), np.uint8)
    x[rng.random(x.shape) > LIT_PIXELS] = 0
    found = print_speed(networks, x)
    print_sizes(networks)
    print_in_short(found)


if __name__ == "__main__":
    main()
