"""The command line, for work without a notebook: `keras-pruning --help`.

Keras, which takes seconds to import, is left until a command is to run: see `commands`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_pruning import import_with_keras

__all__ = ["main"]

_PROGRAM = "keras-pruning"
_EXAMPLES = (
    "summary model.keras -o layers.csv",
    "prune model.keras --method weights --sparsity 0.9 -o sparse.keras",
    "prune model.keras --method units --sparsity 0.8 --reconstruct train.npz --shrink "
    "-o small.keras",
    "prune model.keras --method weights --sparsity 0.5 --layers dense_1 dense_2 -o part.keras",
    "finetune sparse.keras --data train.npz --epochs 2 -o tuned.keras",
    "export tuned.keras -o model.tflite",
    "export tuned.keras -o small.keras",
    "measure model.keras --data test.npz",
    "measure model.keras small.keras --batch-sizes 1 32",
    "sweep model.keras --data mnist",
    "sweep model.keras --data test.npz --methods units random_units --repeats 5 --workers 4",
    "sweep model.keras --data test.npz --scheduler tcp://host:8786 --store results -o sweep.csv",
)
_DATA_HELP = (
    "a .npz file with the arrays x and y (or x_{0} and y_{0}), or the name of a data set "
    "that TensorFlow Datasets has prepared, such as mnist, of which the {0} part is taken"
)
_LAYERS_HELP = "names, as summary prints them; default: all that it does not print as spared"
_STORE_HELP = "folder that keeps each finished point: a sweep that was stopped goes on from there"
_METHODS = ("weights", "units", "random_weights", "random_units")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        0, or 1 if the work failed, 2 if the input cannot be used, 130 at Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes, also of workers
    try:
        commands = import_with_keras("commands")
        getattr(commands, arguments.command)(arguments)
    except KeyboardInterrupt as stop:
        return _complain("stopped.", stop, 130)
    except (ImportError, TypeError, ValueError) as error:
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
        epilog=_examples(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: str, name: str, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=_examples(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command)
        return added

    _sweep_arguments(add("sweep_model", "sweep", "accuracy at many sparsities"))
    _prune_arguments(add("prune_model", "prune", "write a pruned model"))
    about = "train a pruned model on, its zeros kept"
    _finetune_arguments(add("finetune_model", "finetune", about))
    about = "write a small file for inference: LiteRT, or .keras compressed and without optimizer"
    _export_arguments(add("export_model", "export", about))
    about = "a row a layer: weights, zeros, units"
    _output_arguments(_model_argument(add("summarise_model", "summary", about)), "CSV file")
    about = (
        "accuracy (a share), parameters, multiply-adds, bytes of the file without the optimizer, "
        "and milliseconds of models"
    )
    _measure_arguments(add("measure_models", "measure", about))
    return parser


def _examples(command: str = "") -> str:
    lines = [f"  {_PROGRAM} {line}" for line in _EXAMPLES if line.startswith(command)]
    return "\n".join(["examples:", *lines])


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
    parser.add_argument("--data", required=True, help=_DATA_HELP.format("test"))
    parser.add_argument("--methods", nargs="+", choices=_METHODS, default=_METHODS[:3])
    parser.add_argument(
        "--sparsities", nargs="+", type=float, metavar="SHARE", help="0 to 1 each; default: ten"
    )
    parser.add_argument("--repeats", type=int, default=1, help="of the random methods")
    parser.add_argument("--scope", choices=("layer", "global", "unit"), default="layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help=_STORE_HELP)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="processes on this machine, of a thread each")
    where.add_argument("--scheduler", help="address of a Dask scheduler, tcp://host:8786")


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    _output_arguments(_model_argument(parser), ".keras file", required=True)
    parser.add_argument("--method", choices=("weights", "units"), required=True)
    parser.add_argument("--sparsity", type=float, required=True, help="share to prune, 0 to 1")
    parser.add_argument("--scope", choices=("layer", "global", "unit"), default="layer")
    parser.add_argument("--layers", nargs="+", help=_LAYERS_HELP)
    parser.add_argument(
        "--reconstruct",
        metavar="DATA",
        type=Path,
        help=".npz file with x, or x_train: inputs to which what is left is refitted, without "
        "labels; some thousand are enough",
    )
    parser.add_argument("--shrink", action="store_true", help="remove the pruned units")
    parser.add_argument(
        "--compress", action="store_true", help="pack the file, without the optimizer"
    )


def _finetune_arguments(parser: argparse.ArgumentParser) -> None:
    _output_arguments(_model_argument(parser), ".keras file", required=True)
    parser.add_argument("--data", required=True, help=_DATA_HELP.format("train"))
    parser.add_argument("--epochs", type=int, default=1, metavar="N")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument(
        "--learning-rate", type=float, help="of the file's optimizer (a compressed file has SGD)"
    )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _output_arguments(_model_argument(parser), ".tflite or .keras file", required=True)
    parser.add_argument("--int8", action="store_true", help="allow kernels of 8-bit numbers")
    parser.add_argument("--dense", action="store_true", help="store no kernel sparse")


def _measure_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", type=Path, nargs="+", help=".keras files")
    parser.add_argument(
        "--data", help=f"{_DATA_HELP.format('test')}; without it, random inputs and no accuracy"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1, 256), metavar="N")
    _output_arguments(parser, "CSV file")


if __name__ == "__main__":
    sys.exit(main())
