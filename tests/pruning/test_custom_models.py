"""Models of custom blocks: each kernel pruned by its place in the model, or refused in words.

What is expected is computed with NumPy on the model's own variables. A variable of the model
and the one of the pruned copy are paired by walking the attributes of the two objects side by
side, so neither a name nor a function of the library has a say in it.
"""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_pruning as kp

BACKEND = keras.backend.backend()
# JAX compiles each operation of each model anew, seconds a model.
RANDOM_MODELS = int(
    os.environ.get("RANDOM_MODELS", {"tensorflow": 40, "torch": 30}.get(BACKEND, 6))
)
WIDTH, TOKENS, CLASSES = 6, 5, 3
REFUSALS = (ValueError, TypeError, NotImplementedError)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


# Custom layers and models


class Own(kl.Layer):
    """A layer with a matrix of its own, and a vector and a fixed table that are no kernels."""

    def __init__(self, matrix="kernel", units=WIDTH, **kwargs):
        super().__init__(**kwargs)
        self.matrix, self.units = matrix, units

    def build(self, shape):
        self.scale = self.add_weight(shape=(1, shape[-1]), initializer="ones", name="scale")
        self.table = self.add_weight(shape=(4, 5), trainable=False, name="table")
        self.own = self.add_weight(shape=(shape[-1], self.units), name=self.matrix)

    def call(self, x):
        return ops.matmul(x * self.scale, self.own)


class Block(kl.Layer):
    """Layers one after the other, described by dicts; Keras derives the config by itself."""

    def __init__(self, parts, residual=False, store="attributes", late=False, **kwargs):
        super().__init__(**kwargs)
        self.parts, self.residual, self.store, self.late = parts, residual, store, late
        if not late:
            self._make()

    def _make(self):
        made = [make_part(part) for part in self.parts]
        if self.store == "list":
            self.inner = made
        elif self.store == "dict":
            self.inner = {f"key_{i}": layer for i, layer in enumerate(made)}
        else:
            for i, layer in enumerate(made):
                setattr(self, f"part_{i}", layer)

    def _in_order(self):
        if self.store == "list":
            return list(self.inner)
        if self.store == "dict":
            return [self.inner[f"key_{i}"] for i in range(len(self.parts))]
        return [getattr(self, f"part_{i}") for i in range(len(self.parts))]

    def build(self, shape):
        if self.late:
            self._make()
        for part, layer in zip(self.parts, self._in_order(), strict=True):
            layer.build(*[shape] * (2 if part["kind"] == "MultiHeadAttention" else 1))
            shape = (*shape[:-1], part.get("units", WIDTH))

    def call(self, x):
        y = x
        for part, layer in zip(self.parts, self._in_order(), strict=True):
            y = run_part(part, layer, y)
        return x + y if self.residual else y


class ConfiguredBlock(Block):
    """The same with a `get_config` of its own, unknown to Keras's registry."""

    def get_config(self):
        own = {name: getattr(self, name) for name in ("residual", "store", "late")}
        return {**super().get_config(), "parts": [dict(p) for p in self.parts], **own}


@keras.saving.register_keras_serializable("tests")
class RegisteredBlock(ConfiguredBlock):
    """The same, registered."""


class Holder(kl.Layer):
    """Takes layers as arguments and has no `get_config`, so Keras cannot copy it."""

    def __init__(self, held, **kwargs):
        super().__init__(**kwargs)
        self.held = held

    def call(self, x):
        for layer in self.held:
            x = layer(x)
        return x


class Net(keras.Model):
    """A subclassed model of blocks without a config: Keras can hardly copy it."""

    def __init__(self, blocks, heads, head_first=True, again=False, **kwargs):
        super().__init__(**kwargs)
        self.blocks, self.heads, self.head_first, self.again = blocks, heads, head_first, again
        if head_first:
            self._make_heads()
        self.body = [make_part(block) for block in blocks]
        if not head_first:
            self._make_heads()

    def _make_heads(self):
        self.answers = [make_part(head) for head in self.heads]

    def call(self, x):
        for part, layer in zip(self.blocks, self.body, strict=True):
            x = run_part(part, layer, x)
        if self.again:  # the first block is shared by two places
            x = run_part(self.blocks[0], self.body[0], x)
        if not self.heads:
            return x
        x = ops.mean(x, axis=1)
        pairs = zip(self.heads, self.answers, strict=True)
        answers = [run_part(part, layer, x) for part, layer in pairs]
        return answers[0] if len(answers) == 1 else answers


class ConfiguredNet(Net):
    """The same with a `get_config` of its own, unknown to Keras's registry."""

    def get_config(self):
        names = ("blocks", "heads", "head_first", "again")
        return {"name": self.name, **{n: plain(getattr(self, n)) for n in names}}


@keras.saving.register_keras_serializable("tests")
class RegisteredNet(ConfiguredNet):
    """The same, registered."""


class Wrapped(keras.Model):
    """A functional model behind a class that hands its graph to Keras, with its own config."""

    def __init__(self, blocks, heads, name=None):
        inputs = keras.Input((TOKENS, WIDTH))
        super().__init__(inputs, functional_outputs(inputs, blocks, heads)[0], name=name)
        self.spec = (plain(blocks), plain(heads))

    def get_config(self):
        return {"blocks": self.spec[0], "heads": self.spec[1], "name": self.name}


