"""Helper module of the pruning tutorial: data sets, the dense network, its training.

The pruning is the library's, passed on; its two rules stand in `keras_pruning/pruning/masks.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported
import keras

# fmt: off
from keras_pruning import (
    GradualPruning, KeepZeros, SparseModel, compare, prune_units, prune_weights, reconstruct,
    sensitivity_sweep, shrink, sparsity_sweep, suggest_sparsities, summary, unit_mask, weight_mask,
)
from keras_pruning.plots import (
    draw_network_pruning, plot_accuracy_panels, plot_class_accuracy, plot_images, plot_matrix,
    plot_savings, plot_sensitivity, plot_speed, plot_units_as_images, plot_weight_histograms,
)
# fmt: on

_DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "Digits (scikit-learn, 8×8)"}
_DIGITS_SIZES = {"train_size": 1_400, "test_size": 397}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one data set, split into a training and a test part.

    Images are uint8 of shape `(number, height, width)`; a label is a position in `class_names`.
    """

    name: str
    title: str
    x_train: np.ndarray = field(repr=False)
    y_train: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, `(height, width)`."""
        return self.x_train.shape[1:]


class DataUnavailableError(RuntimeError):
    """A data set is damaged, or neither prepared nor to be downloaded; the message says more."""


def load_dataset(
    name: str, *, train_size: int | None = None, test_size: int | None = None
) -> Dataset:
    """Returns "mnist", "fashion_mnist" or "digits", downloaded first if need be.

    The first two are read with TensorFlow Datasets from the folder that the environment variable
    `TFDS_DATA_DIR` names, or else from `~/tensorflow_datasets`; once prepared there, they need no
    network. The digits come with scikit-learn. A size keeps only so many images, the first ones.
    """
    if name not in [*_DATA]:
        raise ValueError(f"Unknown data set {name!r}. Known are {[*_DATA]}.")
    data = _load_digits() if name == "digits" else _load_with_tfds(name)
    train_size = _check_size("train_size", train_size, data.x_train, data.title)
    test_size = _check_size("test_size", test_size, data.x_test, data.title)
    sizes = ((train_size, "training"), (test_size, "test"))
    parts = " and ".join(f"{size:,} {part}" for size, part in sizes if size)
    return replace(
        data,
        title=f"{data.title}, first {parts} images" if parts else data.title,
        x_train=data.x_train[:train_size],
        y_train=data.y_train[:train_size],
        x_test=data.x_test[:test_size],
        y_test=data.y_test[:test_size],
    )


def load_datasets(
    names: Sequence[str], *, train_size: int | None = None, test_size: int | None = None
) -> list[Dataset]:
    """Returns data sets as `load_dataset` does, with the digits in the place of unavailable ones.

    The reason is printed. The digits come once, and whole where they are fewer than asked for.
    """
    known, names = [*_DATA], names if isinstance(names, str) else list(names)
    if isinstance(names, str) or not names or not all(name in known for name in names):
        raise ValueError(f"names must be a list with some of {known}, received {names!r}.")
    given = {"train_size": train_size, "test_size": test_size}
    sizes = {part: _whole(part, size) for part, size in given.items() if size is not None}
    few = {part: min(size, _DIGITS_SIZES[part]) for part, size in sizes.items()}
    datasets = {}
    for name in names:
        try:
            data = load_dataset(name, **(few if name == "digits" else sizes))
        except DataUnavailableError as error:
            print(f"{error}\nThe tutorial goes on with scikit-learn's digits instead.")
            data = load_dataset("digits", **few)
        datasets[data.name] = data
    return list(datasets.values())


def build_dense_network(
    input_shape: Sequence[int] = (28, 28),
    *,
    units: Sequence[int] = (1000, 1000, 500, 200),
    num_classes: int = 10,
    seed: int = 0,
) -> keras.Sequential:
    """Returns an untrained dense network for uint8 images, with ReLU and without biases.

    Without biases every parameter is a weight of a kernel, so that counting weights is counting
    parameters: 2,386,000 by default. The layers are `hidden_1`, `hidden_2`, ... and `logits`.
    """
    input_shape = [_whole("input_shape", size) for size in input_shape]
    widths = [_whole("units or num_classes", size) for size in (*units, num_classes)]
    if not input_shape or len(widths) == 1:
        raise ValueError("input_shape and units must hold one size or more, not none.")
    network = keras.Sequential([keras.Input(input_shape, dtype="uint8")])
    network.add(keras.layers.Rescaling(1 / 255, name="rescaling"))
    network.add(keras.layers.Flatten(name="flatten"))
    names = [*(f"hidden_{number}" for number in range(1, len(widths))), "logits"]
    seeds = np.random.SeedSequence(int(seed)).generate_state(len(names)) >> 1  # below 2**31
    for name, width, layer_seed in zip(names, widths, seeds, strict=True):
        activation = None if name == "logits" else "relu"
        start = keras.initializers.GlorotUniform(int(layer_seed))
        options = {"use_bias": False, "kernel_initializer": start, "name": name}
        network.add(keras.layers.Dense(width, activation, **options))
    return network


class TrainingResult(NamedTuple):
    """What `train` returns."""

    accuracy: float  # in [0, 1], of the test images
    loss: float  # their cross-entropy in nats
    epochs: int
    seconds: float  # of the training alone


def train(
    network: keras.Model,
    data: Dataset,
    *,
    epochs: int | None = None,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    verbose: bool = True,
) -> TrainingResult:
    """Trains a network that gives one logit a class, in place, and tests it.

    Adam minimises the cross-entropy, and a cosine takes the learning rate down to 0 (Loshchilov &
    Hutter 2017). Afterwards it is compiled with plain SGD, for a `fit` of your own. No `epochs` are
    5, or as many as 500 steps need where images are few. The seed fixes the order of the images.
    """
    _check_data(network, data)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a positive number, received {learning_rate!r}.")
    steps = math.ceil(len(data.x_train) / _whole("batch_size", batch_size))  # an epoch
    epochs = max(5, math.ceil(500 / steps)) if epochs is None else _whole("epochs", epochs)
    show = _line() if verbose else lambda text: None

    def after_epoch(epoch: int, logs: dict[str, float]) -> None:
        progress = f"epoch {epoch + 1}/{epochs}, loss {logs['loss']:.3f}"
        show(f"{data.title}: {progress}, accuracy {logs['accuracy']:.2%}")

    keras.utils.set_random_seed(seed)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(schedule), cross_entropy, metrics=["accuracy"])
    callbacks = [*callbacks, keras.callbacks.LambdaCallback(on_epoch_end=after_epoch)]
    start = time.perf_counter()
    network.fit(data.x_train, data.y_train, batch_size, epochs, verbose=0, callbacks=callbacks)
    seconds = time.perf_counter() - start
    # The schedule has ended at 0, and Adam's moments would triple the size of a saved file.
    network.compile(keras.optimizers.SGD(learning_rate), cross_entropy, metrics=["accuracy"])
    loss, accuracy = network.evaluate(data.x_test, data.y_test, batch_size=1_000, verbose=0)
    passes = f"{epochs} epoch{'s' if epochs > 1 else ''} in {seconds:.0f} s"
    show(f"{data.title}: test accuracy {accuracy:.2%} after {passes}\n")
    return TrainingResult(float(accuracy), float(loss), epochs, seconds)


def _line() -> Callable[[str], None]:
    """Returns what shows a text in the place of the one before, in a notebook or a terminal."""
    if "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel"):
        shown = sys.modules["IPython"].display.display({}, raw=True, display_id=True)
        return lambda text: shown.update({"text/plain": text.rstrip()}, raw=True)
    return lambda text: print(f"\r{text}", end="", flush=True)


def explore(network: keras.Model, data: Dataset, *, sparsity: float = 0.9) -> Any:
    """Returns the library's panel, with sliders that prune the network, for the test images."""
    from keras_pruning.plots.panel import explore as panel

    _check_data(network, data)
    given = (network, data.x_test, data.y_test, data.class_names)
    picture = Path(__file__).with_name("images") / "panel.png"
    return panel(*given, sparsity=sparsity, title=data.title, picture=picture)


