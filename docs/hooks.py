"""What the site shows and no file in docs/ holds: the notebook, pictures, drawings, tables.

mkdocs calls these functions as it builds (`hooks:` in mkdocs.yml).
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "Model_pruning_exploration.ipynb"
TABLE = "<!-- the table of five networks -->"


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: Any) -> Files:
    """Adds the notebook and images/ from the top of the repository, and the drawings."""
    pictures = [f"images/{path.name}" for path in (ROOT / "images").glob("*.png")]
    for name in (NOTEBOOK, *pictures):
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for name, content in _module("drawings").draw_all().items():
        files.append(File.generated(config, f"drawings/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the table of five networks, from images/five_seeds.csv, in the place marked for it."""
    if TABLE not in markdown:
        return markdown
    five_seeds = _module("five_seeds")
    return markdown.replace(TABLE, five_seeds.markdown(five_seeds.read_table()))


def _module(name: str) -> Any:
    """A module of docs/ or benchmarks/; mkdocs takes back what a hook adds to the path."""
    folders = [str(ROOT / folder) for folder in ("", "docs", "benchmarks")]
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    return importlib.import_module(name)
