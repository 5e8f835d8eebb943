"""Models as LiteRT files (.tflite), for phones and small boards, and what those answer."""

import functools
import importlib
import importlib.util
import itertools
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.measuring.archives import write_whole
from keras_pruning.models import (
    all_layers,
    copy_state,
    functional_graph,
    kernel_layers,
    model_config,
    model_from_config,
)

__all__ = ["export_litert", "litert_predict"]

_BATCH = 256  # examples that the interpreter is given together
# Of axes that a file leaves open, where it is tried: large ones first, since an image that is too
# small for its convolutions ends TensorFlow's interpreter, and Python with it.
_ANY_SIZES = (256, 64, 16)
_CONVERTERS_SPARSITY = 0.3  # share of zeros from which the converter stores a kernel sparse


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    sparse: bool | Literal["auto"] = "auto",
    int8: bool = False,
) -> str:
    """Writes the model as a LiteRT file, which holds its inference and no training.

    Keras's own `model.export(path, format="litert")`, with pruned kernels stored sparse, and
    a file that appears at `path` only once it is complete and LiteRT's own operations run it.
    Of most sparse files only the disk sees the zeros: LiteRT unpacks them as it loads them.
    From about 97 % of zeros on the converter stores blocks of four numbers, a larger file, and
    the zeros between them are skipped: single examples are answered several times as fast.

    LiteRT computes in float32: of a model in another precision (mixed_float16, float64) a
    float32 copy is exported. A recurrent layer's loop needs a fixed batch there: such a
    file takes one example at a time, unless the layer has `unroll=True` or the model's
    Input a `batch_size`. On Keras's PyTorch backend the package litert-torch converts, for
    one example at a time, dense and in float32.

    Args:
        model: A built Keras model in floating point, on the TensorFlow or PyTorch backend.
        path: The file, its name ending in ".tflite".
        sparse: Whether kernels with at least 30 % of zeros are stored as compressed rows.
            With "auto" each way is tried, with `int8` sparse float32 too, and the smallest
            file taken that LiteRT runs, if sparse with the same answers as dense.
        int8: Whether kernels are stored as 8-bit numbers, one scale a tensor or unit, a
            quarter of the size ("dynamic range quantisation"). Zeros stay zeros.
            LiteRT leaves tensors of fewer than 1024 weights as they are. Sparse int8
            kernels of Dense layers it refuses to run, up to version 2.3 at least.

    Returns:
        How the kernels are stored: "dense float32", "sparse float32", "dense int8" or
        "sparse int8".

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built or was quantised by Keras, if it needs operations
            that LiteRT lacks, if the path ends otherwise, if Keras's backend or version
            cannot write such a file, or if `sparse` is True and LiteRT does not run it.
        OSError: If the file cannot be written. An older one stays as it was, in all cases.

    Examples:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_litert(model, f"{folder}/model.tflite")
        'dense float32'
    """
    kernel_layers(model)  # raises unless this is a built Keras model
    path = Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"The path of a LiteRT file must end in '.tflite'. Received: '{path}'")
    _check_backend(only_dense=sparse is not True and not int8)
    kinds = _kinds(model, sparse, int8)
    try:
        of_kind = functools.partial(_converted, _in_float32(model), _signature(model))
        kind, content = _smallest_that_runs(functools.cache(of_kind), kinds)
    except Exception as error:  # the converter has errors of its own
        known = _explained(model, error)
        if known is None:
            raise
        raise known from error
    write_whole(path, content)
    return kind


def litert_predict(path: str | os.PathLike[str], x: Any) -> npt.NDArray[Any]:
    """Returns what LiteRT's interpreter answers, to be compared with the model's predict.

    Takes the interpreter of the package ai-edge-litert, or else TensorFlow's.

    Args:
        path: A file as `export_litert` writes it, of one input and one output.
        x: Inputs, shape `(examples, ...)`, at least one.

    Returns:
        Outputs, shape `(examples, ...)`.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If neither package is installed.
        ValueError: If it is no LiteRT file, has several inputs or outputs or quantised
            ones, or x has another shape than its input.

    Examples:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_litert(model, f"{folder}/model.tflite")
        ...     answers = litert_predict(f"{folder}/model.tflite", np.ones((4, 8)))
        >>> np.allclose(answers, model.predict(np.ones((4, 8)), verbose=0), atol=1e-5)
        True
    """
    content = Path(path).read_bytes()
    make = _interpreter_class()
    try:
        interpreter = make(model_content=content)
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged, or no LiteRT file. LiteRT: {error}") from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"litert_predict takes one input and one output. '{path}' has {len(inputs)} and "
            f"{len(outputs)}: run it with LiteRT's interpreter."
        )
    if inputs[0]["quantization"][0] or outputs[0]["quantization"][0]:
        raise ValueError(
            f"'{path}' takes or gives quantised numbers. litert_predict takes files with floating "
            "point at both ends, as export_litert writes them."
        )
    shape = tuple(int(size) for size in inputs[0]["shape_signature"])
    x = np.asarray(x)
    if not _suits(x.shape, shape):
        raise ValueError(
            f"x must have the shape (examples, {', '.join(map(str, shape[1:]))}), at least one "
            f"example, that '{path}' takes (-1: any size). Received: {x.shape}"
        )
    step = shape[0] if shape[0] > 0 else _BATCH
    parts = [x[start : start + step] for start in range(0, len(x), step)]
    if shape[0] > 0:  # the batch is fixed: the last is filled up with examples of its own
        parts[-1] = np.resize(parts[-1], (step, *x.shape[1:]))
    answers = [_invoke(interpreter, inputs[0], outputs[0], part) for part in parts]
    return np.concatenate(answers)[: len(x)]


