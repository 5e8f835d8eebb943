"""What pruning half of the units and `shrink` take off the kinds of models that people build.

    python benchmarks/families.py [name ...]

The families of keras.applications, models of keras-hub (pip install keras-hub) built small from
their configurations, and networks as keras.io teaches them, written as functions and as classes.
No weights are downloaded: they are random, scaled so that signals neither fade nor grow.
"difference" is the largest difference of the shrunken model's outputs from the pruned model's,
relative to the largest output, in float32; "seconds" is processor time of both functions. "blocks
left" leaves tables of embeddings out, which no unit of a block touches.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers as kl  # noqa: E402
from keras import ops  # noqa: E402

import keras_pruning as kp  # noqa: E402

LENGTH, SIZE, TOKENS = 12, 32, 50
SPARSITY = 0.5


class Block(kl.Layer):
    """A transformer block; `causal` looks back alone."""

    def __init__(self, causal: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.causal = causal
        self.attention = kl.MultiHeadAttention(4, SIZE // 4)
        self.feed_forward = keras.Sequential([kl.Dense(64, "gelu"), kl.Dense(SIZE)])
        self.first, self.second = kl.LayerNormalization(), kl.LayerNormalization()

    def call(self, x: Any) -> Any:
        x = self.first(x + self.attention(x, x, use_causal_mask=self.causal))
        return self.second(x + self.feed_forward(x))


class Positions(kl.Layer):
    """The sum of an embedding of tokens and one of places."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tokens, self.places = kl.Embedding(TOKENS, SIZE), kl.Embedding(LENGTH, SIZE)

    def call(self, x: Any) -> Any:
        return self.tokens(x) + self.places(ops.arange(LENGTH))


class Patches(kl.Layer):
    """Pieces of an image, projected, and a place each."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.project = kl.Dense(SIZE)
        self.places = self.add_weight(shape=(1, 16, SIZE), name="places")

    def call(self, images: Any) -> Any:
        pieces = ops.image.extract_patches(images, 4)
        return self.project(ops.reshape(pieces, (-1, 16, 48))) + self.places


class TextClassifier(keras.Model):
    """A model without a graph, as a class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.positions, self.block, self.answer = Positions(), Block(), kl.Dense(3)

    def call(self, tokens: Any) -> Any:
        return self.answer(ops.mean(self.block(self.positions(tokens)), axis=1))


def tokens() -> Any:
    return keras.Input((LENGTH,), dtype="int32")


class MaskedBlock(Block):
    """With a mask made of the sizes of its input, as keras.io's mini-GPT has it."""

    def call(self, x: Any) -> Any:
        batch, steps, _ = ops.shape(x)
        mask = ops.arange(steps)[:, None] >= ops.arange(steps)
        mask = ops.broadcast_to(mask, (batch, steps, steps))
        x = self.first(x + self.attention(x, x, attention_mask=mask))
        return self.second(x + self.feed_forward(x))


def block(x: Any, causal: bool = False) -> Any:
    x = kl.LayerNormalization()(x + kl.MultiHeadAttention(4, 8)(x, x, use_causal_mask=causal))
    return kl.LayerNormalization()(x + kl.Dense(SIZE)(kl.Dense(64, "gelu")(x)))


def model_of(inputs: Any, x: Any, classes: int = 3) -> keras.Model:
    return keras.Model(inputs, kl.Dense(classes)(x))


def text_class() -> keras.Model:
    model = TextClassifier()
    model(np.zeros((1, LENGTH), "int32"))
    return model


def text_function() -> keras.Model:
    x = tokens()
    return model_of(x, kl.GlobalAveragePooling1D()(block(Positions()(x))))


def vit_class() -> keras.Model:
    x = keras.Input((16, 16, 3))
    return model_of(x, kl.Flatten()(Block()(Block()(Patches()(x)))))


def gpt_class() -> keras.Model:
    x = tokens()
    return model_of(x, Block(causal=True)(Block(causal=True)(Positions()(x))), TOKENS)