def _load_with_tfds(name: str) -> Dataset:
    import tensorflow_datasets as tfds  # here, since it takes seconds

    title, builder_class = _DATA[name], tfds.builder_cls(name)
    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    directory = data_dir / name / str(builder_class.VERSION)
    is_prepared = os.path.exists(directory)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        class_names = builder.info.features["label"].names
        if not is_prepared:
            _check_reachable(builder_class.URL, "t10k-labels-idx1-ubyte.gz")  # the smallest file
            builder.download_and_prepare()
        builder = tfds.builder_from_directory(directory)
        if builder.info.features["label"].names != class_names:
            raise ValueError("other class names than expected")
        arrays: dict[str, Any] = {}
        for split in ("train", "test"):
            examples = builder.as_dataset(split=split, batch_size=-1)  # all in one batch
            images, labels = examples["image"].numpy(), examples["label"].numpy()
            size = builder.info.splits[split].num_examples
            if images.shape != (size, 28, 28, 1):
                raise ValueError(f"{len(images)} images of shape {images.shape[1:]}, not {size}")
            arrays |= {f"x_{split}": images[..., 0], f"y_{split}": labels}
    except (ImportError, MemoryError):  # no fault of the data
        raise
    except Exception as error:  # of the network, the disk, TFDS, TensorFlow: of almost any kind
        what = "is damaged or incomplete" if is_prepared else "could not be downloaded"
        reason = " ".join(str(error).rpartition("}} ")[-1].partition(" [Op:")[0].split())
        remedy = "Delete this folder" if is_prepared else "Connect to the internet"
        raise DataUnavailableError(
            f"{title} in {directory} {what} ({type(error).__name__}: {reason}). {remedy} and try "
            'again, or set TFDS_DATA_DIR to a folder with prepared data, or use "digits".'
        ) from error
    return Dataset(name, title, class_names=tuple(class_names), **arrays)


