"""Speed of SparseModel on convolutional networks, beside Keras, onnxruntime and OpenVINO.

    python benchmarks/sparse_conv.py layer [--batches 64 1] [--sparsities 0.5 0.7 0.8 0.9 0.95 0.99]
    python benchmarks/sparse_conv.py networks [--networks ResNet50:64 VGG16:64] [--batches 64 1]

All sides take turns in one run, on as many threads; a speed-up is the median over the turns of
the other side's time / SparseModel's, and beside it the ratio of the shortest times, which other
programs disturb least.

`layer`: one convolution of 3 x 3, 128 -> 128 channels, on 28 x 28 pixels, with ReLU, beside
TensorFlow's (oneDNN), with and without the changes of layout.

`networks`: whole networks with random weights, all kernels pruned by magnitude, against the dense
network in Keras (`predict_on_batch`), and in onnxruntime and OpenVINO where they are installed
(with tf2onnx, which makes their file). `own` is what `SparseModel.predict` takes, which may leave
the network to Keras; `blocks` is its time where it may not. Memory is the process's largest, of a
process for each side.
"""

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("what", choices=["layer", "networks", "memory"])
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
parser.add_argument("--repeats", type=int, default=9)
parser.add_argument("--batches", type=int, nargs="+", default=[64, 1])
parser.add_argument("--sparsities", type=float, nargs="+")
parser.add_argument(
    "--networks",
    nargs="+",
    default=["small:28", "ResNet50:64", "VGG16:64", "MobileNetV2:96", "ResNet50:224", "VGG16:224"],
)
parser.add_argument("--side", choices=["Keras", "SparseModel"], help="of `memory`")
ARGUMENTS = parser.parse_args()
for name in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "TF_NUM_INTRAOP"):
    os.environ[f"{name}_THREADS"] = str(ARGUMENTS.threads)  # read at the imports below
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers as kl  # noqa: E402

import keras_pruning as kp  # noqa: E402
from keras_pruning.inference.block_network import BlockNetwork  # noqa: E402
from keras_pruning.inference.planner import plan_blocks  # noqa: E402
from keras_pruning.inference.sparse_chain import compiled_loops  # noqa: E402

LAYER_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
NETWORK_SPARSITIES = (0.8, 0.9, 0.95)
PAUSE_SECONDS = 0.05  # until threads that wait for work have gone to sleep
Side = Callable[[], np.ndarray]


def in_turns(sides: dict[str, Side], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, which take turns, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(other: list[float], own: list[float]) -> float:
    return statistics.median(o / s for o, s in zip(other, own, strict=True))


def faster(other: list[float], own: list[float]) -> str:
    return f"{median_ratio(other, own):.2f} ({min(other) / min(own):.2f})"


def ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f}"


def check(own: np.ndarray, expected: np.ndarray, name: str) -> None:
    largest = np.abs(expected).max()
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5 * largest, err_msg=name)


# One layer


def print_layer() -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(ARGUMENTS.threads)
    print(f"3 x 3, 128 -> 128, on 28 x 28, with ReLU; {ARGUMENTS.threads} threads")
    print(f"{'batch':>6}{'zeros':>7}{'TF ms':>8}{'GFLOP/s':>9}{'kernel':>15}{'with layout':>15}")
    for batch in ARGUMENTS.batches:
        for sparsity in ARGUMENTS.sparsities or LAYER_SPARSITIES:
            x = np.random.default_rng(0).standard_normal((batch, 28, 28, 128)).astype("float32")
            model = keras.Sequential(
                [keras.Input((28, 28, 128)), kl.Conv2D(128, 3, padding="same", activation="relu")]
            )
            model = kp.prune_weights(model, sparsity, layers=[model.layers[0].name])
            kernel, bias = (tf.constant(w) for w in model.get_weights())
            held = tf.constant(x)

            @tf.function
            def forward(x, kernel=kernel, bias=bias):
                return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))

            plan, _ = plan_blocks(model)
            network = BlockNetwork(plan, ARGUMENTS.threads, compiled_loops())
            check(network.forward([x])[0], forward(held).numpy(), "layer")
            sides = {
                "TF": lambda f=forward, x=held: f(x).numpy(),
                "kernel": network.without_layout([x]),
                "own": lambda n=network, x=x: n.forward([x])[0],
            }
            seconds = in_turns(sides, ARGUMENTS.repeats)
            gflops = 2e-9 * batch * 28 * 28 * 9 * 128 * 128 / statistics.median(seconds["TF"])
            print(
                f"{batch:6}{sparsity:7.0%}{ms(seconds['TF']):>8}{gflops:9.0f}"
                f"{faster(seconds['TF'], seconds['kernel']):>15}"
                f"{faster(seconds['TF'], seconds['own']):>15}",
                flush=True,
            )


