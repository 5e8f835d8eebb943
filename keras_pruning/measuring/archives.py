"""Models as `.keras` files: whole or not at all, and as small as a zip archive can be."""

import io
import os
import shutil
import tempfile
import uuid
import warnings
import zipfile
from pathlib import Path

import keras

from keras_pruning.models import compile_for_inference, copy_for_inference, kernel_layers

__all__ = ["UNFINISHED", "inference_file", "model_to_bytes", "save_compressed", "write_whole"]

UNFINISHED = ".unfinished"  # ends the name of a file that is being written


def save_compressed(
    model: keras.Model, path: str | os.PathLike[str], *, for_inference: bool = False
) -> int:
    """Writes the model's `.keras` file with its weights packed, and returns its bytes.

    Keras writes such a file as a zip archive and packs nothing in it. Packed it holds the
    same, and without 90 % of the weights it is about an eighth as large.
    `keras.saving.load_model` opens it as it is, without this library. The file appears at
    `path` only once it is complete.

    Args:
        model: A built Keras model.
        path: The file, its name ending in ".keras".
        for_inference: Whether to leave out the optimizer and its state: twice the weights
            if it is Adam.

    Returns:
        Size of the file, in bytes.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built, or the path ends otherwise.
        OSError: If the file cannot be written; an older one is left as it was.

    Examples:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_compressed(model, f"{folder}/model.keras")
        ...     again = keras.saving.load_model(f"{folder}/model.keras")
        >>> again.count_params()
        27
    """
    kernel_layers(model)  # raises unless this is a built Keras model
    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"The path of a Keras file must end in '.keras'. Received: '{path}'")
    content = _packed(model_to_bytes(model, for_inference=for_inference))
    write_whole(path, content)
    return len(content)


def model_to_bytes(model: keras.Model, *, for_inference: bool = False) -> bytes:
    """Returns the content of the model's `.keras` file.

    Args:
        model: A built Keras model.
        for_inference: Whether to leave out the optimizer and its state.
    """
    if for_inference:
        source, model = model, copy_for_inference(model)
        compile_for_inference(model, source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        with warnings.catch_warnings():
            # An optimizer that has made no step has no state to save: Keras warns of it.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            model.save(path)
        return path.read_bytes()


def inference_file(model: keras.Model) -> bytes:
    """Returns the content of the `.keras` file without compile and optimizer state."""
    return model_to_bytes(copy_for_inference(model) if model.compiled else model)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that nobody ever sees a part of it under its name.

    One that is there already keeps its permissions; a link stays, and what it points to is written.
    """
    path = Path(os.path.realpath(path))
    unfinished = path.with_name(f"{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file of this name
        if path.exists():
            shutil.copymode(path, unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _packed(archive: bytes) -> bytes:
    """Returns a zip archive of the same members, each of them deflated.

    Packed by bzip2 it would be a fifth smaller, but some builds of Python cannot open that.
    """
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()
