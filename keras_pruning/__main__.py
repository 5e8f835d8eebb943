"""The command line, for work without a notebook: `python -m keras_pruning --help`."""

import argparse
import contextlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for the workers: here Keras is imported

import keras
import numpy as np
import pandas as pd

from keras_pruning.masks import count_nonzero
from keras_pruning.measure import compare
from keras_pruning.prune import prune_units, prune_weights
from keras_pruning.shrink import shrink
from keras_pruning.store import write_whole
from keras_pruning.summary import summary
from keras_pruning.sweep import METHODS, SPARSITIES, sparsity_sweep
from keras_pruning.workers import local_processes, model_to_bytes

__all__ = ["main"]

_PROGRAM = "python -m keras_pruning"
_EXAMPLES = """examples:
  {0} summary model.keras
  {0} prune model.keras --method units --sparsity 0.8 --shrink -o small.keras
  {0} measure model.keras small.keras --data mnist
  {0} sweep model.keras --data test.npz --store results -o sweep.csv
"""
_SWEEP_EXAMPLES = """examples:
  {0} sweep model.keras --data mnist
  {0} sweep model.keras --data test.npz --methods units random_units --repeats 5 --workers 4
  {0} sweep model.keras --data test.npz --scheduler tcp://host:8786 --store results -o sweep.csv

With --store, a sweep that was stopped goes on where it was: run the same command again.
"""
_PRUNE_EXAMPLES = """examples:
  {0} prune model.keras --method weights --sparsity 0.9 -o sparse.keras
  {0} prune model.keras --method units --sparsity 0.8 --shrink -o small.keras
  {0} prune model.keras --method weights --sparsity 0.5 --layers dense_1 dense_2 -o part.keras
"""
_SUMMARY_EXAMPLES = """examples:
  {0} summary model.keras
  {0} summary model.keras -o layers.csv
"""
_MEASURE_EXAMPLES = """examples:
  {0} measure model.keras --data test.npz
  {0} measure model.keras small.keras --batch-sizes 1 32
"""
_DATA_HELP = (
    "a .npz file with the arrays x and y (or x_test and y_test), or the name of a data set "
    "that TensorFlow Datasets has prepared, such as mnist, of which the test part is taken"
)
_CONNECT_SECONDS = 10
_RANDOM_EXAMPLES = 256