def plain(value):
    """Without the wrappers that Keras puts around lists and dicts that a layer holds."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def make_part(part):
    kind, options = part["kind"], {}
    if part.get("name") is not None:
        options["name"] = part["name"]
    if kind in ("Block", "ConfiguredBlock", "RegisteredBlock"):
        inner = {key: part[key] for key in ("parts", "residual", "store", "late")}
        return globals()[kind](**inner, **options)
    if kind == "Holder":
        return Holder([make_part(p) for p in part["parts"]], **options)
    if kind in ("ConfiguredNet", "RegisteredNet"):
        return globals()[kind](part["blocks"], [], **options)
    units = part.get("units", WIDTH)
    return {
        "Own": lambda: Own(part.get("matrix"), units, **options),
        "Dense": lambda: kl.Dense(units, part.get("activation"), **options),
        "Conv1D": lambda: kl.Conv1D(units, 3, padding="same", **options),
        "DepthwiseConv1D": lambda: kl.DepthwiseConv1D(3, padding="same", **options),
        "SeparableConv1D": lambda: kl.SeparableConv1D(units, 3, padding="same", **options),
        "EinsumDense": lambda: kl.EinsumDense("abc,cd->abd", (None, units), **options),
        "GRU": lambda: kl.GRU(units, return_sequences=True, **options),
        "LayerNormalization": lambda: kl.LayerNormalization(**options),
        "MultiHeadAttention": lambda: kl.MultiHeadAttention(2, WIDTH // 2, **options),
    }[kind]()


def run_part(part, layer, x):
    return layer(x, x) if part["kind"] == "MultiHeadAttention" else layer(x)


def functional_outputs(inputs, blocks, heads, again=False):
    """Returns the outputs and the layers that were made for the heads."""
    layers = [make_part(block) for block in blocks]
    x = inputs
    for part, layer in [*zip(blocks, layers, strict=True), *([(blocks[0], layers[0])] * again)]:
        x = run_part(part, layer, x)
    x = kl.GlobalAveragePooling1D()(x)
    made = [make_part(head) for head in heads]
    outputs = [run_part(head, layer, x) for head, layer in zip(heads, made, strict=True)]
    return (outputs[0] if len(outputs) == 1 else outputs) if outputs else x, made


# Random models


class RandomModel:
    """A model of random nested blocks: `model`, the kernels of its heads, what to expect."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        keras.utils.set_random_seed(seed)
        self.naming = self.pick(["own", "equal", "none"])
        self.numbers = 0
        self.may_be_refused = self.coin(1 / 12)  # it then has a layer that Keras cannot copy
        kind = self.pick(["sequential", "functional", "functional", "wrapped", "subclassed"] * 2)
        self.shows_graph = kind != "subclassed"
        blocks = [self.block(2) for _ in range(int(self.rng.integers(1, 3)))]
        if self.shows_graph and self.coin(0.1):
            nested = self.pick(["ConfiguredNet", "RegisteredNet"])
            blocks.append({"kind": nested, "blocks": [self.block(1)], "name": self.name()})
        if self.may_be_refused:
            held = {"kind": "Holder", "parts": [self.part()], "name": self.name()}
            blocks.insert(0, held)
        heads = [self.head() for _ in range(self.pick([1, 1, 1, 2, 0]))]
        if not heads:  # then the model ends with a sum that goes past each kernel
            blocks.append(self.block(1) | {"residual": True, "late": False})
        if kind != "subclassed" and heads:
            heads = [head | {"name": f"answer_{i}"} for i, head in enumerate(heads)]
        self.headless = not heads
        again = kind != "wrapped" and not self.headless and self.coin(0.3)
        self.model, layers = self.build(kind, blocks, heads, again)
        self.heads = [part for layer in layers for part in last_dense(layer)]
        if self.coin(0.3):  # names that Keras makes start anew: a copy's are others
            keras.utils.clear_session()
            if self.coin():
                kl.Dense(2), kl.Dense(2), Block([])
        randomize(self.model, self.rng, ties=self.coin(0.3))

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def coin(self, probability=0.5):
        return self.rng.random() < probability

    def name(self):
        self.numbers += 1
        return {"own": f"own_{self.numbers}", "equal": "fc", "none": None}[self.naming]

    def part(self):
        kinds = ["Dense"] * 4 + ["Conv1D"] * 2 + ["EinsumDense", "Own", "LayerNormalization"]
        rare = ["MultiHeadAttention", "SeparableConv1D", "DepthwiseConv1D", "GRU"]
        part = {"kind": self.pick(kinds if self.coin(0.85) else rare), "name": self.name()}
        if part["kind"] == "Own":
            part["matrix"] = self.pick(["kernel", "matrix", "w"])
        return part

    def block(self, depth):
        kinds = ["Block", "ConfiguredBlock", "RegisteredBlock"]
        parts = []
        for _ in range(int(self.rng.integers(1, 4))):
            if depth > 1 and self.coin(0.4):
                parts.append(self.block(depth - 1))
            elif self.coin(0.3):
                parts.append({"kind": "Dense", "units": 2 * WIDTH, "name": self.name()})
                parts.append({"kind": "Dense", "units": WIDTH, "name": self.name()})
            else:
                parts.append(self.part())
        if all(part["kind"] == "LayerNormalization" for part in parts):
            parts.append({"kind": "Dense", "name": self.name()})
        return {
            "kind": self.pick(kinds),
            "parts": parts,
            "residual": self.coin(),
            "store": self.pick(["attributes", "list", "dict"]),
            "late": self.coin(0.2),
            "name": None,
        }

    def head(self):
        dense = {"kind": "Dense", "units": CLASSES, "name": self.name()}
        if self.coin(0.7):
            return dense
        norm = {"kind": "LayerNormalization", "name": None}
        inner = {"parts": [norm, dense], "residual": False, "store": "list", "late": False}
        return {"kind": "ConfiguredBlock", "name": None, **inner}

    def build(self, kind, blocks, heads, again):
        if kind == "subclassed":
            net = self.pick([Net, ConfiguredNet, ConfiguredNet, RegisteredNet])
            self.may_be_refused |= net is Net
            model = net(blocks, heads, head_first=self.coin(0.7), again=again)
            model(np.zeros((1, TOKENS, WIDTH), "float32"))
            return model, model.answers
        if self.naming == "equal":  # which Keras forbids among the layers of a graph alone
            blocks = [b | {"name": f"block_{i}"} for i, b in enumerate(blocks)]
        if kind == "wrapped":
            model = Wrapped(blocks, heads)
            return model, [model.get_layer(head["name"]) for head in heads]
        inputs = keras.Input((TOKENS, WIDTH))
        attention = any(block["kind"] == "MultiHeadAttention" for block in blocks)
        if kind == "sequential" and len(heads) < 2 and not again and not attention:
            made = [make_part(head) for head in heads]
            body = [make_part(block) for block in blocks]
            layers = [inputs, *body, kl.GlobalAveragePooling1D(), *made]
            return keras.Sequential(layers), made
        if self.coin(0.3):  # the first block in a model of its own
            inner_inputs = keras.Input((TOKENS, WIDTH))
            first = make_part(blocks[0])
            inner = keras.Model(inner_inputs, first(inner_inputs), name="inner")
            x = inner(inner(inputs)) if again else inner(inputs)
            outputs, made = functional_outputs(x, blocks[1:], heads) if blocks[1:] else (None, [])
            if outputs is not None:
                return keras.Model(inputs, outputs), made
        outputs, made = functional_outputs(inputs, blocks, heads, again)
        return keras.Model(inputs, outputs), made


def last_dense(layer):
    """The Dense layer at the end of a head."""
    return [layer] if isinstance(layer, kl.Dense) else [layer._in_order()[-1]]


def randomize(model, rng, ties=False):
    for variable in model.weights:
        values = rng.normal(size=variable.shape)
        if "seed" in variable.name:
            continue
        variable.assign(values.round(1) if ties else values)


# The oracle


HOLDERS = (kl.Layer, keras.Variable, list, tuple, dict)
PLACES = ("_layers", "_trainable_variables", "_non_trainable_variables")
NO_PLACES = ("nodes", "optimizer", "metrics", "loss_tracker", "_tracker", "_self_")


