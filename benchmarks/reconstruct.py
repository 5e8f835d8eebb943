"""Accuracy back without labels: pruned, refitted, and pruned in steps; and what that takes.

    python benchmarks/reconstruct.py [--networks 3] [--kinds dense mobile] [--large]

Trains dense networks of the tutorial on MNIST and Fashion-MNIST, and small residual, mobile and
transformer networks, one a seed; prunes them and refits them on 2,000 training images without
labels. Prints medians over the networks of the accuracy on the test images, in percent, and the
time that refitting takes as a multiple of one epoch of training in the same run. --large refits a
ResNet50 of random weights for images of 64 pixels, and prints minutes and memory.
"""

import argparse
import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pruning_utils as pu  # noqa: E402  # mutes TensorFlow before Keras

import keras  # noqa: E402  # isort: skip
import keras_pruning as kp  # noqa: E402  # isort: skip
from keras import layers  # noqa: E402  # isort: skip

IMAGES = 2_000
TIMED = {"weights": (0.5, 0.8, 0.9, 0.95, 0.99), "units": (0.5, 0.8, 0.9)}
DENSE = {
    "mnist": {"weights": (0.8, 0.9, 0.95, 0.97, 0.99), "units": (0.8, 0.9, 0.95)},
    "fashion_mnist": {"weights": (0.8, 0.9, 0.95, 0.97, 0.99), "units": (0.8, 0.9, 0.95)},
}
OTHERS = {"weights": (0.5, 0.8, 0.9), "units": (0.25, 0.3, 0.5, 0.75, 0.9)}
PRUNE = {"weights": kp.prune_weights, "units": kp.prune_units}


def residual(inputs: keras.KerasTensor) -> keras.KerasTensor:
    """The notebook's residual network."""

    def convolution(x, filters, strides=1):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.ReLU()(convolution(inputs, 16, strides=2))
    x = layers.ReLU()(convolution(x, 32, strides=2))
    inner = layers.ReLU()(convolution(x, 32))
    x = layers.ReLU()(convolution(inner, 32) + x)
    return layers.GlobalAveragePooling2D()(x)


def mobile(inputs: keras.KerasTensor) -> keras.KerasTensor:
    """Inverted residual blocks of depthwise convolutions, as in MobileNetV2."""

    def convolution(x, layer):
        return layers.BatchNormalization(momentum=0.9)(layer(x))

    def block(x, filters, strides):
        wide = 4 * x.shape[-1]
        y = layers.ReLU(6)(convolution(x, layers.Conv2D(wide, 1, use_bias=False)))
        depthwise = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)
        y = layers.ReLU(6)(convolution(y, depthwise))
        y = convolution(y, layers.Conv2D(filters, 1, use_bias=False))
        return x + y if x.shape == y.shape else y

    first = layers.Conv2D(16, 3, 2, padding="same", use_bias=False)
    x = layers.ReLU(6)(convolution(inputs, first))
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 1)):
        x = block(x, filters, strides)
    return layers.GlobalAveragePooling2D()(x)


def transformer(inputs: keras.KerasTensor) -> keras.KerasTensor:
    """Two blocks of attention and a feed-forward part over 49 patches."""
    x = layers.Reshape((49, 64))(layers.Conv2D(64, 4, 4)(inputs))
    x = x + layers.Embedding(49, 64)(keras.ops.arange(49))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16)(y, y)
        y = layers.Dense(256, "gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(64)(y)
    return layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))


KINDS = {build.__name__: build for build in (residual, mobile, transformer)}


