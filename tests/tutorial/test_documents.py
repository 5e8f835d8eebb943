"""The links, pictures, anchors and commands of README.md and of the notebook.

Nothing is fetched: addresses are checked for their form, files for being there.
"""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "Model_pruning_exploration.ipynb"
SLUG = "matthew-mcateer/Keras_pruning"
BRANCH = "main"
COLAB = f"https://colab.research.google.com/github/{SLUG}/blob/{BRANCH}/{NOTEBOOK}"
BINDER = f"https://mybinder.org/v2/gh/{SLUG}/{BRANCH}?urlpath=lab/tree/{NOTEBOOK}"
COMMANDS = {
    "report": "pip install -r requirements.txt && "
    f"jupyter nbconvert --to html --execute --output-dir report {NOTEBOOK}",
    "test": "pip install -r requirements-dev.txt && python -m pytest",
}

TARGET = r"\(\s*<?((?:[^()\s<>]|\([^()\s]*\))+)>?(?:\s+[\"'][^)]*)?\s*\)"


# ---- reading Markdown


def fenced_lines(text: str) -> list[str]:
    """The lines inside fenced code blocks."""
    blocks = re.findall(r"^[ ]*```[^\n]*\n(.*?)^[ ]*```", text, re.M | re.S)
    return [line.strip() for block in blocks for line in block.splitlines()]


def prose(text: str) -> str:
    """The text without code and comments, whose brackets are no links."""
    text = re.sub(r"^[ ]*```.*?^[ ]*```[^\n]*$", "", text, flags=re.M | re.S)
    return re.sub(r"<!--.*?-->|`+[^`\n]+`+", "", text, flags=re.S)


def pictures(text: str) -> list[tuple[str, str]]:
    """(alternative text, target) of every picture, in Markdown and in HTML."""
    text = prose(text)
    found = re.findall(r"!\[([^\]]*)\]" + TARGET, text)
    for tag in re.findall(r"<img\b[^>]*>", text, re.I):
        values = dict(re.findall(r"\b(alt|src)\s*=\s*[\"']([^\"']*)[\"']", tag, re.I))
        found.append((values.get("alt", ""), values.get("src", "")))
    return found


def targets(text: str) -> list[str]:
    """What every link and picture points to."""
    text = prose(text)
    found = re.findall(r"\]" + TARGET, text)  # also the outer link of a badge
    found += re.findall(r"^\[[^\]]+\]:\s*<?(\S+?)>?\s*$", text, re.M)
    found += re.findall(r"\b(?:href|src)\s*=\s*[\"']([^\"']*)[\"']", text, re.I)
    found += re.findall(r"<(https?://[^>\s]+)>", text)
    return found


def addresses(text: str) -> list[str]:
    """Every web address anywhere in a text or a source file."""
    found = re.findall(r"https?://[^\s<>\"'`)\]\\]+", text)
    return [address.rstrip(".,;:") for address in found]


def headings(text: str) -> list[str]:
    return re.findall(r"^#{1,6}\s+(.+?)\s*#*$", prose_keeping_code_words(text), re.M)