class _InputError(Exception):
    """Something that the user gave cannot be used; the message says what and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        0, or 1 if the work failed, 2 if the input cannot be used, 130 at Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except KeyboardInterrupt as stop:
        return _complain("stopped.", stop, 130)
    except (_InputError, TypeError, ValueError) as error:
        return _complain(f"error: {error}", error, 2)
    except Exception as error:  # of a worker, of the disk: whatever it is, it ends the work
        return _complain(f"failed: {type(error).__name__}: {error}", error, 1)
    return 0


def _complain(message: str, error: BaseException, code: int) -> int:
    lines = [f"keras_pruning: {message}", *getattr(error, "__notes__", [])]
    print("\n".join(lines), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Prune Keras models, measure them, and sweep over sparsities.",
        epilog=_EXAMPLES.format(_PROGRAM),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        command: Callable[[argparse.Namespace], None], name: str, about: str, examples: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=examples.format(_PROGRAM),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command)
        return added

    _sweep_arguments(add(_sweep, "sweep", "accuracy at many sparsities", _SWEEP_EXAMPLES))
    _prune_arguments(add(_prune, "prune", "write a pruned model", _PRUNE_EXAMPLES))
    about = "a row a layer: weights, zeros, units"
    _output_arguments(
        _model_argument(add(_summary, "summary", about, _SUMMARY_EXAMPLES)), "CSV file"
    )
    about = "accuracy, parameters, multiply-adds, bytes and milliseconds of models"
    _measure_arguments(add(_measure, "measure", about, _MEASURE_EXAMPLES))
    return parser


def _model_argument(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("model", type=Path, help="a .keras file")
    return parser


def _output_arguments(
    parser: argparse.ArgumentParser, kind: str, *, required: bool = False
) -> argparse.ArgumentParser:
    parser.add_argument("-o", "--output", type=Path, required=required, help=f"{kind} to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    return parser


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    _output_arguments(_model_argument(parser), "CSV file")
    parser.add_argument("--data", required=True, help=_DATA_HELP)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:3])
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES, metavar="SHARE")
    parser.add_argument("--repeats", type=int, default=1, help="of the random methods")
    parser.add_argument("--scope", choices=("layer", "global"), default="layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="folder that keeps each finished point")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="processes on this machine, of a thread each")
    where.add_argument("--scheduler", help="address of a Dask scheduler, tcp://host:8786")


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    _output_arguments(_model_argument(parser), ".keras file", required=True)
    parser.add_argument("--method", choices=("weights", "units"), required=True)
    parser.add_argument("--sparsity", type=float, required=True, help="share to prune, 0 to 1")
    parser.add_argument("--scope", choices=("layer", "global"), default="layer")
    parser.add_argument("--layers", nargs="+", help="default: all but the output layer")
    parser.add_argument("--shrink", action="store_true", help="remove the pruned units")


def _measure_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", type=Path, nargs="+", help=".keras files")
    parser.add_argument("--data", help=f"{_DATA_HELP}; without it, random inputs and no accuracy")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1, 256), metavar="N")
    _output_arguments(parser, "CSV file")


def _sweep(arguments: argparse.Namespace) -> None:
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
            sparsities=arguments.sparsities,
            repeats=arguments.repeats,
            scope=arguments.scope,
            seed=arguments.seed,
            store=arguments.store,
            executor=executor,
        )
    _show(table, arguments.output)


def _prune(arguments: argparse.Namespace) -> None:
    _check_output(arguments)
    if arguments.output.suffix != ".keras":
        raise _InputError(f"The name of the output must end in .keras: '{arguments.output}'.")
    model = _load_model(arguments.model)
    prune = prune_weights if arguments.method == "weights" else prune_units
    pruned = prune(model, arguments.sparsity, scope=arguments.scope, layers=arguments.layers)
    if arguments.shrink:
        pruned = shrink(pruned)
    content = model_to_bytes(pruned)
    write_whole(arguments.output, content)
    print(_size(arguments.model, model, arguments.model.stat().st_size))
    print(_size(arguments.output, pruned, len(content)))


def _summary(arguments: argparse.Namespace) -> None:
    _check_output(arguments)
    _show(summary(_load_model(arguments.model)), arguments.output)


def _measure(arguments: argparse.Namespace) -> None:
    _check_output(arguments)
    models = {str(path): _load_model(path) for path in arguments.models}
    first = next(iter(models.values()))
    if arguments.data is None:
        x, y = _random_inputs(first), None
        print(f"No --data: {len(x)} random inputs, no accuracy.", file=sys.stderr)
    else:
        x, y = _load_data(arguments.data, first)
    table = compare(models, x, y, batch_sizes=arguments.batch_sizes)
    if arguments.output is not None:
        write_whole(arguments.output, table.to_csv(index=False).encode())
    print(table.set_index("model").map(_readable).T.to_string())


def _show(table: pd.DataFrame, output: Path | None) -> None:
    if output is not None:
        write_whole(output, table.to_csv(index=False).encode())
    print(table.to_string(index=False))


def _readable(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _size(path: Path, model: keras.Model, size: int) -> str:
    nonzero = sum(map(count_nonzero, model.get_weights()))
    return (
        f"{path}: {model.count_params():,} parameters, {nonzero:,} of them not zero, "
        f"{size / 1e6:.2f} MB"
    )


def _check_output(arguments: argparse.Namespace) -> None:
    """Refuses, before any work, to replace a file or to write where there is no folder."""
    path = arguments.output
    if path is None:
        return
    if not path.parent.is_dir():
        raise _InputError(f"There is no folder '{path.parent}' for '{path.name}': make it first.")
    if path.exists() and not arguments.force:
        raise _InputError(f"'{path}' exists. Give another name, or --force to replace it.")


def _load_model(path: Path) -> keras.Model:
    if not path.is_file():
        raise _InputError(f"There is no file '{path}'.")
    if not zipfile.is_zipfile(path):
        raise _InputError(f"'{path}' is no .keras file: model.save('model.keras') writes one.")
    try:
        return keras.saving.load_model(path)
    except Exception as error:  # each kind of damage has an error of its own
        raise _InputError(f"'{path}' cannot be loaded: {error}") from error


def _load_data(name: str, model: keras.Model) -> tuple[Any, Any]:
    """Returns x and y; x in the model's input shape where only axes of length one differ."""
    x, y = _from_npz(Path(name)) if name.endswith(".npz") else _from_tfds(name)
    shape = getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and None not in shape[1:]:
        without_ones = [n for n in x.shape[1:] if n != 1], [n for n in shape[1:] if n != 1]
        if without_ones[0] != without_ones[1]:
            raise _InputError(
                f"The inputs of '{name}' have the shape {x.shape[1:]}, the model takes {shape[1:]}."
            )
        x = x.reshape(len(x), *shape[1:])
    return x, y


def _from_npz(path: Path) -> tuple[Any, Any]:
    if not path.is_file():
        raise _InputError(f"There is no file '{path}'.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _InputError(f"'{path}' is no .npz file of arrays: {error}") from error
    for x, y in (("x", "y"), ("x_test", "y_test")):
        if x in arrays and y in arrays:
            return arrays[x], arrays[y]
    raise _InputError(
        f"'{path}' must hold the arrays x and y, or x_test and y_test. It holds: {sorted(arrays)}"
    )


def _from_tfds(name: str) -> tuple[Any, Any]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise _InputError(
            f"'{name}' is no .npz file, and data sets need: pip install tensorflow-datasets"
        ) from error
    try:
        read = tfds.load(name, split="test", as_supervised=True, batch_size=-1, download=False)
    except Exception as error:  # of many kinds: unknown, not prepared, without a test part
        raise _InputError(
            f"TensorFlow Datasets has prepared no data set '{name}' with a test part: give a "
            f'.npz file, or prepare it with python -c "import tensorflow_datasets as tfds; '
            f"tfds.load('{name}')\". It says: {str(error).strip().splitlines()[0]}"
        ) from error
    x, y = tfds.as_numpy(read)
    return x, y


def _random_inputs(model: keras.Model) -> Any:
    if len(model.inputs) != 1 or None in model.inputs[0].shape[1:]:
        raise _InputError("The model takes several inputs, or of any size: give --data.")
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
        raise _InputError("--scheduler needs Dask: pip install distributed") from error
    try:
        return Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise _InputError(
            f"No Dask scheduler answers at '{address}': start one with dask scheduler, or give "
            f"--workers instead. Dask says: {error}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
