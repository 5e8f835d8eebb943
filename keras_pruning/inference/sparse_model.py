"""Pruned weights really skipped: inference on the CPU, in memory and on disk."""

import dataclasses
import functools
import importlib.util
import io
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
from keras import layers as kl

import keras_pruning.inference.block_layers as block_layers
from keras_pruning.inference.block_layers import Activation, Call, Linear, Step, Tensor
from keras_pruning.inference.block_network import BlockNetwork, FasterOf
from keras_pruning.inference.dense_chain import DenseStep, read_dense_chain
from keras_pruning.inference.planner import (
    Plan,
    dense_chain_of,
    make_plan,
    plan_blocks,
    plan_of_dense_chain,
)
from keras_pruning.inference.sparse_chain import SparseChain, compiled_loops
from keras_pruning.inference.threads import check_threads
from keras_pruning.models import (
    all_layers,
    copy_for_inference,
    functional_graph,
    inputs_structure,
    kernel_layers,
    loss_head,
    outputs_structure,
    own_weights,
)
from keras_pruning.pruning import count_nonzero

__all__ = ["Counts", "SparseModel"]

FloatArray = npt.NDArray[np.float32]

_FORMAT = "keras_pruning.SparseModel 2"
_KERAS_ROWS = 256  # examples of a batch that Keras computes


class Counts(NamedTuple):
    """Numbers in a SparseModel's kernels and biases, and its products for one example.

    Of products those of a weight with an input are counted, in layers that skip zeros or could;
    `None` where Keras computes layers, in which nobody counted.
    """

    parameters: int
    nonzero: int
    multiply_adds: int | None
    multiply_adds_nonzero: int | None


