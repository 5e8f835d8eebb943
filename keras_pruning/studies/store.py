"""Results on disk: one small CSV file a finished task, there as a whole or not at all.

A file starts with two comment lines, the SHA-256 of all that follows and a JSON object (the
task's parameters, the versions it ran with, the columns' types); the table follows. It is
written under another name and renamed, so that a killed process leaves no half of it.
"""

import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import pandas_dtype

from keras_pruning.measuring import UNFINISHED

__all__ = [
    "decode_result",
    "encode_result",
    "load_results",
    "open_store",
    "read_result",
    "set_aside",
    "task_path",
]

Parameters = Mapping[str, Any]  # what tells one task from others: names to what JSON can hold

_SUFFIX = ".csv"
_STALE_SECONDS = 3600  # an unfinished file this old belongs to a process that was killed
_PACKAGES = ("keras", "numpy", "pandas", "tensorflow", "jax", "torch")
_FIRST_LINE = "# keras_pruning result, SHA-256 of what follows: "


def load_results(store: str | os.PathLike[str]) -> pd.DataFrame:
    """Returns all finished results of a store as one tidy table.

    Args:
        store: Folder that `sparsity_sweep` or `experiment` was given as `store`.

    Returns:
        DataFrame, the rows of all tasks: first those of the tasks' parameters that are no
        column of the results, then the results. Ordered by the parameters.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If no result is finished in it.

    Examples:
        >>> import tempfile
        >>> import keras
        >>> import numpy as np
        >>> from keras_pruning import sparsity_sweep
        >>> model = keras.Sequential([keras.Input((8,)), *map(keras.layers.Dense, (10, 3))])
        >>> model.compile("sgd", "mse")
        >>> data = np.ones((16, 8)), np.ones((16, 3))
        >>> options = {"methods": ["units"], "sparsities": [0, 0.5], "progress": False}
        >>> with tempfile.TemporaryDirectory() as store:
        ...     _ = sparsity_sweep(model, *data, **options, store=store)
        ...     table = load_results(store)
        >>> table["sparsity_measured"].tolist()
        [0.0, 0.5]
    """
    folder = Path(store)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no store '{folder}': it is made by a first run.")
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        content = _read_whole(path)
        if content is not None:
            parameters, table = content
            missing = {key: value for key, value in parameters.items() if key not in table}
            for place, (key, value) in enumerate(missing.items()):
                table.insert(place, key, [value] * len(table))
            found.append((_sort_key(parameters), table))
    if not found:
        raise ValueError(f"The store '{folder}' holds no finished result.")
    found.sort(key=lambda pair: pair[0])
    return pd.concat([table for _, table in found], ignore_index=True)


def open_store(store: str | os.PathLike[str]) -> Path:
    """Returns the store's folder, made if need be, without what killed processes left in it.

    Raises:
        NotADirectoryError: If a file has this name.
        PermissionError: If the folder cannot be written to.
    """
    folder = Path(store)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"store='{folder}' is a file: give the name of a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"Results cannot be written to the folder store='{folder}'.")
    for path in folder.glob(f"*{UNFINISHED}"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:  # another process was faster
            continue
    return folder


def task_path(folder: Path, parameters: Parameters, suffix: str = _SUFFIX) -> Path:
    """Returns where the result of a task is kept: a name to read, and a hash that tells it apart.

    Raises:
        TypeError: If a parameter is nothing that JSON can hold.
    """
    canonical = _to_json(parameters)
    values = (str(value) for value in parameters.values() if isinstance(value, str | int | float))
    words = (value for value in values if ":" not in value)  # no names of functions
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(words))[:80]
    return folder / f"{readable}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}{suffix}"


def read_result(path: Path, parameters: Parameters) -> pd.DataFrame | None:
    """Returns the table of a finished task, or `None` if it is not finished.

    A damaged file is renamed, with a warning, and counts as not finished.
    """
    content = _read_whole(path)
    if content is None:
        return None
    known, table = content
    if _to_json(known) != _to_json(parameters):
        raise ValueError(f"'{path}' holds the result of another task: {known}.")
    return table


def encode_result(parameters: Parameters, table: pd.DataFrame) -> bytes:
    """Returns the content of a task's file."""
    about = {
        "parameters": dict(parameters),
        "versions": _versions(),
        "types": {name: str(dtype) for name, dtype in table.dtypes.items()},
    }
    rows = table.to_csv(index=False, lineterminator="\n")
    body = f"# {json.dumps(about)}\n{rows}".encode()
    return f"{_FIRST_LINE}{hashlib.sha256(body).hexdigest()}\n".encode() + body


def decode_result(content: bytes) -> tuple[dict[str, Any], pd.DataFrame]:
    """Returns the parameters and the table of a task's file.

    Raises:
        ValueError: If the content is damaged.
    """
    first, _, body = content.partition(b"\n")
    digest = first.removeprefix(_FIRST_LINE.encode())
    if digest != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("the content is not what its checksum says")
    second, _, rows = body.partition(b"\n")
    about = json.loads(second.removeprefix(b"# "))
    cells = pd.read_csv(io.BytesIO(rows), dtype=object, keep_default_na=False)
    columns = {name: _typed(cells[name], dtype) for name, dtype in about["types"].items()}
    return about["parameters"], pd.DataFrame(columns)


def _typed(cells: Iterable[str], dtype: str) -> pd.Series:
    """Returns a column; Python reads floats to the last digit, which not every pandas does."""
    parsers: dict[str, Callable[[str], Any]] = {"f": float, "i": int, "u": int, "b": "True".__eq__}
    parse = parsers.get(pandas_dtype(dtype).kind, str)
    return pd.Series([None if cell == "" else parse(cell) for cell in cells], dtype=dtype)


def set_aside(path: Path, reason: object) -> None:
    """Renames a damaged file, with a warning; its task will be run again."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another process was faster
        return
    warnings.warn(
        f"'{path}' is damaged ({reason}). It was renamed to '{aside.name}', and its task will "
        "be run again.",
        stacklevel=2,
    )


def _read_whole(path: Path) -> tuple[dict[str, Any], pd.DataFrame] | None:
    try:
        return decode_result(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        set_aside(path, error)
        return None


def _to_json(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"A task's parameters must be strings, numbers, booleans or None: {error}. "
            f"Received: {dict(content)}"
        ) from error


def _sort_key(parameters: Parameters) -> list[tuple[str, str, float]]:
    """Orders numbers as numbers, whatever stands in their place in another task."""
    return [
        (name, "", value) if _is_number(value) else (name, _to_json({"": value}), 0)
        for name, value in parameters.items()
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@functools.lru_cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
