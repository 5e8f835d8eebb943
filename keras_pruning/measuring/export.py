"""Models as LiteRT files (.tflite), for phones and small boards, and what those answer."""

import importlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

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


def export_litert(model: keras.Model, path: str | os.PathLike[str], *, int8: bool = False) -> None:
    """Writes the model as a LiteRT file, which holds its inference and no training.

    Keras's own `model.export(path, format="litert")`, with a file that appears at `path`
    only once it is complete and LiteRT's own operations suffice to run it. The file of a
    model with pruned weights is as large as the dense one's, but packs well; of one that
    `shrink` made smaller, it is smaller.

    LiteRT computes in float32: of a model in another precision (mixed_float16, float64) a
    float32 copy is exported. A recurrent layer's loop needs a fixed batch there: such a
    file takes one example at a time, unless the layer has `unroll=True` or the model's
    Input a `batch_size`.

    Args:
        model: A built Keras model in floating point, on the TensorFlow backend.
        path: The file, its name ending in ".tflite".
        int8: Whether kernels are stored as 8-bit numbers, one scale a tensor or unit, a
            quarter of the size ("dynamic range quantisation"). Zeros stay zeros.
            LiteRT leaves tensors of fewer than 1024 weights as they are.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built or was quantised by Keras, if it needs operations
            that LiteRT lacks, if the path ends otherwise, or if Keras's backend is not
            TensorFlow or Keras is too old. No file is left then.
    """
    kernel_layers(model)  # raises unless this is a built Keras model
    path = Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"The path of a LiteRT file must end in '.tflite'. Received: '{path}'")
    _check_backend()
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp.tflite")
    try:
        _in_float32(model).export(
            unfinished, format="litert", verbose=False, **_signature(model), **_options(int8)
        )
        _check_runs(unfinished)
        unfinished.replace(path)
    except Exception as error:  # the converter has errors of its own
        if "format=litert" in str(error):
            raise ValueError(
                f"Keras {keras.version()} cannot write LiteRT files. "
                "Take a newer one: pip install --upgrade keras."
            ) from error
        if _is_quantised(model) and not isinstance(error, OSError):
            raise ValueError(
                f"Model '{model.name}' was quantised by Keras, which LiteRT's converter does not "
                "take. Export the model as it was before quantize(), with int8=True. "
                f"({type(error).__name__})"
            ) from error
        missing = sorted(set(re.findall(r"'tf\.(\w+)' op", str(error))))
        if missing:
            raise ValueError(
                f"Model '{model.name}' takes operations of TensorFlow that LiteRT does not have: "
                f"{', '.join(missing)}. No file was written. Put layers that LiteRT has in their "
                "place, or export a part of the model that does without."
            ) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


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
        ValueError: If it is no LiteRT file, has several inputs or outputs, or x has
            another shape than its input.
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


def _check_backend() -> None:
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            f"LiteRT files are exported on Keras's TensorFlow backend; this is '{backend}'. Save "
            "the model with model.save('model.keras'), and load and export it in a process "
            "started with KERAS_BACKEND=tensorflow."
        )


def _options(int8: bool) -> dict[str, Any]:
    lite = importlib.import_module("tensorflow").lite
    # Else the converter writes files that only an interpreter with TensorFlow in it can run.
    options: dict[str, Any] = {"target_spec": {"supported_ops": [lite.OpsSet.TFLITE_BUILTINS]}}
    return options | ({"optimizations": [lite.Optimize.DEFAULT]} if int8 else {})


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


def _check_runs(path: Path) -> None:
    """Raises an error unless an interpreter gets the file ready with its own operations."""
    try:
        make = _interpreter_class()
    except ImportError:  # the converter was told to use no others
        return
    interpreter = make(model_content=path.read_bytes())
    if any(-1 in details["shape_signature"][1:] for details in interpreter.get_input_details()):
        return  # of no size yet
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise ValueError(
            f"LiteRT cannot run the file of this model, so none was written. It says: {error}"
        ) from error


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
