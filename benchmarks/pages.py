"""Write the tables that README and documentation show, between their marks, from the stored results.

    python -m benchmarks.pages

`tests/benchmarks/test_figures.py` fails where a page says something else than the results do.
"""

from __future__ import annotations

from benchmarks import pretrained
from benchmarks.quality import report as quality
from benchmarks.speed import report as speed
from benchmarks.tables import ROOT, read_table, write_block

RESULTS = {
    "quality/results/compare.csv": quality,
    "speed/results/speed.csv": speed,
    "results/pretrained.csv": pretrained,
}


def blocks() -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    texts: dict[tuple[str, str], str] = {}
    for path, report in RESULTS.items():
        texts |= report.page_blocks(read_table(ROOT / "benchmarks" / path))
    return texts


def main() -> None:
    """Write all marked places."""
    for (page, mark), text in blocks().items():
        write_block(ROOT / page, mark, text)


if __name__ == "__main__":
    main()
