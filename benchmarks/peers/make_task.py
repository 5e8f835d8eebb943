"""Trains the networks that all tools prune, and writes them with the images as arrays.

    TFDS_DATA_DIR=... python benchmarks/peers/make_task.py task.npz [--networks 2]

Dense networks of the tutorial, 784-1000-1000-500-200-10 without biases, five epochs on MNIST, a
seed each; and one convolutional network with BatchNormalization and a residual connection, three
epochs on 15,000 images. --quick trains one dense network for one epoch on 2,000 images.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pruning_utils as pu  # noqa: E402  # mutes TensorFlow before Keras

import keras  # noqa: E402  # isort: skip
import numpy as np  # noqa: E402  # isort: skip
from keras import layers as kl  # noqa: E402  # isort: skip


def convolutional_network() -> keras.Model:
    """Pooling in the place of strides, whose borders Keras and PyTorch pad differently."""

    def convolution(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
        x = kl.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        return kl.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((28, 28), dtype="uint8")
    x = kl.Reshape((28, 28, 1))(kl.Rescaling(1 / 255)(inputs))
    x = kl.MaxPooling2D()(kl.ReLU()(convolution(x, 16)))
    x = kl.MaxPooling2D()(kl.ReLU()(convolution(x, 32)))
    inner = kl.ReLU()(convolution(x, 64))
    x = kl.ReLU()(kl.Add()([x, convolution(inner, 32)]))
    return keras.Model(inputs, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


def first(data: pu.Dataset, count: int) -> pu.Dataset:
    return dataclasses.replace(data, x_train=data.x_train[:count], y_train=data.y_train[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    data = pu.load_dataset("mnist")
    if options.quick:
        data, options.networks = first(data, 2_000), 1
    arrays = {name: getattr(data, name) for name in ("x_train", "y_train", "x_test", "y_test")}
    accuracies = []
    for seed in range(options.networks):
        network = pu.build_dense_network(data.image_shape, seed=seed)
        epochs = 1 if options.quick else 5
        trained = pu.train(network, data, epochs=epochs, seed=seed, verbose=False)
        accuracies.append(f"{trained.accuracy:.2%}")
        for place, kernel in enumerate(network.get_weights()):
            arrays[f"dense/{seed}/{place}"] = kernel
    keras.utils.set_random_seed(0)
    network = convolutional_network()
    how = {"batch_size": 128, "learning_rate": 5e-3, "verbose": False}
    trained = pu.train(network, first(data, 15_000), epochs=1 if options.quick else 3, **how)
    for place, array in enumerate(network.get_weights()):
        arrays[f"convolutional/0/{place:02}"] = array
    beside = options.task.with_suffix(".part")
    with beside.open("wb") as file:
        np.savez(file, **arrays)
    beside.replace(options.task)
    print(f"{data.title}: accuracy of the dense networks {', '.join(accuracies)}")
    print(f"of the convolutional network {trained.accuracy:.2%}")


if __name__ == "__main__":
    main()
