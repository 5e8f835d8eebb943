"""Time of a training step with KeepZeros and with GradualPruning, over a plain step.

    KERAS_BACKEND=jax python benchmarks/finetune.py

The network 784-1000-1000-500-200-10 at batch 128 with Adam, 90 % of its weights pruned.
All sides are compiled first. A turn is 100 steps of each side in one process, of which
the sides take 20 at a time, forwards and backwards, so that other work on the machine
meets them alike; GradualPruning prunes once a turn, its default. Medians over the turns,
and of the ratios to the plain steps of the same turn. On TensorFlow the wrapped model of
tensorflow-model-optimization is timed too, in a process of its own with legacy Keras,
where both are installed.

Then the seconds of a first and a second `fit` of one step with KeepZeros, and of a plain one
after them, of MobileNetV2 (or `--network`): what tracing costs, and that it is done once.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

UNITS = (1000, 1000, 500, 200)
BATCH = 128
STEPS = 20  # of one side at a time
BLOCKS = 5  # a turn
SPARSITY = 0.9


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.random((BATCH * STEPS, 784), np.float32)
    return x, rng.integers(0, 10, len(x))


def compiled_network(keras, wrap=lambda layers: layers):
    layers = [keras.layers.Dense(units, activation="relu") for units in UNITS]
    output = keras.layers.Dense(10, activation="softmax")
    network = keras.Sequential([keras.layers.InputLayer((784,)), *wrap(layers), output])
    network.compile("adam", "sparse_categorical_crossentropy")
    return network


def block_ms(keras, model, block: int, callbacks=()) -> float:
    """Milliseconds a step in one block, an epoch without its set-up."""

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    epochs = {"initial_epoch": block, "epochs": block + 1}
    model.fit(*data(), batch_size=BATCH, verbose=0, callbacks=[*callbacks, clock], **epochs)
    return 1000 * clock.seconds / STEPS


def our_times(turns: int) -> dict[str, list[float]]:
    import keras

    import keras_pruning as kp

    keras.utils.set_random_seed(0)
    dense = compiled_network(keras)
    plain, kept, gradual = (kp.prune_weights(dense, s) for s in (SPARSITY, SPARSITY, 0))
    every = BLOCKS * STEPS
    prune = kp.GradualPruning(SPARSITY, end=(turns + 1) * every, every=every)
    # As KeepZeros, but the weights are not looked through before and after every block.
    with kp.keep_zeros(kept), kp.keep_zeros(gradual), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Training ended at step")  # every block is a fit
        return take_turns(
            turns,
            {
                "plain": lambda block: block_ms(keras, plain, block),
                "KeepZeros": lambda block: block_ms(keras, kept, block),
                "GradualPruning": lambda block: block_ms(keras, gradual, block, [prune]),
            },
        )


def tfmot_times(turns: int) -> dict[str, list[float]]:
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    sparsity = tfmot.sparsity.keras
    schedule = sparsity.ConstantSparsity(SPARSITY, begin_step=0, frequency=BLOCKS * STEPS)

    def wrap(layers):
        return [sparsity.prune_low_magnitude(layer, schedule) for layer in layers]

    plain, wrapped = compiled_network(keras), compiled_network(keras, wrap)
    update = sparsity.UpdatePruningStep()
    return take_turns(
        turns,
        {
            "plain, legacy Keras": lambda block: block_ms(keras, plain, block),
            "tfmot's wrapped model": lambda block: block_ms(keras, wrapped, block, [update]),
        },
    )


def take_turns(turns: int, sides: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Returns the milliseconds a step of each side in each turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for turn in range(turns + 1):
        blocks: dict[str, list[float]] = {name: [] for name in sides}
        for block in range(turn * BLOCKS, (turn + 1) * BLOCKS):
            for name in order:
                blocks[name].append(sides[name](block))
            order.reverse()
        if turn:  # the first compiles
            for name, values in blocks.items():
                times[name].append(statistics.fmean(values))
    return times


def first_and_second_fit(name: str) -> None:
    import keras

    import keras_pruning as kp

    size = (96, 96, 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=size, classes=10)
    model = kp.prune_weights(model, SPARSITY)
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = np.zeros((8, *size), np.float32), np.zeros(8, np.int64)
    print(f"\n{name}, seconds of a fit of one step")
    fits = [("first with KeepZeros", True), ("second with KeepZeros", True)]
    fits += [("first plain", False), ("second plain", False), ("third with KeepZeros", True)]
    for title, held in fits:
        start = time.perf_counter()
        model.fit(x, y, verbose=0, callbacks=[kp.KeepZeros()] if held else [])
        print(f"{title:24}{time.perf_counter() - start:8.2f}", flush=True)


def report(times: dict[str, list[float]]) -> None:
    plain = next(iter(times.values()))
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, plain, strict=True)]
        print(
            f"{name:24}{statistics.median(values):8.2f}{statistics.median(ratios):10.2f}"
            f"   {min(ratios):.2f} to {max(ratios):.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--network", default="MobileNetV2", help="one of keras.applications")
    parser.add_argument("--tfmot", action="store_true", help="time tfmot alone")
    arguments = parser.parse_args()
    if arguments.tfmot:
        report(tfmot_times(arguments.turns))
        return
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    print(f"{backend}, {arguments.turns} turns\n{'':24}{'ms/step':>8}{'x plain':>10}   range")
    report(our_times(arguments.turns))
    if backend == "tensorflow" and importlib.util.find_spec("tensorflow_model_optimization"):
        command = [sys.executable, __file__, "--tfmot", "--turns", str(arguments.turns)]
        subprocess.run(command, check=True, env=os.environ | {"TF_USE_LEGACY_KERAS": "1"})
    first_and_second_fit(arguments.network)


if __name__ == "__main__":
    main()