def side_by_side(a, b, seen=None):
    """Yields the pairs of layers and of variables at the same place in two objects."""
    seen = set() if seen is None else seen
    if id(a) in seen:
        return
    seen.add(id(a))
    # An older Keras wraps a list or dict in a class of TensorFlow's in one of the two.
    assert type(a) is type(b) or isinstance(a, list) and isinstance(b, list) or isinstance(a, dict)
    if isinstance(a, (kl.Layer, keras.Variable)):
        yield a, b
    for one, other in zip(held_by(a), held_by(b), strict=True):
        yield from side_by_side(one, other, seen)


def held_by(holder):
    if isinstance(holder, kl.Layer):
        places = {k: v for k, v in vars(holder).items() if k in PLACES or not k.startswith("_")}
        values = [v for k, v in places.items() if not any(part in k for part in NO_PLACES)]
    elif isinstance(holder, dict):
        values = holder.values()
    else:
        values = holder if isinstance(holder, (list, tuple)) else []
    return [value for value in values if isinstance(value, HOLDERS)]


def is_hidden(layer):
    """Inputs, and the graph within a Sequential: users do not see their names."""
    return type(layer).__name__ in ("InputLayer", "Functional")


def layers_of(model):
    return [a for a, _ in side_by_side(model, model) if isinstance(a, kl.Layer)]


def kernels_of(layer):
    """The kernels of one layer, without those of layers inside it."""
    if isinstance(layer, Own):
        return [layer.own]
    if isinstance(layer, kl.GRU):
        return [layer.cell.kernel, layer.cell.recurrent_kernel]
    if isinstance(layer, kl.SeparableConv1D):
        return [layer.pointwise_kernel]
    return [layer.kernel] if isinstance(layer, (kl.Dense, kl.EinsumDense, kl.Conv1D)) else []


def spared_of(layer):
    if isinstance(layer, (kl.DepthwiseConv1D,)):
        return [layer.kernel]
    return [layer.depthwise_kernel] if isinstance(layer, kl.SeparableConv1D) else []


def rows_by_zeros(model, rows):
    """Returns the name that `summary` shows for each list of kernels.

    Each gets its own number of zeros, which tells the rows of the table apart.
    """
    before = [numpy(v).copy() for v in model.weights]
    rows = sorted(rows, key=lambda kernels: int(np.prod(kernels[0].shape)))
    for number, kernels in enumerate(rows, 1):
        for variable in kernels:
            values = numpy(variable).copy()
            values[values == 0] = 1
            variable.assign(values)
        flat = numpy(kernels[0]).copy().ravel()
        assert number < flat.size
        flat[:number] = 0
        kernels[0].assign(flat.reshape(kernels[0].shape))
    table = kp.summary(model)
    table = table[table["spared"] != "no matrix"]  # a vector is no kernel
    for variable, values in zip(model.weights, before, strict=True):
        variable.assign(values)
    assert sorted(table["zeros"]) == list(range(1, len(rows) + 1))
    assert table["layer"].is_unique
    name_of = dict(zip(table["zeros"], table["layer"], strict=True))
    order = {name: i for i, name in enumerate(table["layer"])}
    named = {name_of[number]: kernels for number, kernels in enumerate(rows, 1)}
    return dict(sorted(named.items(), key=lambda item: order[item[0]]))


def without_smallest(arrays, sparsity):
    """The arrays with the smallest of all their values together set to zero."""
    magnitudes = np.abs(np.concatenate([a.ravel() for a in arrays]))
    gone = np.argsort(magnitudes, kind="stable")[: round(sparsity * magnitudes.size)]
    keep = np.ones(magnitudes.size, bool)
    keep[gone] = False
    parts = np.split(keep, np.cumsum([a.size for a in arrays])[:-1])
    return [a * k.reshape(a.shape) for a, k in zip(arrays, parts, strict=True)]


def without_weak_units(layer, kernels, sparsity):
    """The kernels and the bias without the units of smallest norm, by their ids."""
    axis, gates = kernels[0].ndim - 1, 1
    if isinstance(layer, kl.EinsumDense):  # the first axis that it makes
        inputs, letters, outputs = layer.equation.replace("->", ",").split(",")
        axis = letters.index(next(a for a in outputs if a in letters and a not in inputs))
    if isinstance(layer, kl.GRU):
        gates = 3
    bias = layer.cell.bias if gates > 1 else layer.bias
    parts = [np.moveaxis(numpy(kernel), axis, -1).astype("float64") for kernel in kernels]
    units = parts[0].shape[-1] // gates
    squares = sum((part**2).reshape(-1, gates, units).sum(axis=(0, 1)) for part in parts)
    count = min(round(sparsity * units), units - (sparsity < 1))
    keep = np.ones(units, bool)
    keep[np.argsort(np.sqrt(squares), kind="stable")[:count]] = False
    keep = np.tile(keep, gates)
    along = keep.reshape(-1, *[1] * (len(kernels[0].shape) - 1 - axis))
    found = {id(kernel): numpy(kernel) * along for kernel in kernels}
    if bias is None:
        return found
    of_bias = keep if gates > 1 else keep.reshape(-1, *[1] * (len(bias.shape) - 1))
    return found | {id(bias): numpy(bias) * of_bias}


def check_against(model, pruned, expected):
    """Each variable of the copy is as expected, or untouched; the model is as it was."""
    pairs = list(side_by_side(model, pruned))
    variables = [(a, b) for a, b in pairs if isinstance(a, keras.Variable)]
    assert {id(a) for a, _ in variables} >= {id(v) for v in model.weights}
    assert len({id(b) for _, b in variables}) == len(variables)
    assert not {id(a) for a, _ in variables} & {id(b) for _, b in variables}
    layers = [(a, b) for a, b in pairs if isinstance(a, kl.Layer) and not is_hidden(a)]
    assert [a.name for a, _ in layers] == [b.name for _, b in layers]
    for old, new in variables:
        if "seed" not in old.name:
            wanted = expected.get(id(old), numpy(old))
            np.testing.assert_array_equal(numpy(new), wanted, err_msg=new.path)


