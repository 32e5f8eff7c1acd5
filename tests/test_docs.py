"""The snippets of the documentation run as they stand, page by page, in one namespace a page.

Blocks fenced with ```` ```python ```` are run; what needs a cluster or a minute of training is
written as ```` ```{code-block} python ````, which is only compiled.
"""

import random
import re
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
RUN = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^```\{code-block\} python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    "clease",
    "icet",
    "ase_calculators",
    "neural_moves",
    "how_to_choose",
    "larger_cells",
    "reading_models",
    "phase_diagrams",
    "formats",
]


def blocks(page: str, kind: re.Pattern) -> list[tuple[int, str]]:
    """(line, source) of the blocks of a page."""
    text = (DOCS / f"{page}.md").read_text()
    return [(text.count("\n", 0, m.start(1)), m[1]) for m in kind.finditer(text)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, tmp_path, monkeypatch):
    """Every snippet of a page runs after those before it, in an empty folder."""
    if page in ("icet", "neural_moves"):
        pytest.importorskip("icet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path / "none"))
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  EMT and hosts use the global generator
    namespace = {"__name__": page}
    found = blocks(page, RUN)
    assert found, f"docs/{page}.md has no snippet"
    for line, source in found:
        code = compile("\n" * line + source, str(DOCS / f"{page}.md"), "exec")
        exec(code, namespace)


@pytest.mark.parametrize("page", PAGES)
def test_other_snippets_compile(page):
    """What is not run is at least Python."""
    for line, source in blocks(page, SHOWN):
        compile("\n" * line + source, str(DOCS / f"{page}.md"), "exec")


def test_pages_are_listed():
    """Every page of the documentation is in the table of contents."""
    listed = re.findall(r"^(\w+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert {p.stem for p in DOCS.glob("*.md")} - {"index"} <= set(listed)