# Whole networks


def network(name: str) -> keras.Model:
    """A network by its name and size; its BatchNormalization as after training, not as at first."""
    kind, size = name.split(":")
    shape = (int(size), int(size), 3)
    keras.utils.set_random_seed(0)
    if kind == "small":
        model = small_network((*shape[:2], 1))
    else:
        build = getattr(keras.applications, kind)
        model = build(weights=None, input_shape=shape, classes=1000, classifier_activation=None)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            scale, offset, mean, variance = layer.get_weights()
            layer.set_weights(
                [
                    rng.uniform(0.8, 1.2, scale.shape),
                    rng.normal(0, 0.1, offset.shape),
                    rng.normal(0, 0.1, mean.shape),
                    rng.uniform(0.8, 1.2, variance.shape),
                ]
            )
    return model


def small_network(shape: tuple[int, ...]) -> keras.Model:
    """The tutorial's kind of network for small images: residual, 16 to 64 channels."""
    x = keras.Input(shape)
    y = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(16, 3, padding="same", use_bias=False)(x)))
    for filters in (16, 32, 64):
        strides = 1 if filters == 16 else 2
        z = kl.Conv2D(filters, 3, padding="same", strides=strides, use_bias=False)(y)
        z = kl.ReLU()(kl.BatchNormalization()(z))
        z = kl.BatchNormalization()(kl.Conv2D(filters, 3, padding="same", use_bias=False)(z))
        if strides > 1:
            y = kl.BatchNormalization()(kl.Conv2D(filters, 1, strides=2, use_bias=False)(y))
        y = kl.ReLU()(kl.Add()([y, z]))
    return keras.Model(x, kl.Dense(10)(kl.GlobalAveragePooling2D()(y)))


def pruned(model: keras.Model, sparsity: float) -> keras.Model:
    """All kernels pruned alike, depthwise ones and those of the outputs too."""
    if not sparsity:
        return model
    names = [layer.name for layer in model.layers if hasattr(layer, "kernel")]
    return kp.prune_weights(model, sparsity, layers=names)


def dense_engines(model: keras.Model, x: np.ndarray) -> dict[str, Side]:
    """The dense network in Keras, and in those engines that are installed."""
    sides: dict[str, Side] = {"Keras": lambda: model.predict_on_batch(x)}
    if not importlib.util.find_spec("tf2onnx"):
        return sides
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model(x[:1])  # Keras exports what was called
        model.export(path, format="onnx", verbose=False)
        if importlib.util.find_spec("onnxruntime"):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = ARGUMENTS.threads
            session = onnxruntime.InferenceSession(path.read_bytes(), options)
            name = session.get_inputs()[0].name
            sides["onnxruntime"] = lambda: session.run(None, {name: x})[0]
        if importlib.util.find_spec("openvino"):
            import openvino

            core = openvino.Core()
            read = core.read_model(path)
            read.reshape(x.shape)
            settings = {
                "INFERENCE_NUM_THREADS": ARGUMENTS.threads,
                "INFERENCE_PRECISION_HINT": "f32",
            }
            compiled = core.compile_model(read, "CPU", settings)
            sides["OpenVINO"] = lambda: compiled(x)[0]
    return sides


