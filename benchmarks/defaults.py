"""What the defaults of `prune_weights` and `prune_units` leave of networks on the digits.

    python benchmarks/defaults.py [--seeds 3]

Accuracy on the 360 test images of scikit-learn's digits: of the trained network, right after
pruning with the defaults, and after four more epochs with `KeepZeros`; the median over the
seeds. "parameters" are what `shrink` leaves of the pruned network (`prune_units` only: zeros
among weights take nothing off). Then Xception with its initial weights, pruned at 0.8: how
many kernels lose all their weights, and how much the answers still differ between images.

This file takes public names alone, so an older library can be put under it: check that one
out beside this one, and

    git worktree add ../before COMMIT
    PYTHONPATH=../before python benchmarks/defaults.py

The first line, on the error output, is where the library came from.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Behind PYTHONPATH, so that another checkout can stand in.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers as kl  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import keras_pruning as kp  # noqa: E402

TEST_IMAGES = 360
BATCH = 64
EPOCHS_AFTER = 4
TOKENS, TOKEN_SIZE, HEADS, BLOCKS = 16, 48, 4, 2  # of the ViT
CHANNELS = (32, 48, 64, 64)
XCEPTION_PIXELS, XCEPTION_IMAGES = 96, 8
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def digits() -> Data:
    """Returns images of shape (n, 8, 8, 1) in 0 to 1 and labels, for training and for test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = images[order].reshape(-1, 8, 8, 1).astype("float32") / 16, labels[order]
    return x[:-TEST_IMAGES], y[:-TEST_IMAGES], x[-TEST_IMAGES:], y[-TEST_IMAGES:]


def vision_transformer() -> keras.Model:
    """A pre-norm ViT (Dosovitskiy et al. 2020) on patches of 2 x 2 pixels."""
    inputs = keras.Input((8, 8, 1))
    x = kl.Conv2D(TOKEN_SIZE, 2, strides=2, name="patches")(inputs)
    x = kl.Reshape((TOKENS, TOKEN_SIZE))(x)
    numbers = keras.ops.zeros_like(x[..., 0], dtype="int32") + np.arange(TOKENS)
    x += kl.Embedding(TOKENS, TOKEN_SIZE, name="places")(numbers)
    for i in range(BLOCKS):
        normed = kl.LayerNormalization()(x)
        x += kl.MultiHeadAttention(HEADS, TOKEN_SIZE // HEADS, name=f"attention_{i}")(
            normed, normed
        )
        hidden = kl.LayerNormalization()(x)
        hidden = kl.Dense(2 * TOKEN_SIZE, activation="gelu", name=f"ffn_{i}_wide")(hidden)
        x += kl.Dense(TOKEN_SIZE, name=f"ffn_{i}_back")(hidden)
    x = kl.GlobalAveragePooling1D()(kl.LayerNormalization()(x))
    return keras.Model(inputs, kl.Dense(10, name="head")(x))


