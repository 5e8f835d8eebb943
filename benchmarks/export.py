"""What pruning does to size and speed on disk, in Keras and in LiteRT: one table.

    TFDS_DATA_DIR=... python benchmarks/export.py

The tutorial's network, trained for one epoch on MNIST (on scikit-learn's digits where
TFDS_DATA_DIR is not set), pruned in one shot and not trained again; so the accuracy is
what pruning left, not what fine-tuning brings back. Latencies are those of Keras and of
SparseModel (`kp.compare`, in turns). Differences are the largest of any output to Keras's,
relative to its largest output. On the TensorFlow backend; about two minutes on two cores.
"""

import argparse
import gzip
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

import keras_pruning as kp  # noqa: E402
import pruning_utils as pu  # noqa: E402

WEIGHT_SPARSITY = 0.9
UNIT_SPARSITY = 0.8
NUM_COMPARED = 1000  # examples whose outputs are compared


def quantised(model: keras.Model) -> keras.Model:
    copy = kp.prune_weights(model, 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Layer .* does not have a `quantize`")
        copy.quantize("int8")
    return copy


def variants(network: keras.Model) -> dict[str, keras.Model | kp.SparseModel]:
    weights = kp.prune_weights(network, WEIGHT_SPARSITY)
    units = kp.prune_units(network, UNIT_SPARSITY)
    smaller = kp.shrink(units)
    return {
        "dense": network,
        "90 % of weights": weights,
        "90 % of weights, int8": quantised(weights),
        "90 % of weights, SparseModel": kp.SparseModel(weights),
        "80 % of units": units,
        "80 % of units, shrunk": smaller,
        "80 % of units, shrunk, int8": quantised(smaller),
    }


def litert_figures(model: keras.Model | kp.SparseModel, x: np.ndarray) -> dict[str, object]:
    """Bytes and difference of the plain LiteRT file and of the int8 one."""
    if isinstance(model, kp.SparseModel):
        return {}
    expected = model.predict_on_batch(x)
    found: dict[str, object] = {}
    for kind, int8 in (("LiteRT", False), ("LiteRT int8", True)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            try:
                kp.export_litert(model, path, int8=int8)
            except ValueError as error:
                found |= {f"{kind} bytes": "fails", "why": str(error)}
                continue
            data = path.read_bytes()
            difference = np.abs(kp.litert_predict(path, x) - expected).max()
        found |= {
            f"{kind} bytes": f"{len(data):,}",
            f"{kind} gzip": f"{len(gzip.compress(data, mtime=0)):,}",
            f"{kind} difference": f"{difference / np.abs(expected).max():.0e}",
        }
    return found


def table(measured: pd.DataFrame, litert: list[dict[str, object]]) -> pd.DataFrame:
    """A row a model, as text."""
    shown = pd.DataFrame({"model": measured["model"]})
    shown["accuracy"] = measured["accuracy"].map("{:.1%}".format)
    for name, column in {
        "parameters": "parameters",
        "nonzero": "nonzero",
        "mult-adds": "multiply_adds",
        "of nonzero": "multiply_adds_nonzero",
        "own file bytes": "file_bytes",
        "own file gzip": "file_gzip_bytes",
    }.items():
        shown[name] = measured[column].map("{:,}".format)
    for size in (1, 256):
        shown[f"batch {size} ms"] = measured[f"batch_{size}_ms"].map("{:.2f}".format)
    columns = [
        f"{kind} {what}"
        for kind in ("LiteRT", "LiteRT int8")
        for what in ("bytes", "gzip", "difference")
    ]
    return shown.join(pd.DataFrame(litert).reindex(columns=columns).fillna("-"))


def markdown(shown: pd.DataFrame) -> str:
    rows = [shown.columns, ["---"] * shown.shape[1], *shown.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    repeats = parser.parse_args().repeats
    data = pu.load_dataset("mnist" if os.environ.get("TFDS_DATA_DIR") else "digits")
    network = pu.build_dense_network(data.image_shape, seed=0)
    pu.train(network, data, epochs=1, seed=0, verbose=False)
    models = variants(network)
    measured = kp.compare(models, data.x_test, data.y_test, repeats=repeats)
    litert = [litert_figures(model, data.x_test[:NUM_COMPARED]) for model in models.values()]
    print(f"{data.title}, {measured['n_threads'][0]} threads, median of {repeats} calls\n")
    print(markdown(table(measured, litert)))
    for name, figures in zip(models, litert, strict=True):
        if "why" in figures:
            print(f"\nfails, {name}: {figures['why']}")


if __name__ == "__main__":
    main()
