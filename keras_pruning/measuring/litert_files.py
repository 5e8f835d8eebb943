"""What is in a LiteRT file: how each tensor is stored, and whether sparse kernels would take it."""

import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["LitertReport", "litert_report"]

# What XNNPACK's sparse inference takes: the first operator, with its channels, those that may
# follow, and the last.
_FIRST = ("CONV_2D 3x3, stride 2x2, padding 1", 3)
_INSIDE = {
    "CONV_2D 1x1, stride 1x1, padding 0",
    *(f"DEPTHWISE_CONV_2D 3x3, stride {n}x{n}, padding 1" for n in (1, 2)),
    *(f"DEPTHWISE_CONV_2D 5x5, stride {n}x{n}, padding 2" for n in (1, 2)),
    *"ABS ADD CEIL DENSIFY ELU FLOOR HARD_SWISH LEAKY_RELU LOGISTIC MUL NEG PAD RELU".split(),
    *"RELU6 RELU_N1_TO_1 RESIZE_BILINEAR ROUND SQUARE".split(),
}
_LAST = ("MEAN", "DEPTH_TO_SPACE")


class LitertReport(NamedTuple):
    """What `litert_report` found.

    Attributes:
        tensors: DataFrame, a row a tensor that is stored in the file: `name`, `shape`, `type`
            ("float32", "int8"), `stored` ("dense", "CSR" or "block"), `bytes` (of its values
            and, where it is sparse, their places) and `zeros` (values that are 0; missing
            where several share a byte).
        sparse_inference: Whether XNNPACK would skip the zeros on ARM or WebAssembly, or the
            first of its rules that the graph breaks. By the rules alone: nothing was run.

    Examples:
        >>> tensors = pd.DataFrame({"name": ["kernel"], "stored": ["CSR"], "zeros": [216]})
        >>> report = LitertReport(tensors, "no: LiteRT unpacks CSR")
        >>> report.tensors["stored"].tolist()
        ['CSR']
    """

    tensors: pd.DataFrame
    sparse_inference: str


def litert_report(path: str | os.PathLike[str]) -> LitertReport:
    """Returns how the tensors of a LiteRT file are stored, and if their zeros would save time.

    The rules are those of "Sparse Inference" in XNNPACK's delegate for LiteRT
    (tensorflow/lite/delegates/xnnpack/README.md); on x86 its sparse kernels are left out.

    Args:
        path: A LiteRT file, from `export_litert` or another converter.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If neither ai-edge-litert nor TensorFlow is installed.
        ValueError: If it is no LiteRT file.

    Examples:
        >>> import tempfile
        >>> import keras
        >>> from keras_pruning import export_litert
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_litert(model, f"{folder}/model.tflite")
        ...     report = litert_report(f"{folder}/model.tflite")
        >>> report.tensors["stored"].unique().tolist()
        ['dense']
    """
    content = Path(path).read_bytes()
    schema = _schema()
    try:
        if content[4:8] != b"TFL3":
            raise ValueError("it does not begin as one")
        model = schema.ModelT.InitFromPackedBuf(content)
        rows = [row for graph in model.subgraphs for row in _rows(model, graph, schema)]
        operators = list(_operators(model, schema))
    except Exception as error:  # damage shows as almost any
        raise ValueError(
            f"'{path}' is damaged, or no LiteRT file. ({type(error).__name__}: {error})"
        ) from error
    columns = ["name", "shape", "type", "stored", "bytes", "zeros"]
    table = pd.DataFrame(rows, columns=columns).astype({"zeros": "Int64"})
    broken = _broken_rule(operators, table)
    on = "XNNPACK on ARM and WebAssembly, by its rules, not tried:"
    answer = f"skips no zeros: {broken}" if broken else "skips the zeros of 1x1 convolutions"
    return LitertReport(table, f"{on} {answer}")


def _schema() -> Any:
    """Returns the classes generated from LiteRT's schema, of whichever package is here."""
    for package in ("ai_edge_litert", "tensorflow.lite.python"):
        try:
            return importlib.import_module(f"{package}.schema_py_generated")
        except ImportError:
            continue
    raise ImportError(
        'LiteRT files are read with ai-edge-litert: pip install "keras-pruning[litert]"'
    )


def _rows(model: Any, graph: Any, schema: Any) -> Iterator[tuple[Any, ...]]:
    types = {code: name.lower() for name, code in vars(schema.TensorType).items()}
    for tensor in graph.tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.sparsity is None and (data is None or not len(data)):
            continue  # computed, not stored
        data = np.zeros(0, np.uint8) if data is None else data  # of zeros alone
        shape = tuple(map(int, tensor.shape)) if tensor.shape is not None else ()
        kind, stored, size = types[tensor.type], "dense", len(data)
        if tensor.sparsity is not None:
            blocks = tensor.sparsity.blockMap
            stored = "CSR" if blocks is None or not len(blocks) else "block"
            places = [
                part.values
                for axis in tensor.sparsity.dimMetadata
                for part in (axis.arraySegments, axis.arrayIndices)
                if part is not None
            ]
            size += sum(np.asarray(values).nbytes for values in places)
        yield tensor.name.decode(), shape, kind, stored, size, _zeros(data, kind, math.prod(shape))