def prose_keeping_code_words(text: str) -> str:
    """Without fenced blocks only: a heading may hold `code`."""
    return re.sub(r"^[ ]*```.*?^[ ]*```[^\n]*$", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub (lower case) and JupyterLab (case kept) give to the headings."""
    found = set(re.findall(r"\b(?:id|name)\s*=\s*[\"']([^\"']+)[\"']", prose(text)))
    for heading in headings(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        plain = re.sub(r"[`*]", "", words)
        github = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeats = sum(1 for name in found if re.fullmatch(re.escape(github) + r"(-\d+)?", name))
        found.add(f"{github}-{repeats}" if repeats else github)
        found.add(plain.replace(" ", "-"))
    return found


# ---- judging it


def target_problem(target: str, known_anchors: set[str], root: Path) -> str | None:
    if target.startswith("#"):
        return None if unquote(target[1:]) in known_anchors else f"no heading for {target}"
    parts = urlsplit(target)
    if parts.scheme in ("http", "https"):
        return address_problem(target)
    if parts.scheme or parts.netloc:
        return f"neither a web address nor a relative path: {target}"
    path = (root / unquote(parts.path)).resolve()
    if not path.is_relative_to(root.resolve()):
        return f"outside the repository: {target}"
    return None if path.exists() and parts.path else f"no such file: {target}"


def address_problem(address: str) -> str | None:
    host = urlsplit(address).hostname or ""
    if not re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", host) or re.search(r"\s", address):
        return f"malformed: {address}"
    return None


def project_address_problem(address: str) -> str | None:
    """Whether an address that names this project names it, and its one branch, as all others."""
    parts = urlsplit(address)
    steps = parts.path.strip("/").split("/")
    if parts.hostname == "colab.research.google.com" and steps[0] != "assets":
        return None if address == COLAB else f"expected {COLAB}, found {address}"
    if parts.hostname == "mybinder.org" and steps[0] == "v2":
        return None if address == BINDER else f"expected {BINDER}, found {address}"
    hosts = ("github.com", "www.github.com", "raw.githubusercontent.com", "api.github.com")
    if parts.hostname not in hosts or len(steps) < 2:
        return None
    if parts.hostname == "api.github.com":
        steps = steps[1:]  # /repos/owner/name
    owner, name = steps[0], (steps[1:2] or [""])[0].removesuffix(".git")
    owner_is_ours = owner.lower() == SLUG.split("/")[0].lower()
    if not owner_is_ours and name.lower() != SLUG.split("/")[1].lower():
        return None
    if f"{owner}/{name}" != SLUG:
        return f"expected {SLUG}, found {address}"
    branch = steps[2:3] if parts.hostname.startswith("raw.") else []
    if steps[2:3] and steps[2] in ("blob", "tree", "raw"):
        branch = steps[3:4]
    return f"expected branch {BRANCH}: {address}" if branch not in ([], [BRANCH]) else None


def slug_problems(text: str) -> list[str]:
    """The project's name outside of addresses too, as in f"https://…/{SLUG}"."""
    owner = SLUG.split("/")[0]
    found = re.findall(rf"\b{owner}/[\w.-]*\w", text, re.I)
    wrong = [name for name in found if name.removesuffix(".git") != SLUG]
    return [f"expected {SLUG}, found {name}" for name in wrong]


def document_problems(text: str, root: Path) -> list[str]:
    known_anchors = anchors(text)
    problems = [target_problem(target, known_anchors, root) for target in targets(text)]
    problems += [f"no alt text: {target}" for alt, target in pictures(text) if not alt.strip()]
    return [problem for problem in problems if problem] + project_problems(text)


def project_problems(text: str) -> list[str]:
    problems = [project_address_problem(address) for address in addresses(text)]
    return [problem for problem in problems if problem] + slug_problems(text)


# ---- the documents


def notebook_text(kind: str | None = None) -> str:
    cells = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if kind in (None, cell.cell_type))


def readme_text() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_links_and_pictures_are_sound():
    assert document_problems(readme_text(), ROOT) == []


def test_notebook_links_and_pictures_are_sound():
    assert document_problems(notebook_text("markdown"), ROOT) == []


def test_no_picture_of_the_notebooks_text_needs_a_file_beside_it():
    # The report stands in another folder, and Colab has no folder.
    shown = [target for _, target in pictures(notebook_text("markdown"))]
    assert [target for target in shown if not target.startswith("https://")] == []


@pytest.mark.parametrize("address", [COLAB, BINDER], ids=["colab", "binder"])
def test_readme_and_notebook_link_to_colab_and_binder(address):
    assert address in targets(readme_text())
    assert address in targets(notebook_text("markdown"))


@pytest.mark.parametrize(
    "name", [NOTEBOOK, "pruning_utils.py", "pyproject.toml", "CHANGELOG.md", "README.md"]
)
def test_sources_name_the_one_repository(name):
    text = notebook_text() if name == NOTEBOOK else (ROOT / name).read_text(encoding="utf-8")
    assert project_problems(text) == []


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_readme_has_the_command_once(command):
    assert fenced_lines(readme_text()).count(command) == 1


