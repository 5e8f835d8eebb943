"""What `shrink` takes off the networks of keras.applications, half of their units pruned.

    python benchmarks/applications.py [name ...]

The weights are random and scaled so that signals neither fade nor grow, BatchNormalization
has the statistics of a batch, and the images differ: the outputs then depend on every layer
and on the input ("variation": the largest difference between images, relative to the largest
output). The "difference" is that of the shrunken model's outputs from the pruned model's,
relative as well. So deep a random network magnifies rounding, so the same is done in float64:
what is wrong would stay there, what is rounding does not.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_pruning as kp  # noqa: E402

SIZES = {  # pixels of an image: small, but no smaller than the network allows
    "VGG16": 64,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "DenseNet121": 64,
    "InceptionV3": 96,
    "Xception": 96,
    "EfficientNetB0": 64,
    "ConvNeXtTiny": 64,
}
SPARSITY = 0.5
IMAGES = 8


def random_images(size: int, rng: np.random.Generator) -> np.ndarray:
    """Blotches of random colour and contrast, in 0 to 255."""
    blotches = rng.uniform(-1, 1, (IMAGES, 4, 4, 3)) * rng.uniform(0.2, 1, (IMAGES, 1, 1, 3))
    blotches = blotches.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    noise = rng.uniform(-0.2, 0.2, blotches.shape)
    return np.clip(127.5 + 100 * (blotches + noise), 0, 255).astype(keras.config.floatx())


def randomize(model: keras.Model, rng: np.random.Generator) -> None:
    for variable in model.weights:
        name, shape = variable.name, variable.shape
        if "kernel" in name:
            fan_in = np.prod(shape[:-2] if "depthwise" in variable.path else shape[:-1])
            variable.assign(rng.normal(size=shape) * np.sqrt(2 / fan_in))
        elif name == "gamma":
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif name in ("bias", "beta"):
            variable.assign(rng.uniform(-0.1, 0.1, shape))


def take_statistics(model: keras.Model, images: np.ndarray) -> None:
    """Gives each BatchNormalization the mean and variance of this batch."""
    norms = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum, norm.usual_momentum = 0.0, norm.momentum
    model(images, training=True)
    for norm in norms:
        norm.momentum = norm.usual_momentum


def prune_and_shrink(name: str, dtype: str) -> dict[str, float]:
    keras.backend.clear_session()
    keras.config.set_floatx(dtype)
    rng = np.random.default_rng(0)
    size = SIZES[name]
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    images = random_images(size, rng)
    randomize(model, rng)
    pruned = kp.prune_units(model, SPARSITY)
    take_statistics(pruned, images)
    start = time.perf_counter()
    shrunken = kp.shrink(pruned)
    seconds = time.perf_counter() - start
    expected, found = (keras.ops.convert_to_numpy(m(images)) for m in (pruned, shrunken))
    largest = np.abs(expected).max()
    return {
        "before": pruned.count_params(),
        "after": shrunken.count_params(),
        "seconds": seconds,
        "difference": np.abs(found - expected).max() / largest,
        "variation": np.ptp(expected, axis=0).max() / largest,
    }


def row(name: str) -> str:
    single, double = (prune_and_shrink(name, dtype) for dtype in ("float32", "float64"))
    return (
        f"| {name} | {single['before']:,} | {single['after']:,} "
        f"| {1 - single['after'] / single['before']:.1%} | {single['seconds']:.1f} "
        f"| {single['difference']:.1e} | {double['difference']:.1e} | {single['variation']:.2g} |"
    )


def main() -> None:
    titles = ("network", "parameters", "shrunken", "removed", "seconds", "difference")
    print("| " + " | ".join((*titles, "in float64", "variation")) + " |")
    print("|---" * 8 + "|", flush=True)
    for name in sys.argv[1:] or SIZES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