def prune_or_refuse(prune, random, **options):
    """Returns the pruned model, or `None` after an error of words where one is due."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return prune(random.model, **options)
    except REFUSALS as error:
        assert len(str(error).split()) > 5, repr(error)
        assert random.may_be_refused, error
        return None


def check_weights(random, rows, heads, spared):
    model, rng = random.model, random.rng
    names = [n for n, kernels in rows.items() if not {id(k) for k in kernels} & (heads | spared)]
    assert kp.prunable_layers(model) == names
    sparsity = float(rng.choice([0.1, 0.5, 0.8, 0.93]))
    scope = random.pick(["layer", "layer", "global"])
    if not names:
        with pytest.raises(ValueError, match="no layer to prune"):
            kp.prune_weights(model, sparsity)
        return
    kernels = [kernel for name in names for kernel in rows[name]]
    groups = [kernels] if scope == "global" else [[kernel] for kernel in kernels]
    expected = {}
    for group in groups:
        after = without_smallest([numpy(kernel) for kernel in group], sparsity)
        expected |= {id(k): values for k, values in zip(group, after, strict=True)}
    pruned = prune_or_refuse(kp.prune_weights, random, sparsity=sparsity, scope=scope)
    if pruned is not None:
        check_against(model, pruned, expected)


def check_units(random, rows, heads):
    model = random.model
    kinds = (kl.Dense, kl.Conv1D, kl.SeparableConv1D, kl.EinsumDense, kl.GRU)
    owners = {id(k): x for x in layers_of(model) if isinstance(x, kinds) for k in kernels_of(x)}
    hidden = [n for n, (kernel, *_) in rows.items() if id(kernel) in owners.keys() - heads]
    default = kp.prunable_layers(model, "units")
    assert set(default) <= set(hidden)
    # What ends a model without a head counts as its answers.
    may_be_named = default if random.headless else hidden
    names = default if random.coin() else may_be_named
    if not names:
        with pytest.raises(ValueError, match="prune"):
            kp.prune_units(model, 0.5)
        return
    sparsity = float(random.rng.choice([0.25, 0.5, 0.99]))
    expected = {}
    for name in names:
        expected |= without_weak_units(owners[id(rows[name][0])], rows[name], sparsity)
    layers = None if names == default else names
    options = {"sparsity": sparsity, "layers": layers, "coupled": False}
    pruned = prune_or_refuse(kp.prune_units, random, **options)
    if pruned is not None:
        check_against(model, pruned, expected)


@pytest.mark.parametrize("seed", range(RANDOM_MODELS))
def test_any_nest_of_custom_blocks_loses_its_smallest_weights_and_units_or_is_refused(seed):
    random = RandomModel(seed)
    layers = layers_of(random.model)
    spared = [[kernel] for layer in layers for kernel in spared_of(layer)]
    rows = rows_by_zeros(random.model, [k for k in map(kernels_of, layers) if k] + spared)
    heads = {id(kernel) for layer in random.heads for kernel in kernels_of(layer)}
    check_weights(random, rows, heads, {id(kernel) for (kernel,) in spared})
    check_units(random, rows, heads)


# Custom blocks


class Shortcut(kl.Layer):
    """Two layers without names, as most people write a block."""

    def __init__(self, units=12, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.fc = kl.Dense(units)

    def call(self, x):
        return ops.relu(self.fc(x))


class Looking(kl.Layer):
    """What it sends hangs on numbers, so nobody can follow its channels."""

    def call(self, x):
        return 2 * x if numpy(x).sum() > 0 else x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Twins(kl.Layer):
    """Two inner layers of one name."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = kl.Dense(8, name="fc")
        self.second = kl.Dense(8, name="fc")

    def call(self, x):
        return self.second(ops.relu(self.first(x)))


class TransformerBlock(kl.Layer):
    """As in the examples on keras.io."""

    def __init__(self, size=8, heads=2, ffn=16, **kwargs):
        super().__init__(**kwargs)
        self.att = kl.MultiHeadAttention(heads, size // heads)
        self.ffn = keras.Sequential([kl.Dense(ffn, activation="relu"), kl.Dense(size)])
        self.norms = [kl.LayerNormalization(), kl.LayerNormalization()]

    def call(self, x):
        x = self.norms[0](x + self.att(x, x))
        return self.norms[1](x + self.ffn(x))


def sequential(*layers, shape=(4,)):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape), *layers])


def zeros_of(variable):
    return int((numpy(variable) == 0).sum())


def halved(kernel):
    """A kernel's values with the smaller half set to zero, by NumPy."""
    return without_smallest([numpy(kernel)], 0.5)[0]


def column(model, name):
    return kp.summary(model).set_index("layer")[name].to_dict()


def compiled(model, **options):
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})
    return model


def arrays(*shape, classes=2, n=16):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, *shape)).astype("float32"), rng.normal(size=(n, classes))


def test_a_dense_layer_inside_a_custom_layer_is_pruned():
    model = sequential(Shortcut(12), kl.Dense(2), shape=(8,))
    pruned = kp.prune_weights(model, 0.5)
    np.testing.assert_array_equal(
        numpy(pruned.layers[0].fc.kernel), halved(model.layers[0].fc.kernel)
    )
    assert zeros_of(pruned.layers[0].fc.kernel) == 48


def test_a_dense_layer_inside_a_custom_layer_is_pruned_when_it_is_named():
    model = sequential(Shortcut(12), kl.Dense(2), shape=(8,))
    name = kp.summary(model)["layer"][0]
    by_weight = kp.prune_weights(model, 0.5, layers=[name])
    by_unit = kp.prune_units(model, layers={name: 0.5})
    assert zeros_of(by_weight.layers[0].fc.kernel) == 48
    assert int((numpy(by_unit.layers[0].fc.kernel) == 0).all(axis=0).sum()) == 6


def test_every_step_of_iterative_pruning_reaches_inside_a_custom_layer():
    model = compiled(sequential(Shortcut(12), kl.Dense(2), shape=(8,)))
    steps = kp.prune_iteratively(model, *arrays(8), sparsities=(0.5, 0.75), progress=False)
    assert [zeros_of(step.layers[0].fc.kernel) for step in steps["model"]] == [48, 72]


def test_gradual_pruning_reaches_inside_a_custom_layer():
    model = compiled(sequential(Shortcut(12), kl.Dense(2), shape=(8,)))
    model = kp.prune_weights(model, 0)
    gradual = kp.GradualPruning(0.75, end=3, every=1)
    model.fit(*arrays(8), batch_size=4, epochs=2, verbose=0, callbacks=[gradual])
    assert zeros_of(model.layers[0].fc.kernel) == 72


def test_a_sweep_measures_what_pruning_a_custom_layer_does():
    model = compiled(sequential(Shortcut(12), kl.Dense(2), shape=(8,)))
    x, y = arrays(8)
    table = kp.sparsity_sweep(model, x, y, methods=["weights"], sparsities=[0.75], progress=False)
    pruned = kp.prune_weights(model, 0.75)
    assert table["sparsity_measured"].tolist() == [0.75]
    np.testing.assert_allclose(table["loss"], pruned.evaluate(x, y, verbose=0), rtol=1e-5)


def test_a_keras_io_transformer_block_is_pruned_in_each_of_its_kernels():
    inputs = keras.Input((5, 8))
    x = kl.GlobalAveragePooling1D()(TransformerBlock()(inputs))
    model = keras.Model(inputs, kl.Dense(2)(x))
    pruned = kp.prune_weights(model, 0.5)
    kernels = [v for v in model.layers[1].weights if v.name == "kernel"]
    assert len(kernels) == 6
    for old, new in zip(model.weights, pruned.weights, strict=True):
        inside = any(old is kernel for kernel in kernels)
        np.testing.assert_array_equal(numpy(new), halved(old) if inside else numpy(old))


