"""What the commands of `keras-pruning` do."""

import argparse
import contextlib
import math
import os
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import Executor
from numbers import Integral
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_pruning.channels import shrink
from keras_pruning.measuring import (
    compare,
    export_litert,
    inference_file,
    model_to_bytes,
    save_compressed,
    write_whole,
)
from keras_pruning.pruning import (
    check_count,
    count_nonzero,
    prune_units,
    prune_weights,
    summary,
)
from keras_pruning.recovery import KeepZeros, reconstruct
from keras_pruning.studies import SPARSITIES, local_processes, sparsity_sweep

__all__ = [
    "export_model",
    "finetune_model",
    "measure_models",
    "prune_model",
    "summarise_model",
    "sweep_model",
]

_CONNECT_SECONDS = 10
_RANDOM_EXAMPLES = 256


def sweep_model(arguments: argparse.Namespace) -> None:
    """Prints, and writes, accuracy at many sparsities."""
    _check_output(arguments)
    model = _load_model(arguments.model)
    x, y = _load_data(arguments.data, model)
    with (
        _executor(arguments.workers, arguments.scheduler) as executor,
        contextlib.redirect_stdout(sys.stderr),  # the progress bar: the table alone is the output
    ):
        table = sparsity_sweep(
            model,
            x,
            y,
            methods=arguments.methods,
            sparsities=arguments.sparsities or SPARSITIES,
            repeats=arguments.repeats,
            scope=arguments.scope,
            seed=arguments.seed,
            store=arguments.store,
            executor=executor,
        )
    _show(table, arguments.output)


def prune_model(arguments: argparse.Namespace) -> None:
    """Writes a pruned model, and prints the sizes before and after."""
    _check_output(arguments, ".keras")
    model = _load_model(arguments.model)
    prune = prune_weights if arguments.method == "weights" else prune_units
    pruned = prune(model, arguments.sparsity, scope=arguments.scope, layers=arguments.layers)
    if arguments.reconstruct is not None:
        (x,) = _arrays(arguments.reconstruct, ("x",), ("x_train",))
        x = _in_model_shape(x, model, arguments.reconstruct)
        pruned = reconstruct(pruned, model, x, progress=False)
    if arguments.shrink:
        pruned = shrink(pruned)
    if arguments.compress:
        save_compressed(pruned, arguments.output, for_inference=True)
    else:
        write_whole(arguments.output, model_to_bytes(pruned))
    print(_size(arguments.model, model))
    print(_size(arguments.output, pruned))
    if arguments.compress:
        print(f"{arguments.output}: compressed, {arguments.output.stat().st_size:,} bytes")


def finetune_model(arguments: argparse.Namespace) -> None:
    """Trains a model on, its zeros kept, and writes it."""
    _check_output(arguments, ".keras")
    model = _load_model(arguments.model)
    if not model.compiled:
        raise ValueError(f"'{arguments.model}' has no loss to train with: compile() it, save anew.")
    check_count("--epochs", arguments.epochs)
    check_count("--batch-size", arguments.batch_size)
    x, y = _load_data(arguments.data, model, part="train")
    if not len(x):
        raise ValueError(f"'{arguments.data}' holds no examples.")
    if arguments.learning_rate is not None:
        if not 0 < arguments.learning_rate < math.inf:
            raise ValueError(f"--learning-rate must be above 0, not {arguments.learning_rate}.")
        model.optimizer.learning_rate = arguments.learning_rate
    with contextlib.redirect_stdout(sys.stderr):
        print(f"optimizer: {type(model.optimizer).__name__}, as in '{arguments.model}'")
        fitted = model.fit(
            x, y, arguments.batch_size, arguments.epochs, verbose=2, callbacks=[KeepZeros()]
        )
    if not np.isfinite(fitted.history["loss"]).all():
        raise ValueError("The loss is no number any more, so nothing was written: train slower.")
    write_whole(arguments.output, model_to_bytes(model))
    print(_size(arguments.output, model))


def export_model(arguments: argparse.Namespace) -> None:
    """Writes a model for inference as a small file, and prints how it is stored."""
    output = arguments.output
    _check_output(arguments, ".tflite", ".keras")
    if output.suffix == ".keras" and (arguments.int8 or arguments.dense):
        raise ValueError(f"--int8 and --dense are for .tflite files. The output is '{output}'.")
    model = _load_model(arguments.model)
    if output.suffix == ".keras":
        save_compressed(model, output, for_inference=True)
        stored = "compressed"
    else:
        stored = export_litert(
            model, output, sparse=False if arguments.dense else "auto", int8=arguments.int8
        )
    print(_size(arguments.model, model))
    print(f"{output}: {stored}, {output.stat().st_size:,} bytes")


def summarise_model(arguments: argparse.Namespace) -> None:
    """Prints, and writes, a row a layer."""
    _check_output(arguments)
    _show(summary(_load_model(arguments.model)), arguments.output)


def measure_models(arguments: argparse.Namespace) -> None:
    """Prints models side by side, and writes a row a model."""
    _check_output(arguments)
    models = {str(path): _load_model(path) for path in arguments.models}
    first = next(iter(models.values()))
    if arguments.data is None:
        x, y = _random_inputs(first), None
        print(f"No --data: {len(x)} random inputs, no accuracy.", file=sys.stderr)
    else:
        x, y = _load_data(arguments.data, first)
    table = compare(models, x, y, batch_sizes=arguments.batch_sizes)
    _write(table, arguments.output)
    print(_readable(table.set_index("model")).T.to_string())