def mobilenet() -> keras.Model:
    """Depthwise and pointwise convolutions in turns (Howard et al. 2017)."""
    inputs = keras.Input((8, 8, 1))
    x = normed(kl.Conv2D(CHANNELS[0], 3, padding="same", use_bias=False)(inputs))
    for channels in CHANNELS:
        x = normed(kl.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
        x = normed(kl.Conv2D(channels, 1, use_bias=False)(x))
    return keras.Model(inputs, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


def separable() -> keras.Model:
    """Separable convolutions, as Xception has them (Chollet 2017)."""
    inputs = keras.Input((8, 8, 1))
    x = normed(kl.Conv2D(CHANNELS[0], 3, padding="same", use_bias=False)(inputs))
    for channels in CHANNELS:
        x = normed(kl.SeparableConv2D(channels, 3, padding="same", use_bias=False)(x))
    return keras.Model(inputs, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


def normed(x: keras.KerasTensor) -> keras.KerasTensor:
    # Keras's momentum of 0.99 takes longer than this training lasts.
    return kl.ReLU()(kl.BatchNormalization(momentum=0.9)(x))


def train(model: keras.Model, data: Data, epochs: int) -> keras.Model:
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, epochs * 23)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*data[:2], epochs=epochs, batch_size=BATCH, verbose=0)
    return model


def accuracy(model: keras.Model, data: Data) -> float:
    answers = keras.ops.convert_to_numpy(model(data[2])).argmax(axis=1)
    return float((answers == data[3]).mean())


def after_training(pruned: keras.Model, data: Data) -> float:
    pruned.compile(keras.optimizers.Adam(1e-3), pruned.loss, metrics=["accuracy"])
    keep = kp.KeepZeros()
    pruned.fit(*data[:2], epochs=EPOCHS_AFTER, batch_size=BATCH, verbose=0, callbacks=[keep])
    return accuracy(pruned, data)


def digits_rows(data: Data, seeds: int) -> None:
    titles = ("network", "pruned", "share", "trained", "one-shot", "after four", "parameters")
    print(f"{titles[0]:20}" + "".join(f"{t:>12}" for t in titles[1:]) + f"{'seconds':>10}")
    units = [(kp.prune_units, "units", share) for share in (0.25, 0.5)]
    weights = [(kp.prune_weights, "weights", 0.8)]
    networks: dict[Callable[[], keras.Model], tuple[int, list]] = {
        vision_transformer: (40, units),
        mobilenet: (10, weights),
        separable: (10, weights),
    }
    for build, (epochs, prunings) in networks.items():
        results: dict[tuple[str, float], list[tuple[float, ...]]] = {}
        for seed in range(seeds):
            keras.utils.clear_session()
            keras.utils.set_random_seed(seed)
            model = train(build(), data, epochs)
            trained = accuracy(model, data)
            for prune, what, share in prunings:
                keras.utils.set_random_seed(seed)
                start = time.perf_counter()
                pruned = prune(model, share)
                size = kp.shrink(pruned).count_params() if what == "units" else 0
                seconds = time.perf_counter() - start
                one_shot = accuracy(pruned, data)
                figures = (trained, one_shot, after_training(pruned, data), size, seconds)
                results.setdefault((what, share), []).append(figures)
        for (what, share), rows in results.items():
            *shares, size, seconds = (statistics.median(r) for r in zip(*rows, strict=True))
            print(
                f"{build.__name__:20}{what:>12}{share:12.0%}"
                + "".join(f"{s:12.1%}" for s in shares)
                + f"{f'{size:,.0f}' if size else '-':>12}{seconds:10.1f}",
                flush=True,
            )


def xception() -> None:
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    shape = (XCEPTION_PIXELS, XCEPTION_PIXELS, 3)
    model = keras.applications.Xception(weights=None, input_shape=shape, classifier_activation=None)
    start = time.perf_counter()
    pruned = kp.prune_weights(model, 0.8)
    seconds = time.perf_counter() - start
    kernels = [
        (old, keras.ops.convert_to_numpy(new))
        for old, new in zip(model.weights, pruned.weights, strict=True)
        if len(old.shape) > 1
    ]
    depthwise = [new for old, new in kernels if old.name == "depthwise_kernel"]
    emptied = [new for _, new in kernels if not new.any()]
    images = np.random.default_rng(0).uniform(-1, 1, (XCEPTION_IMAGES, *shape)).astype("float32")
    print(f"\nXception at 80%, {seconds:.1f} s: {len(emptied)} of {len(kernels)} kernels emptied")
    print(f"depthwise kernels emptied: {sum(not k.any() for k in depthwise)} of {len(depthwise)}")
    for name, network in (("dense", model), ("pruned", pruned)):
        answers = keras.ops.convert_to_numpy(network(images))
        spread = np.ptp(answers, axis=0).max() / max(np.abs(answers).max(), 1e-30)
        constant = "constant" if np.ptp(answers, axis=0).max() == 0 else "differs between images"
        print(f"output of the {name} network: {constant} (by {spread:.2g} of its largest value)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    print(f"library: {Path(kp.__file__).parent}", file=sys.stderr)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about layers left out or emptied
        digits_rows(digits(), seeds)
        xception()
    print(f"\n{time.perf_counter() - start:.0f} seconds in all")


if __name__ == "__main__":
    main()
