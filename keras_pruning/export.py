"""Models as LiteRT files (.tflite), for phones and small boards, and what those answer."""

import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.graph import all_layers, kernel_layers

__all__ = ["export_litert", "litert_predict"]

_BATCH = 256  # examples that the interpreter is given together


def export_litert(model: keras.Model, path: str | os.PathLike[str], *, int8: bool = False) -> None:
    """Writes the model as a LiteRT file, which holds its inference and no training.

    Keras's own `model.export(path, format="litert")`, with a file that appears at `path`
    only once it is complete. The file of a model with pruned weights is as large as the
    dense one's, but packs well; of one that `shrink` made smaller, it is smaller.

    Args:
        model: A built Keras model in floating point, on the TensorFlow backend.
        path: The file, its name ending in ".tflite".
        int8: Whether kernels are stored as 8-bit numbers, one scale a tensor or unit, a
            quarter of the size ("dynamic range quantisation"). Zeros stay zeros.
            LiteRT leaves tensors of fewer than 1024 weights as they are.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built or was quantised by Keras, if the path ends
            otherwise, or if Keras's backend is not TensorFlow or Keras is too old.
    """
    kernel_layers(model)  # raises unless this is a built Keras model
    path = Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"The path of a LiteRT file must end in '.tflite'. Received: '{path}'")
    _check_backend()
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp.tflite")
    try:
        model.export(unfinished, format="litert", verbose=False, **_options(int8))
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
    parts = [x[start : start + _BATCH] for start in range(0, len(x), _BATCH)]
    return np.concatenate([_invoke(interpreter, inputs[0], outputs[0], part) for part in parts])


def _check_backend() -> None:
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            f"LiteRT files are exported on Keras's TensorFlow backend; this is '{backend}'. Save "
            "the model with model.save('model.keras'), and load and export it in a process "
            "started with KERAS_BACKEND=tensorflow."
        )


def _options(int8: bool) -> dict[str, Any]:
    if not int8:
        return {}
    return {"optimizations": [importlib.import_module("tensorflow").lite.Optimize.DEFAULT]}


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
            "There is no LiteRT interpreter. Install one: python -m pip install ai-edge-litert"
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
    interpreter.resize_tensor_input(into["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(into["index"], x.astype(into["dtype"]))
    interpreter.invoke()
    return interpreter.get_tensor(out["index"])