def _show(table: pd.DataFrame, output: Path | None) -> None:
    _write(table, output)
    print(_readable(table).to_string(index=False))


def _write(table: pd.DataFrame, output: Path | None) -> None:
    if output is not None:
        write_whole(output, table.to_csv(index=False).encode())


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table as text: thousands apart, no column that is empty."""

    def text(value: Any) -> str:
        if isinstance(value, str | bool | np.bool_ | tuple | list):
            return str(value)
        if pd.isna(value):
            return ""
        return f"{value:,}" if isinstance(value, Integral) else f"{value:.4g}"

    return table.dropna(axis=1, how="all").map(text)


def _size(path: Path, model: keras.Model) -> str:
    nonzero = sum(map(count_nonzero, model.get_weights()))
    return (
        f"{path}: {model.count_params():,} parameters, {nonzero:,} of them not zero, "
        f"{len(inference_file(model)):,} bytes without the optimizer"
    )


def _check_output(arguments: argparse.Namespace, *endings: str) -> None:
    """Refuses, before any work, to replace a file or to write where there is no folder."""
    path = arguments.output
    if path is None:
        return
    if endings and path.suffix not in endings:
        raise ValueError(f"The name of the output must end in {' or '.join(endings)}: '{path}'.")
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder '{path.parent}' for '{path.name}': make it first.")
    if os.path.lexists(path) and not arguments.force:
        raise ValueError(f"'{path}' exists. Give another name, or --force to replace it.")


def _load_model(path: Path) -> keras.Model:
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"'{path}' is no .keras file: model.save('model.keras') writes one.")
    try:
        return keras.saving.load_model(path)
    except Exception as error:  # each kind of damage has an error of its own
        raise ValueError(f"'{path}' cannot be loaded: {error}") from error


def _load_data(name: str, model: keras.Model, part: str = "test") -> tuple[Any, Any]:
    """Returns x and y; x in the model's input shape where only axes of length one differ."""
    if name.endswith(".npz"):
        x, y = _arrays(Path(name), ("x", "y"), (f"x_{part}", f"y_{part}"))
    else:
        x, y = _from_tfds(name, part)
    return _in_model_shape(x, model, name), y


def _in_model_shape(x: Any, model: keras.Model, name: str | Path) -> Any:
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or None in shape[1:]:
        return x
    without_ones = [n for n in x.shape[1:] if n != 1], [n for n in shape[1:] if n != 1]
    if without_ones[0] != without_ones[1]:
        raise ValueError(
            f"The inputs of '{name}' have the shape {x.shape[1:]}, the model takes {shape[1:]}."
        )
    return x.reshape(len(x), *shape[1:])


def _arrays(path: Path, *choices: tuple[str, ...]) -> tuple[Any, ...]:
    """Returns the arrays of a file under the first of the names that it has."""
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' is no .npz file of arrays: {error}") from error
    for names in choices:
        if all(name in arrays for name in names):
            return tuple(arrays[name] for name in names)
    wanted = ", or ".join(" and ".join(names) for names in choices)
    raise ValueError(f"'{path}' must hold the arrays {wanted}. It holds: {sorted(arrays)}")


def _from_tfds(name: str, part: str) -> tuple[Any, Any]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"'{name}' is no .npz file, and data sets need: pip install tensorflow-datasets"
        ) from error
    try:
        read = tfds.load(name, split=part, as_supervised=True, batch_size=-1, download=False)
    except Exception as error:  # of many kinds: unknown, not prepared, without this part
        raise ValueError(
            f"TensorFlow Datasets has prepared no data set '{name}' with a {part} part: give a "
            f'.npz file, or prepare it with python -c "import tensorflow_datasets as tfds; '
            f"tfds.load('{name}')\". It says: {str(error).strip().splitlines()[0]}"
        ) from error
    x, y = tfds.as_numpy(read)
    return x, y


def _random_inputs(model: keras.Model) -> Any:
    if len(model.inputs) != 1 or None in model.inputs[0].shape[1:]:
        raise ValueError("The model takes several inputs, or of any size: give --data.")
    rng = np.random.default_rng(0)
    uniform = rng.random((_RANDOM_EXAMPLES, *model.inputs[0].shape[1:]), np.float32)
    dtype = keras.backend.standardize_dtype(model.inputs[0].dtype)
    return uniform if "float" in dtype else (255 * uniform).astype(dtype)


@contextlib.contextmanager
def _executor(workers: int | None, scheduler: str | None) -> Iterator[Executor | None]:
    if workers is not None:
        with local_processes(workers) as pool:
            yield pool
    elif scheduler is not None:
        with _dask_client(scheduler) as client:
            yield client.get_executor()
    else:
        yield None


def _dask_client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError('--scheduler needs Dask: pip install "keras-pruning[cluster]"') from error
    try:
        return Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No Dask scheduler answers at '{address}': start one with dask scheduler, or give "
            f"--workers instead. Dask says: {error}"
        ) from error