def gpt_masks() -> keras.Model:
    x = tokens()
    return model_of(x, MaskedBlock()(MaskedBlock()(Positions()(x))), TOKENS)


def gpt_function() -> keras.Model:
    x = tokens()
    return model_of(x, block(block(Positions()(x), causal=True), causal=True), TOKENS)


def seq2seq() -> keras.Model:
    source, target = tokens(), tokens()
    memory, x = block(Positions()(source)), block(Positions()(target), causal=True)
    x = kl.LayerNormalization()(x + kl.MultiHeadAttention(4, 8)(x, memory))
    x = kl.LayerNormalization()(x + kl.Dense(SIZE)(kl.Dense(64, "relu")(x)))
    return model_of([source, target], x, TOKENS)


def swiglu_gqa() -> keras.Model:
    inputs = tokens()
    x = kl.Embedding(TOKENS, SIZE)(inputs)
    for _ in range(2):
        h = kl.RMSNormalization()(x)
        x = x + kl.GroupQueryAttention(8, 4, 2)(h, h, use_causal_mask=True)
        h = kl.RMSNormalization()(x)
        gate, up = (kl.EinsumDense("btd,df->btf", (None, 64))(h) for _ in range(2))
        x = x + kl.EinsumDense("btf,fd->btd", (None, SIZE))(ops.silu(gate) * up)
    return model_of(inputs, x, TOKENS)


def mixer() -> keras.Model:
    inputs = keras.Input((16, SIZE))
    y = kl.Permute((2, 1))(kl.LayerNormalization()(inputs))
    x = inputs + kl.Permute((2, 1))(kl.Dense(16)(kl.Dense(24, "gelu")(y)))
    x = x + kl.Dense(SIZE)(kl.Dense(64, "gelu")(kl.LayerNormalization()(x)))
    return model_of(inputs, kl.GlobalAveragePooling1D()(x))


def conformer() -> keras.Model:
    inputs = keras.Input((16, SIZE))
    x = inputs + 0.5 * kl.Dense(SIZE)(kl.Dense(64, "silu")(kl.LayerNormalization()(inputs)))
    h = kl.LayerNormalization()(x)
    x = x + kl.MultiHeadAttention(4, 8)(h, h)
    a, b = ops.split(kl.Conv1D(2 * SIZE, 1)(kl.LayerNormalization()(x)), 2, axis=-1)
    h = kl.DepthwiseConv1D(5, padding="same")(a * ops.sigmoid(b))
    x = x + kl.Conv1D(SIZE, 1)(ops.silu(kl.BatchNormalization()(h)))
    return model_of(inputs, kl.GlobalAveragePooling1D()(kl.LayerNormalization()(x)))


def recurrent(layer: Callable[..., Any]) -> keras.Model:
    inputs = tokens()
    x = layer(24, return_sequences=True)(kl.Embedding(TOKENS, 16, mask_zero=True)(inputs))
    return model_of(inputs, layer(16)(x))


def bidirectional() -> keras.Model:
    inputs = keras.Input((LENGTH, 8))
    x = kl.Bidirectional(kl.LSTM(24, return_sequences=True))(inputs)
    return model_of(inputs, kl.Bidirectional(kl.GRU(16))(x))


def encoder_decoder() -> keras.Model:
    source, target = tokens(), tokens()
    table = kl.Embedding(TOKENS, 16)
    _, *states = kl.LSTM(24, return_state=True)(table(source))
    x = kl.LSTM(24, return_sequences=True)(table(target), initial_state=states)
    return model_of([source, target], x, TOKENS)


def u_net() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    conv = [kl.Conv2D(n, 3, padding="same", activation="relu") for n in (16, 32, 16)]
    first = conv[0](inputs)
    x = kl.Conv2DTranspose(16, 2, strides=2)(conv[1](kl.MaxPooling2D()(first)))
    return keras.Model(inputs, kl.Conv2D(2, 1)(conv[2](kl.Concatenate()([x, first]))))