class SparseModel:
    """Inference on the CPU that skips pruned weights.

    Takes every built Keras model. A chain of Dense layers runs without Keras, with what
    `read_dense_chain` understands around them. Of other functional and Sequential models,
    nested ones too, dense and convolutional layers skip their zeros, with BatchNormalization
    and activations in one go; layers that are not known are called in Keras, and where the
    whole is faster there, with few zeros or few examples, Keras computes it whole: the first
    call with about so many examples runs both a few times. `report` tells. Room for the
    activations of a block, at most 256 MiB a thread, is kept from one call to the next.

    The outputs are the Keras model's up to rounding. Weights are copied: training the
    Keras model later does not change this one. Skipped weights do not meet their inputs,
    so an infinite or missing input spreads to fewer outputs than in Keras.

    Args:
        model: A built Keras model.
        n_threads: Threads among which the examples are shared; by default one a
            processor core. What Keras computes takes the threads of its backend.

    Raises:
        TypeError: If `model` is not a Keras model, or `n_threads` not a whole number.
        ValueError: If the model is not built, cannot be copied or has weights that are not
            finite; if `n_threads` is below 1.

    Examples:
        >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> SparseModel(network).predict(np.zeros((5, 3))).shape
        (5, 2)
    """

    def __init__(self, model: keras.Model, *, n_threads: int | None = None) -> None:
        _check_weights(model)
        self._network = _Network(model, n_threads)
        self._head = loss_head(model) if _is_told_by_outputs(model) else None

    def predict(self, x: Any) -> Any:
        """Returns the outputs.

        Args:
            x: Inputs, numbers of shape `(examples, ...)` as the Keras model takes them: of
                several inputs a list of arrays, or a dict of them by name.

        Returns:
            float32, shape `(examples, units)`, or what else the model gives; of several
            outputs a list or dict as in Keras.

        Raises:
            TypeError: If x does not hold real numbers.
            ValueError: If the examples have another shape than the model's input.
        """
        return self._network.predict(x)

    __call__ = predict

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """Returns the loss and metrics that the Keras model was compiled with.

        Args:
            x: Inputs, as in `predict`.
            y: Targets, of the same length, as the Keras model's loss takes them.

        Returns:
            Name to value: `{"loss": ..., "accuracy": ...}`.

        Raises:
            ValueError: If there is no loss: the Keras model was not compiled, computes its
                loss in a way of its own or from more than one output, or this model was
                loaded from a file.
        """
        if self._head is None:
            raise ValueError(
                "This SparseModel has no loss and metrics to evaluate: its Keras model was not "
                "compiled or evaluates in its own way or from several outputs, or it was loaded "
                "from a file, which holds none. Make it from a compiled model, or use predict."
            )
        outputs = self.predict(x)
        if len(outputs) != len(y) or not len(y):
            raise ValueError(
                "x and y must hold the same number of examples, at least one. "
                f"Received lengths: {len(outputs)} and {len(y)}"
            )
        self._head.reset_metrics()
        values = self._head.test_on_batch(outputs, y, return_dict=True)
        return {name: float(value) for name, value in values.items()}

    def report(self, x: Any) -> pd.DataFrame:
        """Returns how each step runs, and how much of the time it takes.

        Args:
            x: Inputs, as in `predict`; at most 256 of them are run several times.

        Returns:
            A row a step, in order, with the columns "layer" (its name, or the first of those
            that are computed together), "type", "runs" ("sparse": its zeros are skipped,
            "dense": they are not, or there are none, "Keras"), "zeros" (share of the weights,
            NaN where there are none) and "time" (share of one thread's time, NaN where Keras
            computes the model whole).
        """
        rows = self._network.rows(x)
        return pd.DataFrame(rows, columns=["layer", "type", "runs", "zeros", "time"])

    @property
    def compiled(self) -> bool:
        """Whether there are a loss and metrics to `evaluate`."""
        return self._head is not None

    @property
    def n_threads(self) -> int:
        """Threads among which the examples are shared."""
        return self._network.n_threads

    @property
    def steps(self) -> list[DenseStep]:
        """The layers of a Dense chain as arrays, without the units that pruning cut off.

        Empty where the model is more than a chain of Dense layers.
        """
        chain = self._network.chain
        return list(chain.steps) if chain else []

    @property
    def counts(self) -> Counts:
        """How many numbers it holds and products it takes."""
        return self._network.counts()

    @functools.cached_property
    def size_bytes(self) -> int:
        """Size of the file that `save` writes, in bytes."""
        return len(self._network.serialise())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights that are left, the biases and the activations to one file.

        The file is a zip archive of NumPy arrays, as `np.load` reads it. Loss, metrics and
        optimizer are not saved. The file appears at `path` only once it is complete.

        Raises:
            ValueError: If the last activation is not one of Keras's own, or a layer is called
                in Keras: a file cannot hold its code.
        """
        path = Path(path)
        data = self._network.serialise()
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, n_threads: int | None = None) -> "SparseModel":
        """Returns the model that `save` wrote; it predicts, but has no loss to evaluate.

        Args:
            path: The file.
            n_threads: As in `SparseModel`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or was not written by `save`.
            ImportError: If it holds more than a chain of Dense layers and numba is missing:
                there is no Keras model to run instead.
        """
        data = Path(path).read_bytes()
        try:
            header, plan = _deserialise(data)
        except Exception as error:  # damage shows as almost any: of zipfile, zlib, NumPy, JSON
            raise ValueError(
                f"'{path}' is damaged, or no file that SparseModel.save wrote. "
                f"Save the model anew. ({type(error).__name__}: {error})"
            ) from error
        model = cls.__new__(cls)
        model._head, model._network = None, _Network.of_parts(plan, header, n_threads)
        return model


class _Network:
    """What runs a model: a chain of Dense layers, or blocks of examples beside its copy in Keras.

    Args:
        model: A built Keras model.
        n_threads: As in `SparseModel`.
    """

    def __init__(self, model: keras.Model, n_threads: int | None) -> None:
        self.n_threads = check_threads(n_threads)
        self._keras = self._function = None
        self.why = ""
        steps = read_dense_chain(model)
        self.chain = None if steps is None else _chain(steps, n_threads)
        if self.chain:
            self._plan = None
            self._takes: Any = 0
            self._gives: Any = 0
            (given,) = model.inputs
            self._inputs = [(given.name, list(given.shape[1:]), given.dtype)]
            return
        self._keras = copy_for_inference(model)
        self._function = functional_graph(self._keras)
        self._plan, self.why = plan_blocks(self._keras)
        if self._function is not None:
            self._takes = _places(inputs_structure(self._function), self._function.inputs)
            self._gives = _places(outputs_structure(self._function), self._function.outputs)
            self._inputs = [(t.name, list(t.shape[1:]), t.dtype) for t in self._function.inputs]
        self._runner = FasterOf(self._blocks(), self._by_keras)

    @classmethod
    def of_parts(
        cls, content: Plan | list[DenseStep], header: dict[str, Any], n_threads: int | None
    ) -> "_Network":
        """Returns a network that was read from a file; there is no Keras model to run."""
        network = cls.__new__(cls)
        network.n_threads = check_threads(n_threads)
        network._keras = network._function = None
        network._plan, network.why = None, ""
        network._takes, network._gives = header["takes"], header["gives"]
        network._inputs = [tuple(entry) for entry in header["inputs"]]
        steps = dense_chain_of(content) if isinstance(content, Plan) else content
        network.chain = None if steps is None else _chain(steps, n_threads)
        if network.chain is None and isinstance(content, Plan):
            network._plan = content
            if compiled_loops() is None:
                raise ImportError(
                    "A saved network that is more than a chain of Dense layers runs with numba: "
                    'pip install "keras-pruning[sparse]"'
                )
            network._runner = FasterOf(network._blocks(), None)
        return network

    @property
    def plan(self) -> Plan | None:
        """The network as steps; `None` where Keras computes it whole."""
        if self._plan is None and self.chain:
            self._plan = plan_of_dense_chain(self.chain.steps)
        return self._plan

    def __reduce__(self) -> tuple[Any, ...]:
        """What makes it anew, in a copy or another process: plans hold locks and functions."""
        if self._keras is not None:
            return _Network, (self._keras, self.n_threads)
        header = {"takes": self._takes, "gives": self._gives, "inputs": self._inputs}
        content = self.chain.steps if self.chain else self._plan
        return _Network.of_parts, (content, header, self.n_threads)

    def predict(self, x: Any) -> Any:
        """Returns the outputs in the structure in which the model gives them."""
        if self.chain:
            return self.chain.forward(self._flat(x))
        if self._plan is None and self._function is None:
            return self._whole(x)
        inputs = self._arrays(x)
        count = len(inputs[0])
        outputs = self._runner.forward(inputs if count else _one_example(inputs))
        if not count:  # what was computed tells the shapes
            outputs = [output[:0] for output in outputs]
        return keras.tree.map_structure(lambda place: outputs[place], self._gives)

    def rows(self, x: Any) -> list[tuple[Any, ...]]:
        """The rows of `SparseModel.report`."""
        if self.chain:
            return self.chain.rows(self._flat(x)[:_KERAS_ROWS])
        inputs = None if self._function is None and self._plan is None else self._arrays(x)
        if inputs is not None and not len(inputs[0]):
            inputs = _one_example(inputs)
        if inputs is None or self._runner.blocks is None or not self._runner.runs_blocks(inputs):
            model: Any = self._keras
            layers = [layer for layer in model.layers if not isinstance(layer, kl.InputLayer)]
            return [
                (layer.name, type(layer).__name__, "Keras", _zeros(layer), np.nan)
                for layer in layers
            ]
        blocks = self._runner.blocks
        seconds = blocks.seconds(inputs)
        total = sum(seconds) or 1.0
        return [
            (step.name, step.kind, step.way, step.zeros, taken / total)
            for step, taken in zip(blocks.plan.steps, seconds, strict=True)
        ]

    def _flat(self, x: Any) -> npt.NDArray[Any]:
        """The inputs of a chain, `(examples, inputs)`; to float32 it casts them part by part."""
        (array,), ((_, shape, dtype),) = self._checked(x), self._inputs
        if dtype != "float32":
            array = _cast(array, dtype)
        return array.reshape(len(array), math.prod(shape))

    def counts(self) -> Counts:
        """As `SparseModel.counts`."""
        if self._keras is not None and (self.plan is None or self._called()):
            weights = [keras.ops.convert_to_numpy(w) for w in self._keras.weights]
            return Counts(
                sum(w.size for w in weights), sum(map(count_nonzero, weights)), None, None
            )
        plan: Any = self.plan
        linear = [step for step in plan.steps if isinstance(step, Linear)]
        biases = [step.bias for step in linear if step.bias.any()]
        products = [step.multiply_adds(plan.tensors) for step in linear]
        return Counts(
            sum(step.weights for step in linear) + sum(bias.size for bias in biases),
            sum(len(step.values) for step in linear if step.weights)
            + sum(map(count_nonzero, biases)),
            sum(all_of for all_of, _ in products),
            sum(left for _, left in products),
        )

    def _called(self) -> list[str]:
        """Names of the layers that Keras computes."""
        steps = self.plan.steps if self.plan else []
        return [step.name for step in steps if isinstance(step, Call)]

    def serialise(self) -> bytes:
        """The bytes of the file: of each step what makes it, and the weights that are left."""
        if self.plan is None:
            raise ValueError(
                f"This model cannot be saved: Keras computes it whole, since {self.why}, and a "
                "file holds no code. Save the Keras model."
            )
        for step in self.plan.steps:
            if isinstance(step, Linear) and not step.activation.name:
                raise ValueError(
                    f"This model cannot be saved: the activation of layer '{step.name}' is not "
                    "Keras's own, and a file holds no code. Leave it out of the model and apply "
                    "it to the outputs."
                )
        called = self._called()
        if called:
            raise ValueError(
                f"This model cannot be saved: Keras computes {', '.join(map(repr, called))}, and "
                "a file holds no code. Save the Keras model."
            )
        header = {
            "format": _FORMAT,
            "takes": self._takes,
            "gives": self._gives,
            "inputs": self._inputs,
        }
        return _serialise_plan(header, self.plan)

    def _blocks(self) -> BlockNetwork | None:
        kernels = compiled_loops()
        if self.plan is None or not self.plan.skips_zeros:
            return None
        if kernels is None:
            warnings.warn(
                "numba is not installed, so Keras computes this model, zeros and all: "
                'pip install "keras-pruning[sparse]"',
                stacklevel=4,
            )
            return None
        return BlockNetwork(self.plan, self.n_threads, kernels)

    def _by_keras(self, inputs: Any) -> list[npt.NDArray[Any]]:
        x = keras.tree.map_structure(lambda place: inputs[place], self._takes)
        outputs = keras.tree.flatten(self._whole(x))
        by_place = dict(zip(keras.tree.flatten(self._gives), outputs, strict=True))
        function: Any = self._function
        last = {id(tensor): i for i, tensor in enumerate(function.outputs)}
        return [by_place[last[id(tensor)]] for tensor in function.outputs]

    def _whole(self, x: Any) -> Any:
        """The Keras model's outputs, in batches."""
        model: Any = self._keras
        count = len(keras.tree.flatten(x)[0])
        parts = [
            model.predict_on_batch(
                keras.tree.map_structure(lambda a, top=top: a[top : top + _KERAS_ROWS], x)
            )
            for top in range(0, max(count, 1), _KERAS_ROWS)
        ]
        if len(parts) == 1:
            return keras.tree.map_structure(keras.ops.convert_to_numpy, parts[0])
        return keras.tree.map_structure(
            lambda *some: np.concatenate([keras.ops.convert_to_numpy(one) for one in some]), *parts
        )

    def _arrays(self, x: Any) -> list[npt.NDArray[Any]]:
        """The inputs as arrays of the type that the model takes, in its order."""
        return [
            array if dtype == "string" else _cast(array, dtype)
            for array, (_, _, dtype) in zip(self._checked(x), self._inputs, strict=True)
        ]

    def _checked(self, x: Any) -> list[npt.NDArray[Any]]:
        """The inputs as arrays in the model's order."""
        arrays = [np.asarray(array) for array in self._given(x, self._takes)]
        for array, (name, shape, dtype) in zip(arrays, self._inputs, strict=True):
            is_text = dtype == "string"
            if array.dtype.kind not in ("OSU" if is_text else "buif"):
                raise TypeError(
                    f"x must hold real numbers. Received: dtype {array.dtype} for input '{name}'"
                )
            known = [size if want is not None else None
                     for want, size in zip(shape, array.shape[1:], strict=False)]  # fmt: skip
            if array.ndim != len(shape) + 1 or known != shape:
                raise ValueError(
                    f"x must have the shape (examples, {', '.join(map(str, shape))}) that the "
                    f"model takes. Received: {array.shape} for input '{name}'"
                )
        lengths = {len(array) for array in arrays}
        if len(lengths) > 1:
            raise ValueError(f"All inputs must hold as many examples. Received: {sorted(lengths)}")
        return arrays

    def _given(self, x: Any, takes: Any) -> list[Any]:
        """The inputs in the model's order; `takes` is a structure of their places in it."""
        if isinstance(takes, int):
            return [x]
        names = [name for name, _, _ in self._inputs]
        many = len(takes)
        if isinstance(takes, dict):
            if not isinstance(x, dict) or not takes.keys() <= x.keys():
                raise ValueError(f"x must be a dict of inputs named {sorted(takes)}.")
            pairs = [(x[key], takes[key]) for key in takes]
        elif isinstance(x, dict) and all(isinstance(i, int) for i in takes):
            if not x.keys() >= set(names):
                raise ValueError(f"x must hold inputs named {names}. Received: {sorted(x)}")
            pairs = [(x[name], number) for name, number in zip(names, takes, strict=True)]
        else:
            parts = x if isinstance(x, (list, tuple)) and (many > 1 or len(x) == 1) else [x]
            if len(parts) != many:
                raise ValueError(f"x must be a list of {many} arrays. Received: {len(parts)}")
            pairs = list(zip(parts, takes, strict=True))
        flat: dict[int, Any] = {}
        for part, numbers in pairs:
            places = sorted(keras.tree.flatten(numbers))
            flat.update(zip(places, self._given(part, numbers), strict=True))
        return [flat[number] for number in sorted(flat)]