def _check_backend(*, only_dense: bool) -> None:
    backend = keras.backend.backend()
    on_torch = backend == "torch" and importlib.util.find_spec("litert_torch") is not None
    if backend == "tensorflow" or (on_torch and only_dense):
        return
    reason = (
        "The package litert-torch stores kernels dense and in float32"
        if on_torch
        else "LiteRT files are exported on Keras's backend TensorFlow, or PyTorch with litert-torch"
    )
    raise ValueError(
        f"{reason}; this is '{backend}'. Save the model with model.save('model.keras'), and load "
        "and export it in a process started with KERAS_BACKEND=tensorflow."
    )


def _kinds(model: keras.Model, sparse: bool | Literal["auto"], int8: bool) -> list[str]:
    """Returns the ways to store the kernels that are to be tried."""
    if sparse not in (True, False, "auto"):
        raise ValueError(f"sparse must be True, False or 'auto'. Received: {sparse!r}")
    numbers = "int8" if int8 else "float32"
    arrays = (layer.values(kernel) for layer in kernel_layers(model) for kernel in layer.kernels)
    has_zeros = any(np.mean(array == 0) >= _CONVERTERS_SPARSITY for array in arrays)
    if not sparse or not has_zeros or keras.backend.backend() == "torch":
        return [f"dense {numbers}"]
    if sparse is True:
        return [f"sparse {numbers}"]
    return list(dict.fromkeys([f"dense {numbers}", f"sparse {numbers}", "sparse float32"]))


