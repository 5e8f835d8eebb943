"""No network, a bad network, a bad disk: each ends in the data or in a clear sentence.

TFDS downloads from a server on this computer that answers as real ones do on a bad day. It
serves small files in MNIST's own format, whose checksums TFDS is told.
"""

import errno
import gzip
import hashlib
import http.server
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pruning_utils as pu

SIZES = {"train": 30, "t10k": 20}
LIMIT_SECONDS = 10.0


def idx_file(values: np.ndarray) -> bytes:
    """An array of uint8 as MNIST's files have it: a header of big-endian sizes, then the bytes."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return gzip.compress(header + values.tobytes())


def mnist_files() -> dict[str, bytes]:
    files = {}
    for part, size in SIZES.items():
        images = np.random.default_rng(size).integers(0, 256, (size, 28, 28)).astype(np.uint8)
        files[f"/{part}-images-idx3-ubyte.gz"] = idx_file(images)
        files[f"/{part}-labels-idx1-ubyte.gz"] = idx_file((np.arange(size) % 10).astype(np.uint8))
    return files


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves files as `server.mode` says; the images of the training part are the ill ones."""

    def do_HEAD(self):
        if self.server.mode == "silent":
            self.server.released.wait(2 * LIMIT_SECONDS)  # not for ever: the test is to fail
        self.reply(b"")

    def do_GET(self):
        content, mode = self.server.files[self.path], self.server.mode
        self.server.asked.append(self.path)
        if "train-images" not in self.path or mode == "well":
            self.reply(content)
        elif mode == "refuses":
            self.send_error(503)
        elif mode == "wrong file":
            self.reply(b"<html>Log in to the network of this hotel</html>")
        else:  # "cut": half of what was announced
            self.reply(content[: len(content) // 2], announced=len(content))

    def reply(self, content: bytes, announced: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(announced or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """The server, which TFDS takes for the source of MNIST."""
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.image_classification import mnist

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.mode, server.files, server.asked = "well", mnist_files(), []
    server.released = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    infos = {
        url + name[1:]: UrlInfo(
            size=len(content),
            checksum=hashlib.sha256(content).hexdigest(),
            filename=name[1:],
        )
        for name, content in server.files.items()
    }
    monkeypatch.setattr(mnist.MNIST, "URL", url)
    monkeypatch.setattr(mnist.MNIST, "url_infos", infos)
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", SIZES["train"])
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", SIZES["t10k"])
    monkeypatch.setattr(downloader, "MAX_RETRIES", 1)  # its ten would take minutes
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def data_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def assert_loaded() -> None:
    data = pu.load_dataset("mnist")
    expected = np.random.default_rng(SIZES["train"]).integers(0, 256, (SIZES["train"], 28, 28))
    order = np.lexsort(data.x_train.reshape(SIZES["train"], -1).T)  # TFDS shuffles once
    expected_order = np.lexsort(expected.reshape(SIZES["train"], -1).T)
    np.testing.assert_array_equal(data.x_train[order], expected[expected_order])
    np.testing.assert_array_equal(data.y_train[order], expected_order % 10)
    assert len(data.x_test) == SIZES["t10k"]


def refusal() -> str:
    """The message of the error that loading ends in, which must come in time."""
    start = time.monotonic()
    with pytest.raises(pu.DataUnavailableError) as caught:
        pu.load_dataset("mnist")
    assert time.monotonic() - start < LIMIT_SECONDS
    return str(caught.value)


def test_a_good_network_gives_the_data(server, data_dir):
    assert_loaded()


def test_prepared_data_need_no_network(server, data_dir, monkeypatch):
    assert_loaded()
    server.asked.clear()
    server.mode = "silent"
    start = time.monotonic()
    assert_loaded()
    assert time.monotonic() - start < LIMIT_SECONDS
    assert server.asked == []


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("cut", "IncompleteRead"),
        ("refuses", "503 error responses"),
        ("wrong file", "NonMatchingChecksumError"),
    ],
)
def test_a_bad_download_is_told_and_mended_by_a_later_run(server, data_dir, mode, reason):
    server.mode = mode
    message = refusal()
    assert message.startswith(f"MNIST in {data_dir / 'mnist' / '3.0.1'} could not be downloaded (")
    assert reason in message
    assert "Connect to the internet and try again" in message
    assert not (data_dir / "mnist" / "3.0.1").exists()
    server.mode = "well"
    server.asked.clear()
    assert_loaded()
    assert "/train-images-idx3-ubyte.gz" in server.asked


def test_what_was_downloaded_whole_is_not_downloaded_again(server, data_dir):
    server.mode = "cut"
    refusal()
    server.mode = "well"
    server.asked.clear()
    assert_loaded()
    assert server.asked == ["/train-images-idx3-ubyte.gz"]


def test_the_tutorial_goes_on_with_digits_when_a_server_is_silent(server, data_dir, capsys):
    server.mode = "silent"
    start = time.monotonic()
    [data] = pu.load_datasets(["mnist"])
    assert time.monotonic() - start < LIMIT_SECONDS
    assert data.name == "digits"
    assert "goes on with scikit-learn's digits" in capsys.readouterr().out


def test_leftovers_of_a_killed_run_are_no_hindrance(server, data_dir):
    leftover = data_dir / "mnist" / "incomplete.ABCDEF_3.0.1"
    leftover.mkdir(parents=True)
    (leftover / "mnist-train.tfrecord-00000-of-00001").write_bytes(b"half")
    assert_loaded()


# ---- disks


@pytest.fixture
def mount(tmp_path) -> Iterator:
    """Mounts small file systems in memory, where that is allowed."""
    mounted = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        # Lazily: a file that an error's traceback still holds open makes the disk busy for a while.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("options", ["ro", "size=8k", "size=40k"])
def test_a_read_only_or_full_disk_is_told_in_time(server, mount, monkeypatch, options):
    disk = mount(options)
    monkeypatch.setenv("TFDS_DATA_DIR", str(disk))
    message = refusal()
    assert str(disk) in message
    assert any(text in message for text in ("Read-only file system", "No space", "disk space"))
    assert not (disk / "mnist" / "3.0.1").exists()


def test_a_disk_that_fills_up_while_the_data_are_prepared_is_told(server, data_dir, monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(mnist, "_extract_mnist_images", full)
        message = refusal()
    assert "No space left on device" in message
    assert not (data_dir / "mnist" / "3.0.1").exists()
    assert_loaded()


def test_a_folder_that_cannot_be_made_is_told_in_time(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file" / "data"))
    assert str(tmp_path / "file" / "data") in refusal()


def test_prepared_data_on_a_read_only_disk_are_read(server, data_dir, mount, monkeypatch):
    assert_loaded()
    disk = mount("size=10m")
    shutil.copytree(data_dir, disk, dirs_exist_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(disk))
    assert_loaded()