def test_two_inner_layers_of_one_name_get_masks_of_their_own():
    model = sequential(Twins(name="block"), kl.Dense(2))
    pruned = kp.prune_weights(model, 0.5)
    for part in ("first", "second"):
        old, new = (getattr(m.layers[0], part).kernel for m in (model, pruned))
        np.testing.assert_array_equal(numpy(new), halved(old))


def test_two_layers_of_one_name_are_told_apart_by_number():
    model = sequential(Twins(name="block"), kl.Dense(2, name="logits"))
    assert kp.summary(model)["layer"].tolist() == ["block/fc#1", "block/fc#2", "logits"]
    assert column(kp.prune_weights(model, 0.5, layers=["block/fc#2"]), "zeros") == {
        "block/fc#1": 0,
        "block/fc#2": 32,
        "logits": 0,
    }


@pytest.mark.parametrize("layers", [["block/fc"], {"block/fc": 0.5}])
def test_a_name_that_fits_two_layers_is_refused_with_both(layers):
    model = sequential(Twins(name="block"), kl.Dense(2))
    sparsity = None if isinstance(layers, dict) else 0.5
    for prune in (kp.prune_weights, kp.prune_units):
        with pytest.raises(ValueError, match="block/fc#1.*block/fc#2"):
            prune(model, sparsity, layers=layers)


def test_masks_land_on_the_right_layer_after_clear_session():
    model = sequential(kl.Dense(6), Block([{"kind": "Dense"}, {"kind": "Dense"}]), kl.Dense(2))
    keras.utils.clear_session()
    Block([{"kind": "Dense"}])  # takes the name that the copy's layer would have had
    pruned = kp.prune_weights(model, 0.5)
    kernels = [0, 2, 4]
    for i, (old, new) in enumerate(zip(model.weights, pruned.weights, strict=True)):
        np.testing.assert_array_equal(numpy(new), halved(old) if i in kernels else numpy(old))


def test_a_copy_keeps_the_names_of_its_layers():
    model = sequential(Shortcut(), TransformerLess(), kl.Dense(2))
    pruned = kp.prune_weights(model, 0.5)
    assert kp.summary(pruned)["layer"].tolist() == kp.summary(model)["layer"].tolist()


class TransformerLess(kl.Layer):
    """Makes its layers when it is built, without names."""

    def build(self, shape):
        self.parts = [kl.Dense(6), kl.Dense(4)]
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def call(self, x):
        return self.parts[1](self.parts[0](x))


# Layers named by the layers themselves


def two_layers():
    return sequential(kl.Dense(8, name="first"), kl.Dense(8, name="second"), kl.Dense(2))


@pytest.mark.parametrize(
    "layers", [lambda m: m.layers[0], lambda m: [m.layers[0]], lambda m: {m.layers[0]: 0.5}]
)
@pytest.mark.parametrize("prune", [kp.prune_weights, kp.prune_units])
def test_layers_may_be_given_as_they_are(prune, layers):
    model = two_layers()
    chosen = layers(model)
    pruned = prune(model, None if isinstance(chosen, dict) else 0.5, layers=chosen)
    assert [zeros_of(layer.kernel) for layer in pruned.layers] == [16, 0, 0]


def test_names_and_layers_may_be_mixed():
    model = two_layers()
    pruned = kp.prune_weights(model, layers={"first": 0.25, model.layers[1]: 0.75})
    assert [zeros_of(layer.kernel) for layer in pruned.layers] == [8, 48, 0]


def test_an_inner_layer_of_a_custom_layer_may_be_given():
    model = sequential(Twins(), kl.Dense(2))
    pruned = kp.prune_weights(model, 0.5, layers=model.layers[0].second)
    assert zeros_of(pruned.layers[0].first.kernel) == 0
    assert zeros_of(pruned.layers[0].second.kernel) == 32


def test_a_layer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="first"):
        kp.prune_weights(two_layers(), 0.5, layers=[two_layers().layers[0]])


# Heads


class HeadFirst(keras.Model):
    """Its head is made before the layer that feeds it."""

    def __init__(self, classes=4, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes
        self.head = kl.Dense(classes)
        self.hidden = kl.Dense(8, activation="relu")

    def call(self, x):
        return self.head(self.hidden(x))


class TwoHeads(keras.Model):
    """One head made first, one last."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one = kl.Dense(2)
        self.hidden = kl.Dense(8, activation="relu")
        self.two = kl.Dense(3)

    def call(self, x):
        x = self.hidden(x)
        return {"one": self.one(x), "two": self.two(x)}


class Traced(HeadFirst):
    """Its call is compiled by TensorFlow, so what happens within cannot be followed."""

    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def call(self, x):
            return self.head(self.hidden(x))


class Random(HeadFirst):
    """Answers otherwise each time."""

    def call(self, x):
        return self.head(self.hidden(x)) + float(np.random.default_rng().normal())


class Fails(HeadFirst):
    """Takes the inputs of its user alone."""

    def call(self, x):
        if not is_symbolic(x) and (numpy(x) != 1).any():
            raise RuntimeError("the inputs are not normalised")
        return self.head(self.hidden(x))


def is_symbolic(x):
    try:
        numpy(x)
    except Exception:  # of each backend's own kind
        return True
    return False


def called(model, inputs=4):
    keras.utils.set_random_seed(0)
    model(np.ones((2, inputs), "float32"))
    return model


class Counts(kl.Layer):
    """Counts its calls in a weight, and follows the mean of what it hears."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.mean = self.add_weight(shape=shape[-1:], initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign(self.calls + 1)
        self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x, axis=0))
        return x - self.mean