def autoencoder() -> keras.Model:
    inputs = keras.Input((16, 16, 1))
    x = kl.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    x = kl.Dense(20)(kl.Flatten()(x))
    x = kl.Reshape((8, 8, 16))(kl.Dense(1024, "relu")(x))
    return keras.Model(inputs, kl.Conv2DTranspose(1, 3, strides=2, padding="same")(x))


def pixel_shuffle() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(32, 3, padding="same", activation="relu")(inputs)
    x = kl.Conv2D(64, 3, padding="same")(x)
    x = ops.transpose(ops.reshape(x, (-1, 8, 8, 2, 2, 16)), (0, 1, 3, 2, 4, 5))
    return keras.Model(inputs, kl.Conv2D(3, 3)(ops.reshape(x, (-1, 16, 16, 16))))


def siamese() -> keras.Model:
    a, b = keras.Input((16,)), keras.Input((16,))
    twin = keras.Sequential([keras.Input((16,)), kl.Dense(32, "relu"), kl.Dense(16, "relu")])
    return keras.Model([a, b], kl.Dense(1)(ops.absolute(twin(a) - twin(b))))


OWN: dict[str, Callable[[], keras.Model]] = {
    "text classifier (class)": text_class,
    "text classifier": text_function,
    "vision transformer (classes)": vit_class,
    "mini-GPT (classes)": gpt_class,
    "mini-GPT (masks of its sizes)": gpt_masks,
    "mini-GPT": gpt_function,
    "seq2seq transformer": seq2seq,
    "SwiGLU + grouped queries": swiglu_gqa,
    "MLP-Mixer": mixer,
    "Conformer": conformer,
    "LSTM": lambda: recurrent(kl.LSTM),
    "GRU": lambda: recurrent(kl.GRU),
    "bidirectional": bidirectional,
    "encoder-decoder LSTM": encoder_decoder,
    "U-Net": u_net,
    "autoencoder": autoencoder,
    "pixel shuffle": pixel_shuffle,
    "siamese": siamese,
}
IMAGE_SIZES = {  # pixels: small, but no smaller than the network allows
    "ConvNeXtTiny": 64,
    "DenseNet121": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "InceptionResNetV2": 96,
    "InceptionV3": 96,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "NASNetMobile": 224,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "VGG16": 64,
    "VGG19": 64,
    "Xception": 96,
}


def applications() -> dict[str, Callable[[], keras.Model]]:
    def build(name: str, size: int) -> keras.Model:
        options = {"weights": None, "input_shape": (size, size, 3), "classifier_activation": None}
        return getattr(keras.applications, name)(**options)

    named = {
        name: lambda name=name, size=size: build(name, size) for name, size in IMAGE_SIZES.items()
    }
    backbone = {"weights": None, "include_top": False, "input_shape": (64, 64, 3)}
    named["EfficientNetB0 without its head"] = lambda: keras.applications.EfficientNetB0(**backbone)
    return named


