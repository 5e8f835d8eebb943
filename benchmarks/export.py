"""What a pruned network takes on disk, and how fast it answers, in the formats people ship.

    TFDS_DATA_DIR=... python benchmarks/export.py [--networks dense] [--sparsities 0 0.5 0.9]

The tutorial's dense network and a small convolutional one, trained for one epoch on MNIST
(on scikit-learn's digits where TFDS_DATA_DIR is not set), some of their weights zero, or half
of their units cut out ("50% of units"), and not trained again. A row a file: its bytes, also
as a share of the plain `.keras` file of that network and deflated; `limit` is what the numbers
themselves need, the entropy of each kernel's mask and 4 bytes for each number that is not
zero. `difference` is the largest of any output to Keras's, relative to the largest output.
Milliseconds are medians of calls in turns within one run, on all cores.

Zeros save nothing in ONNX, OpenVINO, a `.keras` file as Keras writes it, or a dense or int8
`.tflite`, unless something packs them. None of these is faster for them but SparseModel, and
LiteRT from about 97 % on, where its converter stores blocks of four numbers and its fully
connected kernel skips what lies between. Units that are cut out make each of them smaller and
nearly all of them faster.

On the TensorFlow backend, six minutes on two cores; onnxruntime with tf2onnx, openvino and
ai-edge-litert are optional.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from keras import layers as kl  # noqa: E402

import keras_pruning as kp  # noqa: E402
import pruning_utils as pu  # noqa: E402
from keras_pruning.measuring import inference_file  # noqa: E402

SPARSITIES = (0, 0.5, 0.8, 0.9, 0.95, 0.99)
UNIT_SPARSITY = 0.5
BATCHES = (1, 256)
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

Predict = Callable[[np.ndarray], np.ndarray]


def convolutional_network(image_shape: tuple[int, ...]) -> keras.Model:
    keras.utils.set_random_seed(0)
    block = [kl.BatchNormalization(), kl.ReLU()]
    again = [kl.BatchNormalization(), kl.ReLU()]
    return keras.Sequential(
        [
            keras.Input(image_shape, dtype="uint8"),
            kl.Rescaling(1 / 255),
            kl.Reshape((*image_shape[:2], 1)),
            *[kl.Conv2D(32, 3, padding="same"), *block, kl.MaxPooling2D()],
            *[kl.Conv2D(64, 3, padding="same"), *again, kl.MaxPooling2D()],
            *[kl.Flatten(), kl.Dense(128, activation="relu"), kl.Dense(10)],
        ]
    )


def limit_bytes(model: keras.Model) -> int:
    """Entropy of each kernel's mask and 4 bytes a number that is not zero."""
    total = 0.0
    for array in model.get_weights():
        share = np.count_nonzero(array) / array.size
        entropy = -sum(p * np.log2(p) for p in (share, 1 - share) if p > 0)  # bits a number
        total += array.size * (entropy / 8 + 4 * share)
    return round(total)


# ---- a format: what writes its files into a folder, and what answers from them


def keras_file(model: keras.Model, folder: Path) -> Predict:
    (folder / "model.keras").write_bytes(inference_file(model))
    return keras.saving.load_model(folder / "model.keras").predict_on_batch


def compressed_keras_file(model: keras.Model, folder: Path) -> Predict:
    kp.save_compressed(model, folder / "model.keras", for_inference=True)
    return keras.saving.load_model(folder / "model.keras").predict_on_batch


def sparse_model(model: keras.Model, folder: Path) -> Predict:
    kp.SparseModel(model).save(folder / "model.npz")
    return kp.SparseModel.load(folder / "model.npz").predict


def litert(**options: bool) -> Callable[[keras.Model, Path], Predict]:
    def write(model: keras.Model, folder: Path) -> Predict:
        kp.export_litert(model, folder / "model.tflite", **options)
        content = (folder / "model.tflite").read_bytes()
        prepared = {}

        def predict(x: np.ndarray) -> np.ndarray:
            if len(x) not in prepared:
                one = interpreter_class()(model_content=content, num_threads=THREADS)
                one.resize_tensor_input(one.get_input_details()[0]["index"], x.shape)
                one.allocate_tensors()
                prepared[len(x)] = one
            one = prepared[len(x)]
            one.set_tensor(one.get_input_details()[0]["index"], x)
            one.invoke()
            return one.get_tensor(one.get_output_details()[0]["index"])

        return predict

    return write


def interpreter_class() -> type:
    if importlib.util.find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter
    import tensorflow as tf

    return tf.lite.Interpreter


