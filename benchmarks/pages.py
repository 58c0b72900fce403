"""Write the marked tables of README and documentation from the stored results and the code.

    python -m benchmarks.pages

`tests/benchmarks/test_figures.py` fails if a page and its sources disagree.
"""

from __future__ import annotations

from benchmarks import guide, pretrained
from benchmarks.quality import report as quality
from benchmarks.speed import report as speed
from benchmarks.studies import pages as studies
from benchmarks.tables import ROOT, read_table, write_block

RESULTS = {
    "quality/results/compare.csv": quality.page_blocks,
    "speed/results/speed.csv": speed.page_blocks,
    "speed/results/speed_gpu.csv": speed.gpu_blocks,
    "results/pretrained.csv": pretrained.page_blocks,
    **{f"studies/results/{name}.csv": page_blocks for name, page_blocks in studies.BLOCKS.items()},
}


def blocks() -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    texts = guide.page_blocks()
    for path, page_blocks in RESULTS.items():
        texts |= page_blocks(read_table(ROOT / "benchmarks" / path))
    return texts


def main() -> None:
    for (page, mark), text in blocks().items():
        write_block(ROOT / page, mark, text)


if __name__ == "__main__":
    main()