def keras_hub_models() -> dict[str, Callable[[], keras.Model]]:
    try:
        import keras_hub
    except ImportError:
        print("left out: keras-hub is not installed", file=sys.stderr)
        return {}
    models = keras_hub.models
    common = {"num_layers": 2, "hidden_dim": 32}
    text = common | {"vocabulary_size": TOKENS, "num_heads": 4, "intermediate_dim": 64}
    bounded = text | {"max_sequence_length": LENGTH}
    grouped = {"num_query_heads": 4, "num_key_value_heads": 2, "vocabulary_size": TOKENS}
    image = {"image_shape": (16, 16, 3), "patch_size": 4, "num_heads": 4, "mlp_dim": 64}
    whisper = {"num_mels": 8, "max_encoder_sequence_length": 12, "max_decoder_sequence_length": 12}
    resnet = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
        "image_shape": (32, 32, 3),
    }
    return {
        "BertBackbone": lambda: models.BertBackbone(**bounded),
        "BertTextClassifier": lambda: models.BertTextClassifier(
            models.BertBackbone(**bounded), num_classes=3, preprocessor=None
        ),
        "DistilBertBackbone": lambda: models.DistilBertBackbone(**bounded),
        "RobertaBackbone": lambda: models.RobertaBackbone(**bounded),
        "DebertaV3Backbone": lambda: models.DebertaV3Backbone(**bounded),
        "ViTBackbone": lambda: models.ViTBackbone(**common, **image),
        "GPT2Backbone": lambda: models.GPT2Backbone(**bounded),
        "GPT2CausalLM": lambda: models.GPT2CausalLM(
            models.GPT2Backbone(**bounded), preprocessor=None
        ),
        "GPT2Backbone, length known": lambda: of_known_length(models.GPT2Backbone(**bounded)),
        "GPT2CausalLM, length known": lambda: of_known_length(
            models.GPT2CausalLM(models.GPT2Backbone(**bounded), preprocessor=None)
        ),
        "GemmaBackbone": lambda: models.GemmaBackbone(
            **common, **grouped, intermediate_dim=128, head_dim=8
        ),
        "LlamaBackbone": lambda: models.LlamaBackbone(**common, **grouped, intermediate_dim=64),
        "MistralBackbone": lambda: models.MistralBackbone(
            **common, **grouped, intermediate_dim=64, sliding_window=8
        ),
        "WhisperBackbone": lambda: models.WhisperBackbone(**text, **whisper),
        "ResNetBackbone": lambda: models.ResNetBackbone(**resnet),
    }


def of_known_length(model: keras.Model) -> keras.Model:
    """A model whose causal masks need to know the length of its input."""

    def known(tensor: Any) -> Any:
        return keras.Input((LENGTH,), dtype=tensor.dtype, name=tensor.name)

    inputs = keras.tree.map_structure(known, model.input)
    return keras.Model(inputs, model(inputs))


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


def random_inputs(model: keras.Model, rng: np.random.Generator) -> Any:
    def random_like(tensor: Any) -> Any:
        shape = (4, *(size or LENGTH for size in tensor.shape[1:]))
        if "int" in str(tensor.dtype):
            mask = any(word in tensor.name for word in ("mask", "segment"))
            return rng.integers(1 if mask else 0, 2 if mask else TOKENS, shape)
        return rng.uniform(0, 255 if len(shape) == 4 else 1, shape).astype("float32")

    if not model.built or not getattr(model, "inputs", None):
        return rng.integers(0, TOKENS, (4, LENGTH))
    return keras.tree.map_structure(random_like, model.input)


def row(name: str, build: Callable[[], keras.Model]) -> str:
    keras.backend.clear_session()
    rng = np.random.default_rng(0)
    model = build()
    randomize(model, rng)
    inputs = random_inputs(model, rng)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The configuration of")
        pruned = kp.prune_units(model, SPARSITY)
        shrunken = kp.shrink(pruned)
    seconds = time.process_time() - start
    largest = 0.0
    results = [keras.tree.flatten(m(inputs, training=False)) for m in (pruned, shrunken)]
    for before, after in zip(*results, strict=True):
        ours, theirs = (keras.ops.convert_to_numpy(y) for y in (before, after))
        largest = max(largest, np.abs(ours - theirs).max() / np.abs(ours).max())
    before, after = model.count_params(), shrunken.count_params()
    tables = sum(int(np.prod(v.shape)) for v in model.weights if "embeddings" in v.name)
    kept = "yes" if type(shrunken) is type(model) else "functional"
    return (
        f"| {name} | {before:,} | {after:,} | {after / before:.0%} "
        f"| {(after - tables) / (before - tables):.0%} | {largest:.0e} "
        f"| {seconds:.1f} | {kept} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    builders = OWN | applications() | keras_hub_models()
    unknown = [name for name in names if name not in builders]
    if unknown:
        parser.error(f"unknown: {unknown}. There are: {list(builders)}")
    titles = (
        "model",
        "parameters",
        "shrunken",
        "left",
        "blocks left",
        "difference",
        "seconds",
        "same class",
    )
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|", flush=True)
    for name in names or builders:
        print(row(name, builders[name]), flush=True)


if __name__ == "__main__":
    main()
