"""LeNet-300-100 on MNIST, pruned to 8 % of its weights, beside Han et al. 2015, Table 3.

    TFDS_DATA_DIR=... python benchmarks/lenet_300_100.py

Dense layers of 300, 100 and 10 units, trained on the 60,000 training images; then pruned
gradually to 8 % of all weights, the three layers ranked together, and trained on with the
zeros kept. Nothing is chosen by the test images. The paper has a test error of 1.64 %
dense and 1.59 % with 8 % of the weights left (12 times fewer). Prints the test errors of
each seed, their means and spreads.
"""

import argparse
import functools
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402

import keras_pruning as kp  # noqa: E402
import pruning_utils as pu  # noqa: E402

KEPT = 0.08
BATCH = 128
LAYERS = ("fc1", "fc2", "fc3")


def lenet() -> keras.Model:
    fc1, fc2, fc3 = LAYERS
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(300, activation="relu", name=fc1),
            keras.layers.Dense(100, activation="relu", name=fc2),
            keras.layers.Dense(10, activation="softmax", name=fc3),
        ]
    )


def fit(model: keras.Model, data: pu.Dataset, epochs: int, callbacks=()) -> None:
    """Trains with Adam, its rate falling from 0.001 to 0 along a cosine."""
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * -(-len(data.x_train) // BATCH))
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks],
    )


def test_error(model: keras.Model, data: pu.Dataset) -> float:
    """Percent of the test images that are misclassified."""
    measured = model.evaluate(
        data.x_test, data.y_test, batch_size=1000, verbose=0, return_dict=True
    )
    return 100 * (1 - measured["accuracy"])


def run(data: pu.Dataset, seed: int, epochs: int) -> tuple[float, float, float]:
    """Returns the error dense, the error pruned, and the share of weights left."""
    keras.utils.set_random_seed(seed)
    dense = lenet()
    fit(dense, data, epochs)
    pruned = kp.prune_weights(dense, 0)  # a copy
    prune = functools.partial(kp.prune_weights, scope="global", layers=LAYERS)
    fit(pruned, data, epochs, [kp.GradualPruning(1 - KEPT, end=0.5, prune=prune)])
    table = kp.summary(pruned)
    left = 1 - table["zeros"].sum() / table["weights"].sum()
    return test_error(dense, data), test_error(pruned, data), left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of each of the two trainings")
    arguments = parser.parse_args()
    data = pu.load_dataset("mnist")
    errors: dict[str, list[float]] = {"dense": [], "pruned": []}
    for seed in range(arguments.seeds):
        start = time.perf_counter()
        dense, pruned, left = run(data, seed, arguments.epochs)
        errors["dense"].append(dense)
        errors["pruned"].append(pruned)
        print(
            f"seed {seed}: test error dense {dense:.2f} %, pruned {pruned:.2f} % with {left:.2%} "
            f"of the weights left, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    print(f"\n{'test error':14}{'mean':>8}{'lowest':>9}{'highest':>9}   Han et al. 2015")
    for (name, values), paper in zip(errors.items(), (1.64, 1.59), strict=True):
        mean, low, high = statistics.fmean(values), min(values), max(values)
        print(f"{name:14}{mean:7.2f} %{low:7.2f} %{high:7.2f} %{paper:10.2f} %")


if __name__ == "__main__":
    main()
