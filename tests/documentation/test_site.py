"""The documentation: its code runs, each public name has an entry, its links are well formed.

Links within the site are checked by `mkdocs build --strict` in .ci/run. Nothing is fetched.
"""

import functools
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import keras
import numpy as np
import pandas as pd
import pytest
import yaml
from keras import layers as kl
from sklearn.datasets import load_digits

import keras_pruning as kp
import keras_pruning.plots
from keras_pruning.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
HOSTS = {
    "arxiv.org",
    "colab.research.google.com",
    "docs.pytorch.org",
    "github.com",
    "img.shields.io",
    "matthew-mcateer.github.io",
    "mybinder.org",
    "numba.pydata.org",
    "proceedings.neurips.cc",
    "pypi.org",
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# ---- code

BLOCK = re.compile(
    r"^(?P<not_run><!-- not run: .*?-->\n)?"
    r'```python(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.M | re.S,
)


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """(title, code) of each block that is to be run."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(block["title"] or "", block["code"]) for block in found if not block["not_run"]]


def digits(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Scikit-learn's 8 x 8 images, which need no download."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, *shape)
    return {"x": x[:1200], "y": y[:1200], "x_test": x[1200:], "y_test": y[1200:]}


def dense() -> keras.Model:
    hidden = [kl.Dense(64, "relu"), kl.Dense(48, "relu")]
    return keras.Sequential([keras.Input((64,)), *hidden, kl.Dense(10)])


def residual() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    start = x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(12, 3, padding="same")(inputs)))
    x = kl.Conv2D(12, 3, padding="same")(x)
    x = kl.ReLU()(kl.add([start, kl.BatchNormalization()(x)]))
    return keras.Model(inputs, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


def transformer() -> keras.Model:
    """Each row of the image is a token."""
    inputs = keras.Input((8, 8))
    x = kl.Dense(12, name="tokens")(inputs)
    heard = kl.LayerNormalization()(x)
    x = x + kl.MultiHeadAttention(3, 4, name="attention")(heard, heard)
    wide = kl.Dense(24, "gelu", name="wide")(kl.LayerNormalization()(x))
    x = x + kl.Dense(12, name="narrow")(wide)
    return keras.Model(inputs, kl.Dense(10, name="classes")(kl.Flatten()(x)))


KINDS = {dense: (64,), residual: (8, 8, 1), transformer: (8, 8)}
MODEL_OF = {"docs/guides/convolutions.md": residual, "docs/guides/transformers.md": transformer}
MODEL_OF |= {"docs/how/shrink.md": residual}


@functools.cache
def trained(build) -> dict:
    """What a guide starts from: a model and data."""
    keras.utils.set_random_seed(0)
    data = digits(KINDS[build])
    model = compiled(build())
    model.fit(data["x"], data["y"], epochs=10, verbose=0)
    return {"model": model, **data}


def compiled(model: keras.Model) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    return model


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that a reader has."""
    monkeypatch.chdir(tmp_path)
    trained(dense)["model"].save("my_model.keras")
    np.save("my_inputs.npy", trained(dense)["x"])
    return tmp_path


def run_blocks(blocks: list[tuple[str, str]], names: dict) -> dict:
    """The names that the code leaves; a block with a title is a file, run if it is a script."""
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with warnings.catch_warnings():
        # What the library says to the code's author; Keras may have words of its own.
        warnings.filterwarnings("error", category=UserWarning, module="documentation")
        for title, code in blocks:
            if not title:
                exec(compile(code, "documentation", "exec"), names)
                continue
            Path(title).write_text(code)
            if "__main__" in code:
                ran = subprocess.run(
                    [sys.executable, title], env=os.environ | path, capture_output=True, text=True
                )
                assert ran.returncode == 0, ran.stderr
                names[title] = ran.stdout
    return names


def start_of(page: Path) -> dict:
    given = trained(MODEL_OF.get(name_of(page), dense))
    model = compiled(keras.models.clone_model(given["model"]))
    model.set_weights(given["model"].get_weights())
    return {"__name__": "documentation", "keras": keras, **given, "model": model}


needs_litert = pytest.mark.skipif(
    "litert" not in keras.Model.export.__doc__, reason="this Keras cannot write LiteRT files"
)
MARKS = {"docs/guides/small.md": [needs_litert]}
MARKS["docs/guides/cluster.md"] = [pytest.mark.slow]  # two processes that import Keras
WITH_CODE = [
    pytest.param(page, id=name_of(page), marks=MARKS.get(name_of(page), []))
    for page in PAGES
    if code_blocks(page)
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, workplace, capsys):
    names = run_blocks(code_blocks(page), start_of(page))
    after = LEFT_BY.get(name_of(page))
    if after is not None:
        after(names)


def no_weight_came_back(names):
    zeros = [np.mean(layer.get_weights()[0] == 0) for layer in names["pruned"].layers[:2]]
    assert zeros == pytest.approx([0.8, 0.8], abs=1e-3)
    zeros = [np.mean(layer.get_weights()[0] == 0) for layer in names["model"].layers[:2]]
    assert zeros == pytest.approx([0.8, 0.8], abs=1e-3)


def refit_helps(names):
    def accuracy(model):
        answers = model.predict(names["x_test"], verbose=0).argmax(axis=1)
        return np.mean(answers == names["y_test"])

    only_pruned = kp.prune_weights(names["model"], 0.9)
    assert accuracy(names["refitted"]) > accuracy(only_pruned)


def files_answer_as_the_model(names):
    expected = names["pruned"].predict(names["x_test"], verbose=0)
    np.testing.assert_allclose(names["answers"], expected[:10], atol=1e-4)
    np.testing.assert_allclose(names["again"].predict(names["x_test"]), expected, atol=1e-4)
    assert Path("packed.keras").stat().st_size < Path("my_model.keras").stat().st_size / 4


def a_third_of_the_heads_is_gone(names):
    attention = keras.models.clone_model(names["small"]).get_layer("attention")
    assert (attention.num_heads, names["small"].get_layer("wide").units) == (2, 12)


def filters_on_both_sides_are_gone(names):
    assert names["report"].set_index("layer")["after"].iloc[:2].tolist() == [6, 6]


LEFT_BY = {
    "docs/guides/accuracy.md": refit_helps,
    "docs/guides/convolutions.md": filters_on_both_sides_are_gone,
    "docs/guides/from-tfmot.md": no_weight_came_back,
    "docs/guides/small.md": files_answer_as_the_model,
    "docs/guides/transformers.md": a_third_of_the_heads_is_gone,
    "docs/guides/cluster.md": lambda names: np.testing.assert_equal(
        names["study.py"].count("one epoch"), 2
    ),
    "docs/guides/fast.md": lambda names: np.testing.assert_allclose(
        names["answers"], names["pruned"].predict(names["x_test"], verbose=0), atol=1e-4
    ),
    "docs/guides/own-layers.md": lambda names: np.testing.assert_equal(
        [names["small"].get_layer("hidden").a.shape[1], names["Block"](16).width], [5, 16]
    ),
}


def test_what_is_not_run_needs_what_no_test_has():
    reasons = [re.findall(r"<!-- not run: (.*?) -->", p.read_text("utf-8")) for p in PAGES]
    assert sum(reasons, []) == ["needs a cluster", "needs Keras 2 and tfmot"]


def test_no_code_stands_in_a_fence_that_the_tests_pass_over():
    fences = [re.findall(r"^```(\S.*)$", page.read_text("utf-8"), re.M) for page in PAGES]
    assert {fence.split()[0] for fence in sum(fences, [])} == {"python"}


@needs_litert
def test_the_commands_of_the_command_line_page_run(workplace, capsys):
    given = trained(dense)
    np.savez("train.npz", x=given["x"], y=given["y"])
    np.savez("test.npz", x=given["x_test"], y=given["y_test"])
    given["model"].save("model.keras")
    page = (DOCS / "guides" / "command-line.md").read_text("utf-8")
    lines = re.findall(r"^keras-pruning (.*)$", page, re.M)
    assert len(lines) == 6
    for line in lines:  # two workers take ten seconds to start, and "mnist" is a download
        line = line.replace("--data mnist --workers 2", "--data test.npz")
        with pytest.raises(SystemExit) as ended:
            sys.exit(main(shlex.split(line)))
        assert not ended.value.code, line
    assert Path("sweep.csv").read_text().count("units") > 9


# ---- README


def hidden_units(model: keras.Model) -> list[int]:
    return [kernel.shape[1] for kernel in model.get_weights()[:-2:2]]


def multiply_adds(model: keras.Model) -> int:
    """A dense network multiplies with each entry of its kernels once."""
    return sum(w.size for w in model.get_weights() if w.ndim == 2)


def test_the_ten_lines_of_the_readme_end_smaller_and_faster(workplace, capsys):
    [(_, code)] = code_blocks(ROOT / "README.md")
    assert len([line for line in code.splitlines() if line.strip()]) == 10
    names = run_blocks([("", code)], {"__name__": "documentation"})
    before, after = keras.models.load_model("my_model.keras"), "my_small_model.keras"
    small = keras.models.load_model(after)  # by Keras alone
    assert (hidden_units(before), hidden_units(small)) == ([64, 48], [32, 24])
    assert multiply_adds(small) == 64 * 32 + 32 * 24 + 24 * 10 < multiply_adds(before) / 2
    assert Path(after).stat().st_size < Path("my_model.keras").stat().st_size / 2
    x, y = trained(dense)["x_test"], trained(dense)["y_test"]
    answers = small.predict(x, verbose=0)
    np.testing.assert_allclose(answers, names["pruned"].predict(x, verbose=0), atol=1e-4)
    kernels = [layer.get_weights()[0] for layer in names["pruned"].layers[:2]]
    assert [int((kernel == 0).all(axis=0).sum()) for kernel in kernels] == [32, 24]
    right = np.mean(before.predict(x, verbose=0).argmax(axis=1) == y)
    assert np.mean(answers.argmax(axis=1) == y) > right - 0.05
    printed = capsys.readouterr().out
    assert f"{multiply_adds(before)}" in printed and f"{multiply_adds(small)}" in printed


def test_the_site_starts_with_the_readmes_ten_lines():
    assert code_blocks(DOCS / "index.md") == code_blocks(ROOT / "README.md")


def test_the_readme_says_what_the_five_networks_answer():
    table = pd.read_csv(ROOT / "images" / "five_seeds.csv", keep_default_na=False)
    refitted = table[(table["data"] == "mnist") & (table["fine_tuning"] == "reconstructed")]
    medians = 100 * refitted.groupby(["method", "sparsity"])["accuracy"].median()
    said = (
        "Without 95 % of them, refitted to 2,000 images without a label, the MNIST networks answer "
        f"{medians['weights', 0.95]:.1f} % right; without 80 % of the units "
        f"{medians['units', 0.8]:.1f} %."
    )
    assert said in " ".join((ROOT / "README.md").read_text("utf-8").split())


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


# ---- API

PUBLIC = [*((kp, name) for name in kp.__all__)]
PUBLIC += [(keras_pruning.plots, name) for name in keras_pruning.plots.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_a_public_name_has_an_entry_and_an_example(module, name):
    entries = [re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.M) for page in PAGES]
    assert sum(entries, []).count(f"{module.__name__}.{name}") == 1
    lines = inspect.getdoc(getattr(module, name)).splitlines()
    examples = lines[lines.index("Examples:") :]
    assert any(line.startswith("    >>> ") for line in examples)
    assert name in " ".join(examples) or name[0].isupper()  # of a class perhaps what returns it


def test_the_table_of_functions_names_each_of_them():
    table = (DOCS / "api" / "index.md").read_text("utf-8")
    named = re.findall(r"\[`(\w+)`\]\[keras_pruning\.\1\]", table)
    assert sorted(named) == sorted({*kp.__all__} - {"Latency", "LitertReport", "Measurement"})


# ---- links


@pytest.mark.parametrize("text", TEXTS, ids=name_of)
def test_links_to_elsewhere_are_well_formed_and_on_known_hosts(text):
    addresses = re.findall(r"https?:[^\s<>\"'`)\]]*", text.read_text("utf-8"))
    for address in addresses:
        parts = urlsplit(address)
        assert parts.scheme == "https" and parts.hostname in HOSTS, address
        assert re.fullmatch(r"[\w/.@:+-]*", parts.path) and not parts.path.endswith("."), address


def test_files_of_the_repository_that_the_site_links_to_exist():
    pattern = r"https://github\.com/matthew-mcateer/Keras_pruning/(?:blob|tree)/main/([^)\s#]+)"
    linked = {path for page in PAGES for path in re.findall(pattern, page.read_text("utf-8"))}
    assert linked and [path for path in linked if not (ROOT / path).exists()] == []


# ---- what the site adds as it is built


def test_the_table_of_five_networks_is_made_from_the_csv_file(monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(DOCS))
    hooks = importlib.import_module("hooks")
    page = (DOCS / "results.md").read_text("utf-8")
    shown = hooks.on_page_markdown(page, page=None)
    assert hooks.TABLE in page and hooks.TABLE not in shown
    assert "| MNIST | weights | reconstructed | 98.4 (98.4–98.4) | 98.2 (98.1–98.3) |" in shown
    assert shown.count("\n| Fashion-MNIST |") == page.count("\n| Fashion-MNIST |") + 9


def test_each_drawing_is_there_for_light_and_for_dark_pages(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    files = importlib.import_module("drawings").draw_all()
    shown = {
        name: page
        for page in PAGES
        for name in re.findall(r"\(\.\./drawings/([\w-]+\.svg)#only-\w+\)", page.read_text("utf-8"))
    }
    assert shown.keys() == files.keys()
    for name in files:
        ink = b"#222222" if name.endswith("-light.svg") else b"#e6e6e6"
        assert ink in files[name].lower(), name
        assert ElementTree.fromstring(files[name]).tag.endswith("svg")


# ---- what GitHub reads


def test_the_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == kp.__version__
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## {kp.__version__} - {citation['date-released']}" in changes
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    assert f"the {citation['authors'][0]['name'].removeprefix('The ')}" in (
        (ROOT / "LICENSE").read_text("utf-8")
    )


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_an_issue_form_is_one_that_github_reads(form):
    content = yaml.safe_load(form.read_text("utf-8"))
    if form.name == "config.yml":
        assert content["blank_issues_enabled"] in (True, False)
        return
    assert {"name", "description", "body"} <= content.keys()
    for field in content["body"]:
        assert field["type"] in ("markdown", "input", "textarea", "dropdown", "checkboxes")
        assert field["type"] == "markdown" or field["attributes"]["label"]
    ids = [field["id"] for field in content["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids))


def test_a_report_of_a_bug_asks_for_versions_and_a_small_model():
    [bug] = [form for form in FORMS if form.name == "bug.yml"]
    fields = yaml.safe_load(bug.read_text("utf-8"))["body"]
    required = {f["id"] for f in fields if f.get("validations", {}).get("required")}
    assert {"versions", "model"} <= required