class HasStates(HeadFirst):
    """Has states that its calls change, and takes itself to be in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.counts, self.norm = Counts(), kl.BatchNormalization()

    def call(self, x, training=True):
        return self.head(self.counts(self.norm(self.hidden(x), training=training)))


@pytest.mark.parametrize("as_block", [False, True])
def test_states_that_a_call_changes_are_as_before_pruning(as_block):
    model = called(HasStates())
    if as_block:
        model = keras.Sequential([keras.Input((4,)), model, kl.Dense(2)])
    before = [numpy(weight).copy() for weight in model.weights]
    kp.prune_weights(model, 0.5)
    for weight, values in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), values)


def test_a_call_of_the_users_own_stays_on_its_layer():
    model = called(HeadFirst())
    plain = model.hidden.call
    model.hidden.call = own = lambda x: 2 * plain(x)
    kp.prunable_layers(model)
    assert model.hidden.call is own


def test_a_head_made_first_is_spared_and_the_hidden_layer_pruned():
    model = called(HeadFirst())
    pruned = kp.prune_weights(model, 0.5)
    np.testing.assert_array_equal(numpy(pruned.hidden.kernel), halved(model.hidden.kernel))
    assert zeros_of(pruned.head.kernel) == 0


def test_no_class_is_taken_away_where_the_head_is_made_first():
    model = called(HeadFirst())
    pruned = kp.prune_units(model, 0.5)
    assert int((numpy(pruned.hidden.kernel) == 0).all(axis=0).sum()) == 4
    assert zeros_of(pruned.head.kernel) == 0


def test_a_head_made_first_cannot_be_named_for_units():
    model = called(HeadFirst())
    with pytest.raises(ValueError, match="output"):
        kp.prune_units(model, 0.5, layers=model.head)


def test_of_two_heads_both_are_spared():
    model = called(TwoHeads())
    pruned = kp.prune_weights(model, 0.5)
    zeros = [zeros_of(getattr(pruned, name).kernel) for name in ("one", "hidden", "two")]
    assert zeros == [0, 16, 0]


def test_the_output_column_shows_the_heads_wherever_they_were_made():
    assert kp.summary(called(HeadFirst()))["output"].tolist() == [True, False]
    assert kp.summary(called(TwoHeads()))["output"].tolist() == [True, False, True]


@pytest.mark.parametrize("kind", [Traced, Random, Fails])
def test_where_the_head_cannot_be_known_the_default_asks_for_layers(kind):
    if kind is Traced and BACKEND != "tensorflow":
        pytest.skip("tf.function is TensorFlow's")
    model = called(kind())
    with pytest.raises(ValueError, match="layers="):
        kp.prune_weights(model, 0.5)
    assert True not in kp.summary(model)["output"].tolist()  # nor is any called the output
    pruned = kp.prune_weights(model, 0.5, layers=model.hidden)
    assert [zeros_of(pruned.hidden.kernel), zeros_of(pruned.head.kernel)] == [16, 0]


class OwnHead(keras.Model):
    """Ends with a matrix of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = Own("kernel", 3)
        self.hidden = kl.Dense(8)

    def call(self, x):
        return self.head(self.hidden(x))


@pytest.mark.parametrize("matrix", ["kernel", "w"])
def test_before_a_custom_head_the_last_dense_layer_is_pruned(matrix):
    model = sequential(kl.Dense(6), Own(matrix, 3))
    pruned = kp.prune_weights(model, 0.5)
    assert [zeros_of(pruned.layers[0].kernel), zeros_of(pruned.layers[1].own)] == [12, 0]


def test_a_subclassed_model_with_a_custom_head_keeps_it_whole():
    pruned = kp.prune_weights(called(OwnHead()), 0.5)
    assert [zeros_of(pruned.hidden.kernel), zeros_of(pruned.head.own)] == [16, 0]


def transformer(blocks=2, head=True):
    """A pre-norm transformer: a residual stream passes by each of its layers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    x = kl.Embedding(20, 16, name="embedding")(inputs)
    for i in range(blocks):
        normed = kl.LayerNormalization()(x)
        x += kl.MultiHeadAttention(2, 8, name=f"attention_{i}")(normed, normed)
        hidden = kl.Dense(32, activation="relu", name=f"wide_{i}")(kl.LayerNormalization()(x))
        x += kl.Dense(16, name=f"back_{i}")(hidden)
    x = kl.LayerNormalization()(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(x) if head else x)


def test_a_headless_transformer_is_pruned_everywhere():
    model = transformer(head=False)
    table = kp.summary(kp.prune_weights(model, 0.75))
    assert table["weights"].tolist() == [320, *[256] * 4, 512, 512, *[256] * 4, 512, 512]
    assert table["zeros"].tolist() == [0.75 * n for n in table["weights"]]


def test_of_a_transformer_with_a_head_the_head_alone_is_spared():
    zeros = column(kp.prune_weights(transformer(), 0.75), "sparsity")
    assert zeros.pop("head") == 0
    assert set(zeros.values()) == {0.75}


def test_a_headless_transformer_block_of_the_users_own_is_pruned_everywhere():
    model = sequential(kl.Dense(8), TransformerBlock(), TransformerBlock(), shape=(5, 8))
    assert set(column(kp.prune_weights(model, 0.75), "sparsity").values()) == {0.75}


# A custom layer's own kernels


def test_a_custom_layers_own_matrix_is_pruned():
    model = sequential(Own("kernel", 8, name="mine"), kl.Dense(6, name="fc"), kl.Dense(2))
    pruned = kp.prune_weights(model, 0.5)
    for old, new in zip(model.weights, pruned.weights, strict=True):
        is_kernel = old is model.layers[0].own or old is model.layers[1].kernel
        np.testing.assert_array_equal(numpy(new), halved(old) if is_kernel else numpy(old))


def test_a_custom_layers_own_matrix_stands_in_the_summary_without_units():
    model = sequential(Own("matrix", 8, name="mine"), kl.Dense(2, name="logits"))
    row = kp.summary(model).set_index("layer").loc["mine"]
    assert (row["weights"], row["shape"], row["type"]) == (32, (4, 8), "Own")
    assert row[["units", "zero_units", "unit_sparsity"]].isna().all()


def test_zeros_in_a_custom_layers_own_matrix_are_kept_in_training():
    model = compiled(sequential(Own("matrix", 8), kl.Dense(2)))
    pruned = kp.prune_weights(model, 0.5)
    pruned.fit(*arrays(4), epochs=2, verbose=0, callbacks=[kp.KeepZeros()])
    was, now = (numpy(m.layers[0].own) for m in (model, pruned))
    assert not now[halved(model.layers[0].own) == 0].any()
    assert zeros_of(pruned.layers[0].own) == 16
    assert (was != now).any()


class Cell(kl.Layer):
    """A recurrent cell of the user's own."""

    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.units), name="w")
        self.u = self.add_weight(shape=(self.units, self.units), name="u")

    def call(self, x, states):
        state = ops.tanh(ops.matmul(x, self.w) + ops.matmul(states[0], self.u))
        return state, [state]


def test_the_matrices_of_a_custom_recurrent_cell_are_pruned_each_by_itself():
    model = sequential(kl.RNN(Cell(), name="rnn"), kl.Dense(2, name="logits"), shape=(5, 4))
    pruned = kp.prune_weights(model, 0.5)
    for old, new in zip(model.weights[:2], pruned.weights[:2], strict=True):
        np.testing.assert_array_equal(numpy(new), halved(old))
    assert column(pruned, "sparsity") == {"rnn": 0.5, "logits": 0}


def test_a_model_with_a_custom_recurrent_cell_is_swept():
    model = compiled(sequential(kl.RNN(Cell()), kl.Dense(2), shape=(5, 4)))
    table = kp.sparsity_sweep(
        model, *arrays(5, 4), methods=["weights"], sparsities=[0, 0.5], progress=False
    )
    assert table["sparsity_measured"].tolist() == [0, 0.5]