def _check_reachable(url: str, file: str, timeout_seconds: float = 3.0) -> None:
    """Fails in time where there is no network: TFDS would try again and again, for minutes."""
    import requests  # as TFDS does: same proxies, same certificates

    answers = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # of whatever kind: no answer
            answers.append(requests.head(url + file, timeout=timeout_seconds, allow_redirects=True))

    thread = threading.Thread(target=ask, daemon=True)  # the look-up of a name may hang in it
    thread.start()
    thread.join(timeout_seconds)
    if not answers or not answers[0].ok:
        raise ConnectionError(f"{url} cannot be reached")


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)  # of 17 grey levels
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    split = {**_DIGITS_SIZES, "stratify": labels, "random_state": 0}
    x_train, x_test, y_train, y_test = train_test_split(images, labels.astype(np.int64), **split)
    return Dataset("digits", _DATA["digits"], x_train, y_train, x_test, y_test, tuple("0123456789"))


def _check_size(argument: str, size: int | None, images: np.ndarray, title: str) -> int | None:
    if size is not None and _whole(argument, size) > len(images):
        raise ValueError(f"{title} has {len(images):,} images, so {argument} cannot be {size!r}.")
    return None if size == len(images) else size


def _whole(argument: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"{argument}: a positive whole number is needed, received {number!r}.")
    return int(number)


def _check_data(network: keras.Model, data: Dataset) -> None:
    train, test = (data.x_train, data.y_train, "training"), (data.x_test, data.y_test, "test")
    for x, y, part in (train, test):
        if not 0 < len(x) == len(y):
            raise ValueError(f"{data.title} has {len(x):,} {part} images and {len(y):,} labels.")
    shape = getattr(network, "input_shape", None)  # a model that was never called has none
    fitting = (data.image_shape, (*data.image_shape, 1))  # Keras appends the channel
    if isinstance(shape, tuple) and None not in shape[1:] and shape[1:] not in fitting:
        text = f"{data.title} has images of shape {data.image_shape}, but the network takes "
        raise ValueError(f"{text}{shape[1:]}: build it with that shape.")
