"""Makes index.html, the page that prunes in the browser: `python docs/page/make_page.py`.

It trains a dense network on MNIST, rounds its weights to float16, and writes them, test images and
training images into `template.html`, together with `style.css`, `network.js` and `page.js`. With
`--assemble` nothing is trained: the weights and images of the page that is there are kept.
"""

import argparse
import base64
import gzip
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER / "index.html"
PARTS = ("style.css", "network.js", "page.js")
UNITS = (300, 100)  # of the hidden layers: LeNet-300-100
EPOCHS = 30
BATCH_SIZE = 128
TEST_IMAGES = 1_000
CALIBRATION_IMAGES = 1_000  # of the training data, for the reconstruction
LINE = 100  # characters of base64

Arrays = Mapping[str, npt.NDArray[np.generic]]


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assemble", action="store_true", help="keep the weights and images")
    args = parser.parse_args()
    arrays = embedded(PAGE.read_text(encoding="utf-8")) if args.assemble else trained()
    PAGE.write_text(assemble(arrays), encoding="utf-8")
    print(f"{PAGE.name}: {PAGE.stat().st_size / 1e6:.2f} MB")


def trained() -> dict[str, npt.NDArray[np.generic]]:
    """Returns what the page holds: weights in float16, test images with labels, training images."""
    import keras

    (x, y), (x_test, y_test) = mnist("train"), mnist("test")
    model = train(x, y)
    for layer in model.layers:
        layer.set_weights([w.astype(np.float16).astype(np.float32) for w in layer.get_weights()])
    images = x_test.reshape(-1, 784).astype(np.float32) / 255
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    for name, part in (("10,000", slice(None)), ("first 1,000", slice(TEST_IMAGES))):
        accuracy = model.evaluate(images[part], y_test[part], verbose=0)[1]
        print(f"accuracy on the {name} test images, Keras {keras.__version__}: {accuracy:.1%}")
    weights = {
        f"{kind}_{number}": values.astype(np.float16)
        for number, layer in enumerate(model.layers, start=1)
        for kind, values in zip(("kernel", "bias"), layer.get_weights(), strict=True)
    }
    return weights | {
        "test_images": x_test[:TEST_IMAGES].reshape(-1, 784),
        "test_labels": y_test[:TEST_IMAGES].astype(np.uint8),
        "calibration_images": x[:CALIBRATION_IMAGES].reshape(-1, 784),
    }


def mnist(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Returns images `(number, 28, 28, 1)` and labels."""
    import tensorflow_datasets as tfds

    data = tfds.as_numpy(tfds.load("mnist", split=split, batch_size=-1))
    return data["image"], data["label"]


def train(x, y):
    """Returns a network trained on images shifted, turned and scaled a little, as hands do."""
    import keras
    import tensorflow as tf
    from keras import layers

    keras.utils.set_random_seed(0)
    vary = keras.Sequential(
        [
            layers.RandomTranslation(0.07, 0.07, fill_mode="constant"),
            layers.RandomRotation(0.03, fill_mode="constant"),  # of a full turn
            layers.RandomZoom(0.1, fill_mode="constant"),
        ]
    )

    def prepared(images, labels):
        images = vary(tf.cast(images, "float32"), training=True) / 255
        return tf.reshape(images, (-1, 784)), labels

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0).batch(BATCH_SIZE)
    hidden = [layers.Dense(units, activation="relu") for units in UNITS]
    output = layers.Dense(10, activation="softmax")
    model = keras.Sequential([keras.Input((784,)), *hidden, output])
    rate = keras.optimizers.schedules.CosineDecay(1e-3, EPOCHS * math.ceil(len(x) / BATCH_SIZE))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(data.map(prepared).prefetch(4), epochs=EPOCHS, verbose=2)
    return model


def assemble(arrays: Arrays) -> str:
    """Returns the page: the template with its parts and the arrays in their places."""
    page = (FOLDER / "template.html").read_text(encoding="utf-8")
    data = base64.b64encode(gzip.compress(b"".join(a.tobytes() for a in arrays.values()), mtime=0))
    lines = [data[i : i + LINE].decode() for i in range(0, len(data), LINE)]
    manifest = [
        {"name": name, "dtype": array.dtype.name, "shape": array.shape}
        for name, array in arrays.items()
    ]
    places = {part: (FOLDER / part).read_text(encoding="utf-8").strip() for part in PARTS}
    places["calibration"] = f"{len(arrays['calibration_images']):,}"
    places["manifest"] = json.dumps(manifest)
    places["data"] = "\n" + "\n".join(lines) + "\n"
    for place, text in places.items():
        mark = f"<!-- {place} -->"
        if page.count(mark) != 1:
            raise ValueError(
                f"template.html must hold {mark} once; it does {page.count(mark)} times"
            )
        page = page.replace(mark, text)
    return page


def embedded(page: str) -> dict[str, npt.NDArray[np.generic]]:
    """Returns the arrays that a page holds."""
    data = re.search(r'<script id="data"[^>]*>([^<]*)</script>', page)
    manifest = re.search(r'<script id="manifest"[^>]*>([^<]*)</script>', page)
    if data is None or manifest is None:
        raise ValueError(f"{PAGE.name} holds no data. Make it anew, without --assemble.")
    packed = gzip.decompress(base64.b64decode(data[1]))
    arrays, start = {}, 0
    for entry in json.loads(manifest[1]):
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        array = np.frombuffer(packed, dtype, math.prod(shape), start)
        arrays[entry["name"]] = array.reshape(shape)
        start += array.nbytes
    return arrays


if __name__ == "__main__":
    main()
