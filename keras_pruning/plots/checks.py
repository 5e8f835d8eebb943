"""Errors that name the argument, and say what was expected, before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_columns", "check_frame", "check_mapping", "check_share", "check_shares"]


def check_columns(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise an error unless the table has columns of these names."""
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"table lacks the columns {missing}; it has {list(table.columns)}.")


def check_frame(table: Any, name: str = "table") -> None:
    """Raise an error unless it is a table that is not empty."""
    if not hasattr(table, "columns"):
        raise TypeError(f"{name} must be a pandas DataFrame, received {type(table).__name__}.")
    if 0 in table.shape:
        raise ValueError(f"{name} is empty: its shape is {table.shape}. There is nothing to draw.")


def check_mapping(value: Any, name: str) -> None:
    """Raise an error unless it is a mapping that is not empty."""
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a mapping such as a dict from name to value, "
            f"received {type(value).__name__}."
        )
    if not value:
        raise ValueError(f"{name} is empty: there is nothing to draw.")


def check_share(name: str, value: float) -> None:
    """Raise an error unless the value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], received {value}.")


def check_shares(name: str, values: np.ndarray) -> None:
    """Raise an error unless all values lie in [0, 1]."""
    wrong = values[~((values >= 0) & (values <= 1))]  # written so that NaN is wrong too
    if wrong.size:
        raise ValueError(
            f"{name} must lie in [0, 1], received {wrong.flat[0]}. Divide percents by 100; drop "
            "rows without a measurement."
        )