# ---- the checks themselves, on samples


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a b.png").touch()
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "![a curve](images/a%20b.png)",
        "[the folder](images/)",
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({COLAB})",
        f"[![Binder](https://mybinder.org/badge_logo.svg)]({BINDER})",
        f"[code](https://github.com/{SLUG}/blob/main/pruning_utils.py#L3)",
        f"`git clone https://github.com/{SLUG}.git`",
        f"<https://raw.githubusercontent.com/{SLUG}/main/pruning_utils.py>",
        "[wiki](https://en.wikipedia.org/wiki/Pruning_(neural_network))",
        "[other](https://github.com/keras-team/keras/issues/1)",
        "# Two words, `code`\n[up](#two-words-code)",
        "# Two words\n[up](#Two-words)",
        "# Same\n# Same\n[second](#same-1)",
        '<a id="here"></a> [up](#here)',
        '<img src="images/a b.png" alt="a curve" width="80%">',
        "```\n![](no.png)\n# No heading\n```\n`[x](no.png)`",
    ],
)
def test_good_text_has_no_problem(text, folder):
    assert document_problems(text, folder) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("![a curve](images/b.png)", "no such file"),
        ("[up](../secret.txt)", "outside the repository"),
        ("![](images/)", "no alt text"),
        ('<img src="images/">', "no alt text"),
        ('<img src="images/b.png" alt="a curve">', "no such file"),
        ("[a](mailto:a@example.com)", "neither a web address"),
        ("[a](http://localhost:8888/lab)", "malformed"),
        ("[a](https://example)", "malformed"),
        ("[a]: https://example", "malformed"),
        ("# Here\n[up](#there)", "no heading"),
        ("```\n# Here\n```\n[up](#here)", "no heading"),
        ("[a](https://github.com/matthew-mcateer/keras_pruning)", "expected matthew-mcateer"),
        ("[a](https://github.com/someone/Keras_pruning)", "expected matthew-mcateer"),
        (f"[a](https://github.com/{SLUG}/blob/master/README.md)", "expected branch"),
        (f"[a](https://raw.githubusercontent.com/{SLUG}/dev/a.py)", "expected branch"),
        (f"[a]({COLAB.replace('blob/main', 'blob/master')})", "expected https://colab"),
        (f"[a]({BINDER.replace('?urlpath=lab/tree', '?filepath')})", "expected https://mybinder"),
        ("`matthew-mcateer/Keras-pruning`", "expected matthew-mcateer"),
    ],
)
def test_bad_text_is_found(text, problem, folder):
    assert any(problem in found for found in document_problems(text, folder))


def test_commands_are_read_from_fenced_blocks_only():
    assert fenced_lines("a\n```bash\nb && c\n```\nd\n") == ["b && c"]


# ---- numbers


NOTEBOOK_OF_FIVE = {  # what the notebook says of the five networks, with numbers of the table
    "reached {} % on MNIST and {} % on Fashion-MNIST": [
        ("mnist", "none", "weights", 0, 1),
        ("fashion_mnist", "none", "weights", 0, 1),
    ],
    "without 80 % of the weights these MNIST networks lie between {and} %": [
        ("mnist", "none", "weights", 0.8, 1)
    ],
    "On MNIST at 60 % these five keep {} % by norm and {} % by chance, "
    "on Fashion-MNIST {} % and {} %": [
        ("mnist", "none", "units", 0.6, 0),
        ("mnist", "none", "random_units", 0.6, 0),
        ("fashion_mnist", "none", "units", 0.6, 0),
        ("fashion_mnist", "none", "random_units", 0.6, 0),
    ],
    "Without 80 % of its units it has lost most of its accuracy (the five stored MNIST networks "
    "keep {} %)": [("mnist", "none", "units", 0.8, 0)],
    "five stored MNIST networks without 80 % of their units the refit makes networks of {} %": [
        ("mnist", "reconstructed", "units", 0.8, 1)
    ],
    "five stored MNIST networks come back to {} % by the refit and to {} % by the epoch of "
    "training; without 80 % of their units to {} % and {} %. On Fashion-MNIST the refit is the "
    "better of the two there: {} % against {} %": [
        ("mnist", "reconstructed", "weights", 0.95, 1),
        ("mnist", "one epoch", "weights", 0.95, 1),
        ("mnist", "reconstructed", "units", 0.8, 1),
        ("mnist", "one epoch", "units", 0.8, 1),
        ("fashion_mnist", "reconstructed", "units", 0.8, 1),
        ("fashion_mnist", "one epoch", "units", 0.8, 1),
    ],
    "the five MNIST networks reach {} % and those on Fashion-MNIST {} %": [
        ("mnist", "one epoch", "weights", 0.95, 1),
        ("fashion_mnist", "one epoch", "weights", 0.95, 1),
    ],
}


