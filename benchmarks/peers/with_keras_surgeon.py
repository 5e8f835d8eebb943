"""Whether keras-surgeon still deletes channels, from models of Keras 3 and of legacy Keras.

    python benchmarks/peers/with_keras_surgeon.py

Half of the units of a hidden layer of 64, in a Sequential and in a functional model; the networks
of the task are not needed. The last TensorFlow that it works on has Python 3.8 at most:

    python3.8 -m venv old
    old/bin/pip install tensorflow-cpu==2.3.4 "protobuf<3.21" "importlib-metadata<2"
    old/bin/pip install --no-deps kerassurgeon
    old/bin/python benchmarks/peers/with_keras_surgeon.py --alone

From 2.4 on, where Keras's symbolic tensors have no length, it fails.
"""

import argparse
import json
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def sequential(keras):
    layers = keras.layers
    hidden = layers.Dense(64, activation="relu")
    return keras.Sequential([layers.InputLayer((16,)), hidden, layers.Dense(4)]), hidden


def functional(keras):
    inputs = keras.layers.Input((16,))
    hidden = keras.layers.Dense(64, activation="relu")
    return keras.Model(inputs, keras.layers.Dense(4)(hidden(inputs))), hidden


def delete_half(build, keras) -> str:
    from kerassurgeon.operations import delete_channels

    model, layer = build(keras)
    try:
        small = delete_channels(model, layer, list(range(32)))
    except (AttributeError, TypeError, ValueError) as error:
        return f"fails, {type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return f"works, {small.count_params()} of {model.count_params()} parameters left"


def try_both() -> None:
    import tensorflow as tf

    print(f"TensorFlow {tf.__version__}, Keras in {tf.keras.Model.__module__}")
    for build in (sequential, functional):
        print(f"{build.__name__}: {delete_half(build, tf.keras)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alone", action="store_true", help="the Keras of this process alone")
    parser.add_argument("--results", help="a JSON file for table.py")
    parser.add_argument("--task", help="as the other scripts; not looked at")
    parser.add_argument("--quick", action="store_true", help="the same")
    options = parser.parse_args()
    if options.alone:
        try_both()
        return
    printed = ""
    for legacy in ("0", "1"):  # read when TensorFlow is imported, hence two processes
        command = [sys.executable, __file__, "--alone"]
        environment = {**os.environ, "TF_USE_LEGACY_KERAS": legacy}
        printed += subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    print(printed)
    if options.results:
        from importlib import metadata

        names = ["kerassurgeon", "tensorflow", "tf-keras"]
        kept = {"tool": "keras-surgeon", "measured": []}
        kept["versions"] = {name: metadata.version(name) for name in names}
        works = (
            "works" if "works" in printed else f"fails on TensorFlow {metadata.version(names[1])}"
        )
        kept["measured"].append({"what": "units, at once", "case": None, "text": works})
        with open(options.results, "w") as file:
            json.dump(kept, file)


if __name__ == "__main__":
    main()