def onnx(model: keras.Model, folder: Path) -> Predict:
    import onnxruntime

    model.export(folder / "model.onnx", format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def openvino(model: keras.Model, folder: Path) -> Predict:
    import openvino

    model.export(str(folder / "model.xml"), format="openvino", verbose=False)
    compiled = openvino.compile_model(folder / "model.xml", "CPU")
    return lambda x: compiled(x)[0]


FORMATS = {
    ".keras": keras_file,
    ".keras compressed": compressed_keras_file,
    "SparseModel": sparse_model,
    ".tflite dense": litert(sparse=False),
    ".tflite auto": litert(),
    ".tflite int8": litert(sparse=False, int8=True),
    ".onnx": onnx,
    ".xml + .bin": openvino,
}
README_ROWS = {
    ".keras compressed": "`.keras` by `save_compressed`",
    ".tflite auto": "`.tflite` by `export_litert`",
    "SparseModel": "a `SparseModel`",
}
NEEDS = {".onnx": ("onnxruntime", "tf2onnx"), ".xml + .bin": ("openvino",)}


def medians_ms(predicts: dict[str, Predict], x: np.ndarray, repeats: int) -> dict[str, float]:
    """Median milliseconds of each function, called in turns, each turn once untimed before."""
    milliseconds = {name: [] for name in predicts}
    for _ in range(repeats):
        for name, predict in predicts.items():
            predict(x)
            start = time.perf_counter()
            predict(x)
            milliseconds[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(times)) for name, times in milliseconds.items()}


def rows(model: keras.Model, formats: dict, x: np.ndarray, repeats: int) -> pd.DataFrame:
    expected, predicts, found = model.predict_on_batch(x), {}, []
    for name, write in formats.items():
        with tempfile.TemporaryDirectory() as folder:
            predicts[name] = write(model, Path(folder))
            content = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
        difference = np.abs(predicts[name](x) - expected).max() / np.abs(expected).max()
        size, packed = sum(map(len, content)), sum(len(zlib.compress(part)) for part in content)
        found.append({"format": name, "bytes": size, "deflated": packed, "difference": difference})
    table = pd.DataFrame(found)
    table.insert(2, "share", table["bytes"] / table["bytes"][0])
    table.insert(4, "limit", limit_bytes(model))
    for batch in BATCHES:
        times = medians_ms(predicts, x[:batch], repeats)
        table[f"batch {batch} ms"] = table["format"].map(times)
    return table


def print_in_short(tables: dict[tuple[str, str], pd.DataFrame], sparsities: Sequence) -> None:
    """The README's rows."""
    titles = [f"{sparsity:.0%}" for sparsity in sparsities]
    print(f"\n| weights pruned | {' | '.join(titles)} |\n|---" + "|---" * len(titles) + "|")
    for name, title in README_ROWS.items():
        at_each = [tables["dense", f"{share} zeros"].set_index("format") for share in titles]
        cells = [f"{table['bytes'][name] / 1e6:.2f}" for table in at_each]
        print(f"| MB of {title} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--networks", nargs="+", default=["dense", "convolutional"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    options = parser.parse_args()
    repeats = options.repeats
    data = pu.load_dataset("mnist" if os.environ.get("TFDS_DATA_DIR") else "digits")
    formats = dict(FORMATS)
    for name, packages in NEEDS.items():
        missing = [package for package in packages if not importlib.util.find_spec(package)]
        if missing:
            del formats[name]
            print(f"left out, {name}: {' and '.join(missing)} not installed")
    networks = {
        "dense": pu.build_dense_network(data.image_shape, seed=0),
        "convolutional": convolutional_network(data.image_shape),
    }
    tables = {}
    for kind in options.networks:
        network = networks[kind]
        pu.train(network, data, epochs=1, seed=0, verbose=False)
        variants = {f"{s:.0%} zeros": kp.prune_weights(network, s) for s in options.sparsities}
        variants[f"{UNIT_SPARSITY:.0%} of units"] = kp.shrink(
            kp.prune_units(network, UNIT_SPARSITY)
        )
        for name, model in variants.items():
            tables[kind, name] = rows(model, formats, data.x_test[: max(BATCHES)], repeats)
    table = pd.concat(tables, names=["network", "pruned"]).droplevel(2).reset_index()
    print(f"\n{data.title}, {THREADS} threads, medians of {repeats} calls in turns\n")
    shown = {"bytes": "{:,}", "deflated": "{:,}", "limit": "{:,}", "share": "{:.3f}"}
    shown |= {"difference": "{:.0e}"} | {f"batch {batch} ms": "{:.2f}" for batch in BATCHES}
    for column, form in shown.items():
        table[column] = table[column].map(form.format)
    print(table.to_string(index=False))
    if "dense" in options.networks:
        print_in_short(tables, options.sparsities)


if __name__ == "__main__":
    main()