@pytest.fixture(scope="module")
def five() -> pd.DataFrame:
    return pd.read_csv(ROOT / "images" / "five_seeds.csv", keep_default_na=False)


@pytest.mark.parametrize("sentence", NOTEBOOK_OF_FIVE)
def test_what_the_notebook_says_of_five_networks_stands_in_the_csv_file(five, sentence):
    ranges = []
    for data, tuning, method, sparsity, digits in NOTEBOOK_OF_FIVE[sentence]:
        chosen = five[(five["data"] == data) & (five["method"] == method)]
        chosen = chosen[(chosen["fine_tuning"] == tuning) & (chosen["sparsity"] == sparsity)]
        assert len(chosen) == 5
        ends = 100 * chosen["accuracy"].agg(["min", "max"])
        ranges.append(" to ".join(f"{end:.{digits}f}" for end in ends))
    words = sentence.replace("{and}", "{}").format(*ranges)
    words = words.replace(" to ", " and ") if "{and}" in sentence else words
    assert words in notebook_text("markdown")


def test_the_small_network_from_scratch_is_where_the_text_puts_it(five):
    table = five.pivot_table("accuracy", ["data", "seed"], ["method", "fine_tuning", "sparsity"])
    behind = 100 * (table["weights", "one epoch", 0.95] - table["from_scratch", "none", 0.8])
    ends = behind["mnist"].agg(["min", "max"])
    text = notebook_text("markdown")
    assert f"stays {ends['min']:.1f} to {ends['max']:.1f} points behind" in text
    assert abs(behind["fashion_mnist"].median()) < 0.2  # level
    medians = 100 * table.groupby("data").median()
    units, control = medians["units", "one epoch"], medians["from_scratch", "none"]
    at_90 = pd.concat([control[0.9], units[0.9]], axis=1).round(1)
    first, second = (at_90.loc[data].tolist() for data in ("mnist", "fashion_mnist"))
    words = "{} against {} % and {} against {} %".format(*first, *second)
    assert f"at 90 % with medians of {words}" in text
    ahead = control[0.95] - units[0.95]
    assert 3 < ahead["mnist"] < 4 and 6 < ahead["fashion_mnist"] < 7


def test_magnitude_beats_chance_as_often_as_the_text_says(five):
    one_shot = five[(five["fine_tuning"] == "none") & (five["network"] == "dense")]
    table = one_shot.pivot_table("accuracy", ["data", "seed", "sparsity"], "method")
    pruned = table[table.index.get_level_values("sparsity") > 0]
    wins = (pruned["weights"] > pruned["random_weights"]).groupby("sparsity").sum()
    assert (wins[wins.index <= 0.97] == 10).all()
    mnist = pruned.loc["mnist"]
    wins = (mnist["units"] > mnist["random_units"]).groupby("sparsity").sum()
    assert wins[[0.25, 0.5, 0.6, 0.7]].tolist() == [5, 1, 1, 0]
    lost = 100 * (table.xs(0, level="sparsity") - table).loc["mnist"]
    ends = lost.groupby("sparsity").agg(["min", "max"]).round(2)
    assert ends.loc[0.8, ("weights", "max")].round(1) == 1.1
    assert ends.loc[0.25, ("units", "max")] <= 1
    assert ends.loc[0.5, "units"].round().tolist() == [4, 12]
    bands = pruned.groupby(["data", "sparsity"])["units"].agg(lambda part: part.max() - part.min())
    bands = 100 * bands[bands.index.get_level_values("sparsity").isin([0.6, 0.7, 0.8])]
    assert [round(bands.min()), round(bands.max())] == [14, 29]