def _zeros(data: npt.NDArray[np.uint8], kind: str, count: int) -> int | None:
    """Returns how many values of a tensor are 0, those that are not stored too."""
    if kind in ("string", "int2", "int4", "uint4"):  # no numbers, or several to a byte
        return None
    return count - int(np.count_nonzero(np.frombuffer(data, kind)))


class _Operator(NamedTuple):
    kind: str  # in words: what it does and how
    channels: int = 0  # of a convolution's kernel
    kernel: str = ""  # the name of the tensor that stores it


def _operators(model: Any, schema: Any) -> Iterator[_Operator]:
    """Yields the operators in the order in which they run."""
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    graph = model.subgraphs[0]
    padded: dict[int, list[int]] = {}  # what a PAD puts around its output
    unpacked: dict[int, int] = {}  # a kernel that DENSIFY makes to the one that is stored
    for operator in graph.operators:
        code, inputs = model.operatorCodes[operator.opcodeIndex], operator.inputs
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        kind = kinds.get(number, f"operator {number}")
        stored = [model.buffers[graph.tensors[i].buffer].data for i in inputs]
        if kind == "DENSIFY":
            unpacked[operator.outputs[0]] = inputs[0]
        if kind == "PAD" and stored[1] is not None:
            # (before, after) of examples, rows, columns, channels, in 4 or 8 bytes each
            sides = np.frombuffer(stored[1], f"i{len(stored[1]) // 8}")[2:6]
            padded[operator.outputs[0]] = sides.tolist()
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            kernel = graph.tensors[unpacked.get(inputs[1], inputs[1])]
            around = padded.get(inputs[0], [0])
            kind += _window(operator.builtinOptions, kernel.shape, around, schema)
            yield _Operator(kind, int(kernel.shape[3]), kernel.name.decode())
            continue
        if kind == "MEAN":
            axes = [] if stored[1] is None else np.frombuffer(stored[1], "i4").tolist()
            kind += "" if sorted(axes) == [1, 2] else " over other axes than rows and columns"
        if kind in ("ADD", "MUL"):
            shapes = [
                graph.tensors[i].shape for i, d in zip(inputs, stored, strict=True) if d is not None
            ]
            if any(math.prod(shape) != max(shape, default=1) for shape in shapes):
                kind += " of an array"
        yield _Operator(kind)


def _window(options: Any, shape: Any, sides: list[int], schema: Any) -> str:
    """Returns a convolution's window, stride and padding in words."""
    _, rows, columns, _ = shape
    stride = f"{options.strideH}x{options.strideW}"
    if options.padding == schema.Padding.SAME:
        # With a stride it may pad one side more, so XNNPACK takes it for uneven.
        sides = [rows // 2, columns // 2] if stride == "1x1" else [0, 1]
    padding = sides[0] if len(set(sides)) == 1 else "uneven"
    words = f" {rows}x{columns}, stride {stride}, padding {padding}"
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        words += ", dilated"
    if getattr(options, "depthMultiplier", 1) != 1:
        words += f", {options.depthMultiplier} outputs a channel"
    return words


def _broken_rule(operators: list[_Operator], tensors: pd.DataFrame) -> str | None:
    """Returns the first rule of sparse inference that a graph breaks, or `None`."""
    if (tensors["stored"] == "dense").all():
        return "no kernel is stored sparse"
    starts = [(one.kind, one.channels) for one in operators]
    if _FIRST not in starts:
        return (
            "it must begin with a 3x3 convolution of stride 2 on 3 channels, padded by 1 on each "
            "side (ZeroPadding2D and padding='valid'; 'same' pads one side)"
        )
    inside = operators[starts.index(_FIRST) + 1 :]
    ends = [place for place, one in enumerate(inside) if one.kind in _LAST]
    if not ends:
        return "it must end with a mean over the image, or with DEPTH_TO_SPACE"
    inside = inside[: ends[-1]]
    foreign = [one.kind for one in inside if one.kind not in (*_INSIDE, "MEAN")]
    if foreign:
        return f"before the mean over the image it may not hold {foreign[0]}"
    names = {one.kernel for one in inside if one.kind.startswith("CONV_2D 1x1")}
    pointwise = tensors[tensors["name"].isin(names)]
    if not pointwise["type"].isin(["float32", "float16"]).all():
        return "its kernels must be floating point"
    share = pointwise["zeros"].sum() / max(1, pointwise["shape"].map(math.prod).sum())
    if share < 2 / 3:
        return f"two thirds of the weights of 1x1 convolutions must be zeros, {share:.0%} are"
    return None