def test_the_summary_of_a_model_without_kernels_is_an_empty_table():
    table = kp.summary(sequential(kl.ReLU(), kl.BatchNormalization()))
    assert len(table) == 0
    assert table.columns.tolist() == kp.summary(two_layers()).columns.tolist()


# Kernels ranked by themselves, depthwise kernels, what goes whole


@pytest.mark.parametrize("kind", [kl.LSTM, kl.GRU, kl.SimpleRNN])
def test_each_kernel_of_a_recurrent_layer_is_ranked_by_itself(kind):
    model = sequential(kind(10), kl.Dense(2), shape=(5, 4))
    pruned = kp.prune_weights(model, 0.75)
    for old, new in zip(model.weights[:2], pruned.weights[:2], strict=True):
        np.testing.assert_array_equal(numpy(new), without_smallest([numpy(old)], 0.75)[0])


def separable_network():
    layers = [kl.SeparableConv2D(8, 3, name="sep"), kl.GlobalAveragePooling2D()]
    return sequential(*layers, kl.Dense(2, name="logits"), shape=(6, 6, 4))


def test_the_pointwise_kernel_of_a_separable_convolution_is_ranked_by_itself():
    model = separable_network()
    old = model.layers[0].pointwise_kernel
    new = kp.prune_weights(model, 0.5).layers[0].pointwise_kernel
    np.testing.assert_array_equal(numpy(new), halved(old))


def test_depthwise_kernels_are_spared_by_default():
    model = sequential(
        kl.DepthwiseConv2D(3, name="depthwise"),
        kl.Conv2D(8, 1, name="pointwise"),
        kl.SeparableConv2D(8, 3, name="sep"),
        kl.GlobalAveragePooling2D(),
        kl.Dense(2),
        shape=(8, 8, 4),
    )
    pruned = kp.prune_weights(model, 0.5)
    assert zeros_of(pruned.layers[0].kernel) == zeros_of(pruned.layers[2].depthwise_kernel) == 0
    assert zeros_of(pruned.layers[1].kernel) == 16
    assert zeros_of(pruned.layers[2].pointwise_kernel) == 32
    assert kp.prunable_layers(model) == ["pointwise", "sep"]


def test_the_two_kernels_of_a_separable_convolution_have_rows_of_their_own():
    table = kp.summary(separable_network()).set_index("layer")
    assert table["weights"].to_dict() == {"sep/depthwise_kernel": 36, "sep": 32, "logits": 16}
    assert table["units"].dropna().to_dict() == {"sep": 8, "logits": 2}


def test_a_depthwise_kernel_is_pruned_when_it_is_named():
    model = sequential(kl.DepthwiseConv2D(3, name="d"), kl.Flatten(), kl.Dense(2), shape=(6, 6, 4))
    assert column(kp.prune_weights(model, 0.5, layers=["d"]), "zeros")["d"] == 18
    pruned = kp.prune_weights(separable_network(), 0.5, layers=["sep/depthwise_kernel"])
    assert zeros_of(pruned.layers[0].depthwise_kernel) == 18
    assert zeros_of(pruned.layers[0].pointwise_kernel) == 0


def test_xception_at_its_initialisation_keeps_every_kernel_and_tells_images_apart():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for _ in range(3):  # as in its blocks
        x = kl.ReLU()(kl.BatchNormalization()(kl.SeparableConv2D(16, 3, padding="same")(x)))
    model = keras.Model(inputs, kl.Dense(4)(kl.GlobalAveragePooling2D()(x)))
    pruned = kp.prune_weights(model, 0.8)
    assert all(numpy(v).any() for v in pruned.weights if "kernel" in v.name)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    assert np.ptp(numpy(pruned(images)), axis=0).all()


def test_a_layer_that_a_global_ranking_empties_is_named_in_a_warning():
    model = two_layers()
    model.layers[1].kernel.assign(1e-6 * numpy(model.layers[1].kernel))
    with pytest.warns(UserWarning, match="second"):
        pruned = kp.prune_weights(model, 0.7, scope="global")
    assert not numpy(pruned.layers[1].kernel).any()


def test_a_small_kernel_that_rounding_empties_is_named_in_a_warning():
    model = sequential(kl.Dense(10, name="tiny"), kl.Dense(20, name="wide"), kl.Dense(2))
    with pytest.warns(UserWarning, match="tiny") as caught:  # 39.6 of 40 weights
        pruned = kp.prune_weights(model, 0.99)
    assert zeros_of(pruned.layers[0].kernel) == 40
    assert not any("wide" in str(w.message) for w in caught)


def test_a_layer_of_which_one_kernel_of_two_is_emptied_is_named():
    model = keras.Sequential([keras.Input((3, 1)), kl.LSTM(4, name="lstm"), kl.Dense(2)])
    with pytest.warns(UserWarning, match=r"of a kernel of the layers \['lstm'\]"):
        pruned = kp.prune_weights(model, 0.97)
    assert [np.count_nonzero(kernel) for kernel in pruned.get_weights()[:2]] == [0, 2]


def test_nothing_is_said_where_every_kernel_keeps_a_weight_or_all_were_asked_for():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kp.prune_weights(two_layers(), 0.9)
        kp.prune_weights(two_layers(), 1)


# Units that can go


def ends_pooled(x):
    return kl.Dense(3, name="head")(kl.GlobalAveragePooling1D()(x))


def test_by_default_a_transformer_loses_only_units_and_heads_that_can_be_removed():
    inputs = keras.Input((5, 16))
    x = inputs
    for i in range(2):
        normed = kl.LayerNormalization()(x)
        x += kl.MultiHeadAttention(2, 8, name=f"heads_{i}")(normed, normed)
        hidden = kl.Dense(32, activation="relu", name=f"wide_{i}")(kl.LayerNormalization()(x))
        x += kl.Dense(16, name=f"back_{i}")(hidden)
    model = keras.Model(inputs, ends_pooled(kl.LayerNormalization()(x)))
    heads = [[f"heads_{i}/{part}" for part in ("query", "key", "value")] for i in range(2)]
    assert kp.prunable_layers(model, "units") == [*heads[0], "wide_0", *heads[1], "wide_1"]
    pruned = kp.prune_units(model, 0.5)
    assert column(pruned, "zero_units")["back_0"] == column(pruned, "zero_units")["back_1"] == 0
    small = kp.shrink(pruned)
    fewer = dict.fromkeys([*heads[0], *heads[1]], 1) | {"wide_0": 16, "wide_1": 16}
    assert column(small, "units") == column(model, "units") | fewer