def _converted(model: keras.Model, signature: dict[str, Any], kind: str) -> bytes:
    """Returns the content of the file whose kernels are stored in this way."""
    options = dict(signature)
    if keras.backend.backend() == "tensorflow":
        lite = importlib.import_module("tensorflow").lite
        wanted = {"int8": lite.Optimize.DEFAULT, "sparse": lite.Optimize.EXPERIMENTAL_SPARSITY}
        options["optimizations"] = [wanted[word] for word in wanted if word in kind]
        # Else the converter writes files that only an interpreter with TensorFlow can run.
        options["target_spec"] = {"supported_ops": [lite.OpsSet.TFLITE_BUILTINS]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        model.export(path, format="litert", verbose=False, **options)
        return path.read_bytes()


def _smallest_that_runs(convert: Callable[[str], bytes], kinds: list[str]) -> tuple[str, bytes]:
    """Returns the kind and the content of the smallest file, or raises what is wrong with one."""
    running: dict[str, bytes] = {}
    faults: list[Exception] = []
    for kind in kinds:
        try:
            found = _answers(convert(kind))
            if "sparse" in kind:
                _check_alike(found, _answers(convert(kind.replace("sparse", "dense"))), kind)
            running[kind] = convert(kind)
        except Exception as fault:  # the converter has errors of its own
            faults.append(fault)
    if not running:
        raise faults[0]
    return min(running.items(), key=lambda item: len(item[1]))


def _explained(model: keras.Model, error: Exception) -> ValueError | None:
    """Returns an error that says what to do, where the converter's is known."""
    if "format=litert" in str(error):
        return ValueError(
            f"Keras {keras.version()} cannot write LiteRT files. "
            "Take a newer one: pip install --upgrade keras."
        )
    if _is_quantised(model) and not isinstance(error, OSError):
        return ValueError(
            f"Model '{model.name}' was quantised by Keras, which LiteRT's converter does not "
            "take. Export the model as it was before quantize(), with int8=True. "
            f"({type(error).__name__})"
        )
    if "scope name" in str(error) or "argument names" in str(error):
        return ValueError(
            f"The converter does not take the names of model '{model.name}' or its inputs: "
            "leave spaces out of them."
        )
    missing = sorted(set(re.findall(r"'tf\.(\w+)' op", str(error))))
    if missing:
        return ValueError(
            f"Model '{model.name}' takes operations of TensorFlow that LiteRT does not have: "
            f"{', '.join(missing)}. No file was written. Put layers that LiteRT has in their "
            "place, or export a part of the model that does without."
        )
    return None


def _signature(model: keras.Model) -> dict[str, Any]:
    """Returns what fixes the batch, where a recurrent layer's loop needs it; else nothing."""
    loops = [layer for layer in all_layers(model) if getattr(layer, "unroll", True) is False]
    if not loops:
        return {}
    if functional_graph(model) is None:
        raise ValueError(
            f"LiteRT runs the recurrent layer '{loops[0].name}' in a fixed batch only, and the "
            f"subclassed model '{model.name}' does not tell its inputs. Give its recurrent layers "
            "unroll=True, or wrap it: inputs = keras.Input(shape, batch_size=1), then export "
            "keras.Model(inputs, model(inputs))."
        )

    def fixed(tensor: Any) -> keras.InputSpec:
        shape = (tensor.shape[0] or 1, *tensor.shape[1:])
        return keras.InputSpec(tensor.dtype, shape, name=tensor.name)

    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return {"input_signature": [keras.tree.map_structure(fixed, inputs)]}


def _in_float32(model: keras.Model) -> keras.Model:
    """Returns the model, or where it computes in another precision a copy in float32."""
    if _is_quantised(model) or all(layer.compute_dtype == "float32" for layer in all_layers(model)):
        return model
    config = _with_float32(model_config(model))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # for layers that custom layers make themselves
    try:
        copied = model_from_config(model, config)
    finally:
        keras.config.set_dtype_policy(before)
    copy_state(model, copied)
    return copied


def _with_float32(config: Any) -> Any:
    """Returns the configuration with float32 for each dtype of another precision."""
    if isinstance(config, dict):
        return {
            key: "float32" if key == "dtype" and "float" in str(value) else _with_float32(value)
            for key, value in config.items()
        }
    return [_with_float32(value) for value in config] if isinstance(config, list) else config


def _answers(content: bytes) -> dict[str, npt.NDArray[Any]] | None:
    """Returns what a file answers to zeros and ones, or to zeros if it takes no ones.

    `None` where that cannot be found out.

    Raises:
        ValueError: If the interpreter cannot run it with its own operations.
    """
    try:
        make = _interpreter_class()
    except ImportError:  # the converter was told to use no other operations
        return None
    inputs = make(model_content=content).get_signature_runner().get_input_details()
    shapes = {name: inputs[name]["shape_signature"] for name in sorted(inputs)}
    n_open = max(np.count_nonzero(np.less(shape[1:], 0)) for shape in shapes.values())
    sizes = _ANY_SIZES[-1:] if not n_open else _ANY_SIZES if n_open <= 2 else _ANY_SIZES[1:]
    fault = None
    for size, numbers in itertools.product(sizes, (2, 1)):
        rng = np.random.default_rng(0)
        x = {
            name: rng.integers(0, numbers, _filled(shape, size)).astype(inputs[name]["dtype"])
            for name, shape in shapes.items()
        }
        try:  # anew: one that has failed may not be used again
            return make(model_content=content).get_signature_runner()(**x)
        except RuntimeError as error:
            fault = error
    if n_open:
        return None  # the sizes that were tried may not suit the model
    raise ValueError(
        f"LiteRT cannot run the file of this model, so none was written. It says: {fault}"
    ) from fault


def _filled(shape: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    """The shape with this size for open axes, and four examples for an open batch."""
    filled = np.where(shape < 0, size, shape)
    filled[:1] = np.where(shape[:1] < 0, 4, shape[:1])
    return filled


def _check_alike(found: Any, expected: Any, kind: str) -> None:
    """Raises an error unless a sparse file was seen to answer as the dense one does."""
    tolerance = 1e-2 if "int8" in kind else 1e-4  # of the largest answer

    def is_alike(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
        largest = np.abs(other[np.isfinite(other)]).max(initial=0)
        return np.allclose(one, other, rtol=0, atol=tolerance * largest, equal_nan=True)

    if not (found and expected and all(is_alike(found[name], expected[name]) for name in expected)):
        raise ValueError(
            f"LiteRT was not seen to answer with {kind} kernels as with dense ones, so no file was "
            "written. Take sparse='auto' or False."
        )


def _is_quantised(model: keras.Model) -> bool:
    return any(getattr(layer, "quantization_mode", None) for layer in all_layers(model))


def _interpreter_class() -> Callable[..., Any]:
    try:
        return importlib.import_module("ai_edge_litert.interpreter").Interpreter
    except ImportError:
        pass
    try:
        interpreter = importlib.import_module("tensorflow").lite.Interpreter
    except (ImportError, AttributeError) as error:
        raise ImportError(
            'There is no LiteRT interpreter. Install one: pip install "keras-pruning[litert]"'
        ) from error

    def quietly(**options: Any) -> Any:
        with warnings.catch_warnings():  # TensorFlow's announces its removal at each use
            warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
            return interpreter(**options)

    return quietly


def _suits(received: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return (
        len(received) == len(expected)
        and received[0] > 0
        and all(e in (-1, r) for r, e in zip(received[1:], expected[1:], strict=True))
    )


def _invoke(
    interpreter: Any, into: dict[str, Any], out: dict[str, Any], x: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    if tuple(into["shape"]) != x.shape:
        interpreter.resize_tensor_input(into["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(into["index"], x.astype(into["dtype"]))
    interpreter.invoke()
    return interpreter.get_tensor(out["index"])
