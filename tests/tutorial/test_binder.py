"""The repository as Binder builds it: repo2docker reads environment.yml and writes a Dockerfile.

With --no-build neither Docker nor a network is needed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory) -> str:
    """What repo2docker makes of a copy of the repository, without files that git ignores."""
    copy = tmp_path_factory.mktemp("repository")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = subprocess.run(
        command, cwd=copy, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_environment_takes_its_packages_from_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    [pip_packages] = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip_packages == ["-r requirements.txt"]
    assert "pip" in environment["dependencies"]


def test_repo2docker_installs_the_environment(dockerfile):
    assert re.search(r"env update -p \S+ --file \"environment\.yml\"", dockerfile)


def test_repo2docker_copies_the_repository_before_it_installs(dockerfile):
    # Otherwise `-r requirements.txt` would name a file that is not there yet.
    copied = re.search(r"^COPY .*\bsrc/ \$\{REPO_DIR\}/?$", dockerfile, re.M)
    installed = re.search(r"env update", dockerfile)
    assert copied.start() < installed.start()
    between = dockerfile[copied.start() : installed.start()]
    assert "WORKDIR" not in between  # so it runs in ${REPO_DIR}, where the file is


def test_nothing_is_for_a_gpu():
    text = (ROOT / "environment.yml").read_text() + (ROOT / "requirements.txt").read_text()
    packages = re.sub(r"#.*", "", text)  # "tensorflow" alone brings no CUDA libraries
    assert "tensorflow" in packages
    assert re.findall(r"cuda|nvidia|gpu", packages, re.I) == []


def test_repo2docker_fetches_the_data_after_it_has_installed(dockerfile):
    fetched = re.search(r"^RUN \./postBuild$", dockerfile, re.M)
    assert re.search(r"env update", dockerfile).start() < fetched.start()


@pytest.mark.slow
def test_no_network_does_not_break_the_build(tmp_path):
    # Nothing listens on port 9, so every download is refused at once.
    proxies = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    hidden = {"TFDS_DATA_DIR", "NO_PROXY", "no_proxy"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / "postBuild"],
        cwd=ROOT,
        env={**kept, **proxies, "HOME": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = re.findall(
        r"^(\S+) in .* could not be downloaded .* cannot be reached", done.stdout, re.M
    )
    assert told == ["MNIST", "Fashion-MNIST"]
