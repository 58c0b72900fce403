"""What studies of held-out conditions share: halves of the held-out cells, trainings and the command line."""

from __future__ import annotations

import argparse
import logging
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from benchmarks.tables import describe_source, read_table, store_rows, stored_keys, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import anndata as ad
    from numpy.typing import NDArray

    from scgen_diffusion.model import SCLDM

logger = logging.getLogger("benchmarks.held_out")

RESULTS = Path(__file__).parent / "results"
REAL = "real cells"
#: Stored figures of a test for differential genes that called too many; tables leave them out.
OLD_TEST = r"de_"
CPU = {"accelerator": "cpu", "enable_progress_bar": False}


def random_halves(n_cells: int, n_halves: int, seed: int) -> list[list[NDArray[np.intp]]]:
    """Split cells in two several times: drawn cells of the first half are compared with real ones of the second."""
    rng = np.random.default_rng([seed, 3])
    return [np.array_split(rng.permutation(n_cells), 2) for _ in range(n_halves)]


def store_figures(path: Path, case: Mapping[str, object], figures: Mapping[str, float], *packages: str) -> None:
    """Add the figures of one case to a table whose key the case is."""
    figures = {name: round(value, 6) for name, value in figures.items()}
    row = {**case, **figures, **describe_source("torch", "scvi-tools", *packages, "scgen-diffusion")}
    store_rows(path, pd.DataFrame([row]), tuple(case))
    logger.info("%s: %s", ", ".join(map(str, case.values())), figures)


def train_transport(train: ad.AnnData, seed: int, *, match_keys: Sequence[str] | None = None, **columns: Any) -> SCLDM:
    """Return SCLDM with an autoencoder and a transport, trained on cells whose `columns` ``setup_anndata`` gets."""
    import scvi

    from scgen_diffusion.model import SCLDM

    scvi.settings.seed = seed
    train = train.copy()
    SCLDM.setup_anndata(train, **columns)
    model = SCLDM(train)
    model.train_autoencoder(**CPU)
    model.train_transport(match_keys=match_keys, **CPU)
    return model


def study_parser(description: str, name: str, *, rivals: Iterable[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of a study's options: its seeds, threads and folder of results, and one of its rivals."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder of {name}.csv")
    if rivals:
        parser.add_argument("--rival", choices=rivals, help="measure a rival instead of SCLDM")
        parser.add_argument("--python", help="Python of an environment that has the rival")
    return parser


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the options, and set the number of threads."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser.parse_args()
    if getattr(options, "rival", None) and not options.python:
        parser.error("A rival needs --python.")
    torch.set_num_threads(options.threads)
    return options


def run_datasets(
    description: str,
    name: str,
    study: Callable[[str, int], pd.DataFrame],
    summarise: Callable[[pd.DataFrame], str],
    *,
    choices: Sequence[str],
    default: Sequence[str],
) -> None:
    """Run a study of a data set and a seed for those that its table lacks, and write its summary."""
    parser = study_parser(description, name)
    parser.add_argument("--datasets", nargs="+", choices=choices, default=list(default))
    parser.set_defaults(seeds=[0])
    options = read_options(parser)
    path, keys = options.results / f"{name}.csv", ("dataset", "seed")
    for dataset, seed in product(options.datasets, options.seeds):
        if (dataset, seed) not in stored_keys(path, keys):
            table = study(dataset, seed).assign(dataset=dataset, seed=seed)
            store_rows(path, table.assign(**describe_source("torch", "scvi-tools", "scgen-diffusion")), keys)
            logger.info("%s", table.to_string())
    write_text(path.with_suffix(".md"), summarise(read_table(path)))