def trained(build: Callable[..., keras.KerasTensor], data: pu.Dataset, seed: int) -> keras.Model:
    """A network between the images and the classes, trained as the notebook's residual one."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(data.image_shape, dtype="uint8")
    x = layers.Reshape((*data.image_shape, 1))(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(10)(build(x)))
    some = dataclasses.replace(data, x_train=data.x_train[:15_000], y_train=data.y_train[:15_000])
    how = {"batch_size": 128, "learning_rate": 2e-3 if build is transformer else 5e-3}
    epochs = 2 if build is residual else 4
    pu.train(model, some, epochs=epochs, seed=seed, verbose=False, **how)
    return model


def dense(data: pu.Dataset, seed: int) -> keras.Model:
    model = pu.build_dense_network(data.image_shape, seed=seed)
    pu.train(model, data, seed=seed, verbose=False)
    return model


def accuracy(model: keras.Model, data: pu.Dataset) -> float:
    return 100 * model.evaluate(data.x_test, data.y_test, batch_size=1000, verbose=0)[1]


def measure(
    data: pu.Dataset,
    models: list[keras.Model],
    plan: dict[str, tuple[float, ...]],
    only: list[float] | None = None,
) -> None:
    x = data.x_train[:IMAGES]
    full = [accuracy(model, data) for model in models]
    print(f"\n{data.title}, dense {statistics.median(full):.1f} %")
    print(f"{'pruned':16}{'masked':>10}{'refitted':>10}{'in steps':>10}")
    for method, sparsities in plan.items():
        for sparsity in (s for s in sparsities if only is None or s in only):
            ways: dict[str, Callable[[keras.Model], keras.Model]] = {
                "masked": lambda m: PRUNE[method](m, sparsity),  # noqa: B023  # called at once
                "refitted": lambda m: kp.reconstruct(
                    PRUNE[method](m, sparsity),  # noqa: B023
                    m,
                    x,
                    progress=False,
                ),
                "in steps": lambda m: kp.prune_in_steps(
                    m,
                    x,
                    sparsity,  # noqa: B023
                    method=method,  # noqa: B023
                    progress=False,
                ),
            }
            medians = [
                statistics.median([accuracy(f(m), data) for m in models]) for f in ways.values()
            ]
            numbers = "".join(f"{number:10.1f}" for number in medians)
            print(f"{method:9}{sparsity:5.0%}  {numbers}", flush=True)


def times(data: pu.Dataset, model: keras.Model, repeats: int = 3) -> None:
    """Refitting and epochs of training in turns."""
    x = data.x_train[:IMAGES]
    pruned = {
        (method, sparsity): PRUNE[method](model, sparsity)
        for method, sparsities in TIMED.items()
        for sparsity in sparsities
    }
    trained = pu.build_dense_network(data.image_shape)
    ratios: dict[tuple[str, float], list[float]] = {case: [] for case in pruned}
    for repeat in range(repeats + 1):
        epoch = pu.train(trained, data, epochs=1, verbose=False).seconds
        for case, masked in pruned.items():
            start = time.perf_counter()
            kp.reconstruct(masked, model, x, progress=False)
            if repeat:  # the first is a warm-up
                ratios[case].append((time.perf_counter() - start) / epoch)
    print(f"\ntime of refitting on {IMAGES:,} images, in epochs of training (last: {epoch:.1f} s)")
    for (method, sparsity), found in ratios.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{method:9}{sparsity:5.0%}{statistics.median(found):10.2f}  ({spread})")


def scores(data: pu.Dataset, models: list[keras.Model]) -> None:
    """Weights ranked by magnitude or by what they carry, in a layer or in a unit."""
    x = data.x_train[:IMAGES]
    print(f"\n{data.title}, weights ranked by each score and scope: masked, refitted")
    ranked = {
        "magnitude": ["magnitude"] * len(models),
        "activation": [kp.activation_scores(model, x, method="weights") for model in models],
    }
    for name, of_models in ranked.items():
        for scope in ("layer", "unit"):
            cells = []
            for sparsity in (0.8, 0.95, 0.99):
                accuracies = []
                for model, score in zip(models, of_models, strict=True):
                    pruned = kp.prune_weights(model, sparsity, score=score, scope=scope)
                    both = pruned, kp.reconstruct(pruned, model, x, progress=False)
                    accuracies.append([accuracy(one, data) for one in both])
                masked, refitted = np.median(accuracies, axis=0)
                cells.append(f"{sparsity:8.0%}{masked:8.1f}{refitted:8.1f}")
            print(f"{name:12}{scope:6}{''.join(cells)}", flush=True)


def large() -> None:
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3))
    x = np.random.default_rng(0).random((256, 64, 64, 3), np.float32)
    for method in ("units", "weights"):
        masked = PRUNE[method](model, 0.5)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        _, report = kp.reconstruct(masked, model, x, batch_size=32, report=True, progress=False)
        minutes = (time.perf_counter() - start) / 60
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        done = (report["done"] == "refitted").sum()
        print(f"ResNet50, {method} 50 %: {done} layers in {minutes:.1f} min, {more:.2f} GiB more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=["dense", *KINDS], help="of networks")
    parser.add_argument("--sparsities", type=float, nargs="+", help="those alone")
    arguments = parser.parse_args()
    if arguments.large:
        return large()
    for name, plan in DENSE.items() if "dense" in arguments.kinds else ():
        data = pu.load_dataset(name)
        models = [dense(data, seed) for seed in range(arguments.networks)]
        if name == "mnist":
            times(data, models[0])
            scores(data, models)
        measure(data, models, plan, arguments.sparsities)
    data = pu.load_dataset("fashion_mnist")
    for build in (KINDS[name] for name in arguments.kinds if name != "dense"):
        models = [trained(build, data, seed) for seed in range(arguments.networks)]
        titled = dataclasses.replace(data, title=f"{data.title}, {build.__name__}")
        measure(titled, models, OTHERS, arguments.sparsities)


if __name__ == "__main__":
    main()
