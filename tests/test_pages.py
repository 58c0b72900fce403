"""Pages that users read: their code is valid Python, and narrow enough for a page."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)]
WIDEST_CODE = 88
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)


def code_of(page):
    """Yield the language and the text of each block of code."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield block["language"], textwrap.dedent(block["code"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_pages_is_valid_and_fits_the_page(page):
    for language, code in code_of(page):
        if language.startswith("{"):  # a directive
            continue
        if language == "python":
            ast.parse(code)
        assert max(map(len, code.splitlines()), default=0) <= WIDEST_CODE, code
