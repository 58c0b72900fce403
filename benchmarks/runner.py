"""One runner for quality and the studies: configurations in, a table out.

A study is a function that measures one configuration. What its table has is skipped, so an interrupted run resumes, and
every row says which machine, versions, commit and day it comes from.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.tables import ROOT, describe_source, read_table, store_rows, stored_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pandas as pd

logger = logging.getLogger("benchmarks")

CELLS = ROOT / "benchmarks" / "cells"
STUDIES = ROOT / "benchmarks" / "studies" / "results"
PACKAGES = ("torch", "scvi-tools", "scgen-diffusion")


def run(path: Path, cases: Iterable[Mapping[str, object]], measure: Callable[..., pd.DataFrame | None]) -> pd.DataFrame:
    """Measure the cases that a table lacks, add their rows, and return the table.

    A case names a value for each key of the table. Rows may have own values of the keys, and an own source; `measure`
    returns None if there is nothing to measure yet.
    """
    for case in cases:
        if tuple(case.values()) in stored_keys(path, list(case)):
            continue
        logger.info("%s: %s", path.stem, ", ".join(f"{name} {value}" for name, value in case.items()))
        rows = measure(**case)
        if rows is not None:
            known = {**case, **describe_source(*PACKAGES)}
            store_rows(path, rows.assign(**{key: known[key] for key in known if key not in rows}), list(case))
    return read_table(path)


def options(
    description: str | None, *, results: Path = STUDIES, seeds: Iterable[int] = (0,)
) -> argparse.ArgumentParser:
    """Return a parser with the options that all studies have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--results", type=Path, default=results, help="folder of the tables")
    parser.add_argument("--folder", type=Path, default=CELLS, help="folder of the generated cells")
    return parser


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the options, set the number of threads, and hide what libraries print at every training."""
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    quieten()
    torch.set_num_threads(chosen.threads)
    return chosen


def quieten() -> None:
    """Hide messages that libraries print at every training."""
    for name in ("scgen_diffusion", "scvi", "lightning", "lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a new process, whose time and peak memory are its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
