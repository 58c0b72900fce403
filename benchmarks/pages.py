"""Write the marked tables of README and documentation from the stored results, the code and the lab notebook.

    python -m benchmarks.pages

`tests/benchmarks/test_figures.py` fails if a page and its sources disagree.
"""

from __future__ import annotations

import re

from benchmarks import guide, pretrained
from benchmarks.quality import report as quality
from benchmarks.speed import report as speed
from benchmarks.studies import pages as studies
from benchmarks.tables import ROOT, read_table, write_block

NOTEBOOK = ROOT / "docs" / "developer" / "notebook.md"
#: A table of the notebook, and its place on a page.
COPIED = re.compile(r"<!-- (notebook: .+?) -->\n(.*?)\n<!-- /\1 -->", re.DOTALL)
RESULTS = {
    "quality/results/compare.csv": quality.page_blocks,
    "speed/results/speed.csv": speed.page_blocks,
    "speed/results/speed_gpu.csv": speed.gpu_blocks,
    "results/pretrained.csv": pretrained.page_blocks,
    **{f"studies/results/{name}.csv": page_blocks for name, page_blocks in studies.BLOCKS.items()},
}


def blocks() -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    texts = guide.page_blocks() | copies_of_the_notebook()
    for path, page_blocks in RESULTS.items():
        texts |= page_blocks(read_table(ROOT / "benchmarks" / path))
    return texts


def copies_of_the_notebook() -> dict[tuple[str, str], str]:
    """Return the tables that pages copy from the notebook, by page and mark."""
    tables = dict(COPIED.findall(NOTEBOOK.read_text(encoding="utf-8")))
    pages = [path for folder in ("how_to", "user_guide") for path in (ROOT / "docs" / folder).glob("*.md")]
    return {
        (str(page.relative_to(ROOT)), mark): tables[mark]
        for page in pages
        for mark, _ in COPIED.findall(page.read_text(encoding="utf-8"))
    }


def main() -> None:
    for (page, mark), text in blocks().items():
        write_block(ROOT / page, mark, text)


if __name__ == "__main__":
    main()