def print_networks() -> None:
    print(
        f"{ARGUMENTS.threads} threads; speed-up of SparseModel over the others, of the median turn "
        "(of the shortest times)\n"
        f"{'network':>15}{'batch':>6}{'zeros':>7}{'Keras ms':>10}{'own ms':>9}{'runs':>7}"
        f"{'Keras':>15}{'onnxruntime':>15}{'OpenVINO':>15}{'blocks/Keras':>15}"
    )
    sparsities = ARGUMENTS.sparsities or NETWORK_SPARSITIES
    table = [
        f"\n| weights pruned | {' | '.join(f'{sparsity:.0%}' for sparsity in sparsities)} |",
        "|---" * (1 + len(sparsities)) + "|",
    ]
    for name in ARGUMENTS.networks:
        dense = network(name)
        title, _, size = name.partition(":")
        for batch in ARGUMENTS.batches:
            rng = np.random.default_rng(0)
            x = rng.standard_normal((batch, *dense.input_shape[1:])).astype("float32")
            others = dense_engines(dense, x)
            for other, run in others.items():
                check(run(), others["Keras"](), other)
            ratios = [
                print_network(name, pruned(dense, sparsity), sparsity, x, others)
                for sparsity in sparsities
            ]
            row = [f"{title}, {size}×{size} pixels, batches of {batch}"]
            table.append(f"| {' | '.join(row + [f'{ratio:.1f}' for ratio in ratios])} |")
    print("\n".join(table))  # how many times as fast as the fastest of the others


def print_network(
    name: str, model: keras.Model, sparsity: float, x: np.ndarray, others: dict[str, Side]
) -> float:
    """Prints a row, and returns the speed-up over the fastest of the others."""
    sparse = kp.SparseModel(model, n_threads=ARGUMENTS.threads)
    plan, _ = plan_blocks(model)
    blocks = BlockNetwork(plan, ARGUMENTS.threads, compiled_loops())
    check(sparse.predict(x), model.predict_on_batch(x), "SparseModel")
    check(blocks.forward([x])[0], model.predict_on_batch(x), "blocks")
    sides = others | {
        "own": lambda: sparse.predict(x),
        "blocks": lambda: blocks.forward([x])[0],
    }
    seconds = in_turns(sides, ARGUMENTS.repeats)
    runs = "Keras" if set(sparse.report(x)["runs"]) == {"Keras"} else "blocks"
    cells = [
        faster(seconds[other], seconds["own"]) if other in seconds else "-"
        for other in ("Keras", "onnxruntime", "OpenVINO")
    ]
    print(
        f"{name:>15}{len(x):6}{sparsity:7.0%}{ms(seconds['Keras']):>10}{ms(seconds['own']):>9}"
        f"{runs:>7}{''.join(f'{cell:>15}' for cell in cells)}"
        f"{faster(seconds['Keras'], seconds['blocks']):>15}",
        flush=True,
    )
    return min(median_ratio(seconds[other], seconds["own"]) for other in others)


# Memory


def print_memory() -> None:
    """The largest memory of a process a side, which ran a network pruned to 90 % three times."""
    for name in ARGUMENTS.networks:
        for side in ("Keras", "SparseModel"):
            command = [sys.executable, __file__, "memory", "--side", side, "--networks", name]
            command += ["--batches", str(ARGUMENTS.batches[0]), "--threads", str(ARGUMENTS.threads)]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{name:>15}{side:>14}{ran.stdout.split()[-1]:>8} MB", flush=True)


def run_one_side() -> None:
    model = pruned(network(ARGUMENTS.networks[0]), 0.9)
    shape = (ARGUMENTS.batches[0], *model.input_shape[1:])
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    if ARGUMENTS.side == "SparseModel":
        plan, _ = plan_blocks(model)
        blocks = BlockNetwork(plan, ARGUMENTS.threads, compiled_loops())
        run: Side = lambda: blocks.forward([x])[0]  # noqa: E731
    else:
        run = lambda: model.predict_on_batch(x)  # noqa: E731
    for _ in range(3):
        run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    if ARGUMENTS.what == "layer":
        print_layer()
    elif ARGUMENTS.what == "networks":
        print_networks()
    elif ARGUMENTS.side:
        run_one_side()
    else:
        print_memory()


if __name__ == "__main__":
    main()