def _one_example(inputs: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """One of zeros, where there are none: backends fail on arrays without examples."""
    return [np.zeros((1, *array.shape[1:]), array.dtype) for array in inputs]


def _places(structure: Any, tensors: list[Any]) -> Any:
    """The structure with each tensor's place in the list instead of it."""
    place = {id(tensor): i for i, tensor in enumerate(tensors)}
    return keras.tree.map_structure(lambda tensor: place[id(tensor)], structure)


def _cast(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """The array in a type of Keras; bfloat16, which NumPy does not know, is cast by Keras."""
    if dtype != "bfloat16":
        return array.astype(dtype, copy=False)
    tensor = keras.ops.convert_to_tensor(array.astype("float32"), dtype=dtype)
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def _zeros(layer: keras.Layer) -> float:
    """The share of zeros in the kernels of a layer, NaN without any."""
    kernels = [w for w in layer.weights if len(w.shape) > 1]
    if not kernels:
        return math.nan
    left = sum(count_nonzero(keras.ops.convert_to_numpy(kernel)) for kernel in kernels)
    return 1 - left / sum(math.prod(kernel.shape) for kernel in kernels)


def _is_told_by_outputs(model: keras.Model) -> bool:
    """Whether loss and metrics follow from one tensor of outputs."""
    function = functional_graph(model)
    if model.losses or function is None:
        return False
    return isinstance(outputs_structure(function), keras.KerasTensor)


def _chain(steps: list[DenseStep], n_threads: int | None) -> SparseChain:
    if importlib.util.find_spec("numba") is None:
        warnings.warn(
            "numba is not installed, so SciPy skips the zeros, which takes longer: "
            'pip install "keras-pruning[sparse]"',
            stacklevel=3,
        )
    return SparseChain(steps, n_threads)


def _deserialise(data: bytes) -> tuple[dict[str, Any], Plan]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        if header["format"] != _FORMAT:
            raise ValueError(f"its format is {header['format']!r}, expected {_FORMAT!r}")
        return header, _deserialise_plan(header, arrays)


def _serialise_plan(header: dict[str, Any], plan: Plan) -> bytes:
    """Returns the file's bytes: the header, and of each linear step its bias, gaps and weights.

    A gap is the distance from one weight left to the next, counted unit by unit; small
    numbers that deflate packs close to the entropy of the mask. Numbers are cut in
    planes, all first bytes, then all second bytes: what varies little stands together.
    Of a step the header holds its class and each field that is no array.
    """
    arrays: dict[str, Any] = {}
    entries = []
    for i, step in enumerate(plan.steps):
        entry = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
        if isinstance(step, Linear):
            arrays[f"gaps{i}"] = _planes(np.diff(step.places, prepend=-1).astype(np.uint32))
            arrays[f"values{i}"] = _planes(step.values)
            arrays[f"bias{i}"] = step.bias
            for name in ("places", "values", "bias"):
                del entry[name]
        if "activation" in entry:
            entry["activation"] = [step.activation.name, step.activation.number]  # type: ignore[attr-defined]
        entries.append([type(step).__name__, entry])
    header = header | {
        "tensors": [t and t.shape for t in plan.tensors],
        "steps": entries,
        "in": plan.inputs,
        "out": plan.outputs,
    }
    file = io.BytesIO()
    content = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(file, **{"header": content} | arrays)
    return file.getvalue()


def _deserialise_plan(header: dict[str, Any], arrays: Any) -> Plan:
    steps: list[Step] = []
    for i, (kind, entry) in enumerate(header["steps"]):
        known = getattr(block_layers, kind, None)
        if not (isinstance(known, type) and issubclass(known, Step)) or known is Call:
            raise ValueError(f"its step {i} is of the kind {kind!r}")
        entry = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        if "activation" in entry:
            entry["activation"] = Activation(*entry["activation"])
        if kind == "Linear":
            gaps = _from_planes(arrays[f"gaps{i}"], np.uint32)
            entry["places"] = np.cumsum(gaps, dtype=np.int64) - 1
            entry["values"] = _from_planes(arrays[f"values{i}"], np.float32)
            entry["bias"] = arrays[f"bias{i}"]
        steps.append(known(**entry))
    tensors = [t and Tensor(tuple(t)) for t in header["tensors"]]
    return make_plan(tensors, steps, header["in"], header["out"])


def _planes(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Returns the bytes of 4-byte numbers, `(4, numbers)`, the least significant first."""
    little = numbers.astype(numbers.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, 4).T)


def _from_planes(planes: npt.NDArray[np.uint8], kind: type[np.generic]) -> npt.NDArray[Any]:
    little = np.ascontiguousarray(planes.T).view(np.dtype(kind).newbyteorder("<"))
    return little.reshape(-1).astype(kind)


def _check_weights(model: keras.Model) -> None:
    kernel_layers(model)  # raises unless this is a built Keras model
    for layer in all_layers(model):
        for variable in own_weights(layer):
            array = keras.ops.convert_to_numpy(variable)
            if array.dtype.kind not in "biu" and not np.isfinite(array).all():
                raise ValueError(
                    f"Layer '{layer.name}' has weights that are NaN or infinite. Train it anew, "
                    "with a lower learning rate for example, before it is made sparse."
                )