@pytest.mark.parametrize(
    "follower",
    [
        lambda x: kl.LayerNormalization()(x),
        lambda x: kl.RNN(kl.LSTMCell(4), return_sequences=True)(x),
        lambda x: kl.Attention()([x, x]),
        lambda x: Looking()(x),
    ],
    ids=["LayerNormalization", "a loop of ones own", "Attention", "custom layer"],
)
def test_units_before_a_layer_that_cannot_lose_them_stay(follower):
    inputs = keras.Input((5, 4))
    x = kl.Dense(8, name="stays")(kl.Dense(8, activation="relu", name="goes")(inputs))
    model = keras.Model(inputs, ends_pooled(follower(x)))
    default = kp.prunable_layers(model, "units")
    small = kp.shrink(kp.prune_units(model, 0.5))
    assert "goes" in default and "stays" not in default
    assert column(small, "units")["goes"] == 4
    assert not any(n for n in column(small, "zero_units").values() if n is not None and n == n)


def test_units_that_shrink_cannot_remove_are_pruned_when_they_are_named():
    inputs = keras.Input((5, 4))
    x = kl.LayerNormalization()(kl.Dense(8, name="stays")(inputs))
    model = keras.Model(inputs, ends_pooled(x))
    assert column(kp.prune_units(model, 0.5, layers=["stays"]), "zero_units")["stays"] == 4


# Models that were refused without need


def test_a_layer_that_a_model_never_uses_is_left_out():
    class Unused(HeadFirst):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.never = kl.Dense(3)

    model = called(Unused())
    assert len(kp.summary(model)) == 2
    pruned = kp.prune_weights(model, 0.5)
    assert [zeros_of(pruned.hidden.kernel), zeros_of(pruned.head.kernel)] == [16, 0]


def lambda_loss(model):
    return compiled(model, loss=lambda y, p: ops.mean(ops.square(y - p)))


def with_functions(**options):
    return sequential(kl.Dense(8, name="first", **options), kl.Dense(2, name="last"))


@pytest.mark.parametrize(
    "build",
    [
        lambda: lambda_loss(two_layers()),
        lambda: with_functions(activation=lambda x: ops.maximum(x, 0.1 * x)),
        lambda: with_functions(kernel_initializer=lambda shape, dtype: ops.ones(shape, dtype)),
        lambda: with_functions(kernel_regularizer=lambda w: 0.01 * ops.sum(ops.square(w))),
        lambda: compiled(with_functions(activation=lambda x: 2 * x)),
    ],
    ids=["loss", "activation", "initializer", "regularizer", "compiled activation"],
)
def test_a_model_with_a_function_that_is_not_registered_is_pruned(build):
    try:
        model = build()
    except ValueError as error:  # Keras 3.10 takes no plain function as a regularizer
        pytest.skip(str(error))
    randomize(model, np.random.default_rng(0))
    x, _ = arrays(4)
    pruned = kp.prune_weights(model, 0.5)
    np.testing.assert_array_equal(numpy(pruned.layers[0].kernel), halved(model.layers[0].kernel))
    model.layers[0].kernel.assign(halved(model.layers[0].kernel))
    if len(model.layers) == 3:
        model.layers[1].kernel.assign(halved(model.layers[1].kernel))
    np.testing.assert_allclose(numpy(pruned(x)), numpy(model(x)), rtol=1e-6)
    assert pruned.compiled == model.compiled


def test_a_pruned_model_with_a_lambda_loss_is_trained_and_measured():
    model = lambda_loss(two_layers())
    x, y = arrays(4)
    pruned = kp.prune_weights(model, 0.5)
    pruned.fit(x, y, verbose=0, callbacks=[kp.KeepZeros()])
    assert kp.measure(pruned, x, y, repeats=1).parameters == model.count_params()


def test_an_autoencoder_whose_encoder_shares_its_input_is_pruned():
    inputs = keras.Input((8,), name="pixels")
    code = kl.Dense(4, activation="relu", name="code")(kl.Rescaling(0.5)(inputs))
    encoder = keras.Model(inputs, code, name="encoder")
    model = compiled(keras.Model(inputs, kl.Dense(8, name="again")(encoder(inputs))))
    pruned = kp.prune_weights(model, 0.5)
    assert column(pruned, "zeros") == {"encoder/code": 16, "again": 0}
    encoder.get_layer("code").kernel.assign(halved(encoder.get_layer("code").kernel))
    x, _ = arrays(8)
    np.testing.assert_allclose(numpy(pruned(x)), numpy(model(x)), rtol=1e-6)


def test_a_frozen_base_is_ranked_by_taylor_scores_as_any_other():
    model = compiled(two_layers())
    expected = kp.taylor_scores(model, *arrays(4))["first"][0]
    model.layers[0].trainable = False
    scores = kp.taylor_scores(compiled(model), *arrays(4))
    np.testing.assert_allclose(scores["first"][0], expected, rtol=1e-5)
    zeros = numpy(kp.prune_weights(model, 0.5, score=scores).layers[0].kernel).ravel() == 0
    lowest = np.argsort(expected.ravel(), kind="stable")[: zeros.size // 2]
    assert sorted(lowest) == np.flatnonzero(zeros).tolist()


def test_a_layer_without_scores_is_named():
    with pytest.raises(ValueError, match="no scores for layer 'first'.*layers="):
        kp.prune_weights(two_layers(), 0.5, score={"second": np.ones((16, 4))})


def test_a_class_around_a_graph_with_its_own_config_is_pruned_and_shrunk():
    blocks = [{"kind": "Dense", "units": 8, "name": "body"}]
    model = Wrapped(blocks, [{"kind": "Dense", "units": 3, "name": "head"}])
    pruned = kp.prune_units(model, 0.5, layers=["body"])
    small = kp.shrink(pruned)
    x = np.random.default_rng(0).normal(size=(2, TOKENS, WIDTH)).astype("float32")
    np.testing.assert_allclose(numpy(small(x)), numpy(pruned(x)), rtol=1e-5, atol=1e-6)
    assert column(small, "units")["body"] == 4


COPY_IN_LITTLE_MEMORY = """
import keras, keras_pruning as kp

def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

def network(size):
    layers = [keras.layers.Dense(size, kernel_initializer="zeros") for _ in range(4)]
    return keras.Sequential([keras.Input((size,)), *layers, keras.layers.Dense(8, name="small")])

kp.prune_weights(network(8), 0.5, layers=["small"])  # what is loaded and compiled once
model = network(2500)
size = 4 * model.count_params()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = resident("VmRSS")
pruned = kp.prune_weights(model, 0.5, layers=["small"])
print((resident("VmHWM") - before) / size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_that_is_not_compiled_is_copied_in_little_more_than_its_own_size(root):
    run = subprocess.run(
        [sys.executable, "-c", COPY_IN_LITTLE_MEMORY],
        cwd=root, env=os.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 0.9 < float(run.stdout.split()[-1]) < 2.5
