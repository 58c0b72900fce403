"""Compare commits: quality of the cells, held-out perturbations, speed, memory, and the duration of the tests.

    python -m benchmarks.record --label v2                              # everything that is missing; two hours on one
    core python -m benchmarks.record --label v2 --parts speed tests          # a part of it, on a quiet machine
    PYTHONPATH=elsewhere/src python -m benchmarks.record --label v1     # the package of another tree, with these
    studies python -m benchmarks.record --label v2 --collect                    # only collect what was measured

Runs the other studies, whose tables go to a folder of the label. Condenses them to ``results/record.csv``, a row per
figure, and ``results/record.md``, a column per label. Without ``PYTHONPATH`` it measures the package of its own tree.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

from benchmarks.tables import (
    ROOT,
    describe_commit,
    describe_processor,
    describe_source,
    markdown_table,
    read_table,
    store_rows,
    write_text,
)

logger = logging.getLogger("benchmarks.record")

SPEED = "-m benchmarks.speed --device cpu --seconds 2 --systems"
QUALITY = "-m benchmarks.quality --cells {folder} --datasets pbmc3k kang_ifnb --seeds 0 1 --methods SCLDM SCRDIT WBDIT"
#: The commands of each part; speed runs three times, for medians.
COMMANDS = {
    "quality": [f"{QUALITY} --steps draw", f"{QUALITY} --steps judge"],
    "perturbation": [
        "-m benchmarks.studies.perturbation --threads 1 --cells {folder} --pictures {folder} --seeds 0 --methods "
        "scldm_transport latent_arithmetic"
    ],
    "speed": 3
    * [
        f"{SPEED} package SCRDIT WBDIT --threads 2",
        f"{SPEED} package --threads 2 --batch 512 --stages prior_step transport_step",
        f"{SPEED} package SCRDIT WBDIT --threads 1",
        f"{SPEED} calls-SCLDM calls-SCRDIT calls-WBDIT --threads 2",
    ],
    "memory": [
        "-m benchmarks.studies.memory --cells 100000 --sources memory h5ad --systems SCLDM",
        "-m benchmarks.studies.memory --cells 100000 --sources h5ad --systems SCRDIT",
    ],
    "streaming": ["-m benchmarks.studies.streaming --cells 100000 --ways zarr h5ad"],
    "tests": ["-m pytest -q"],
}
#: How the columns of each study's table map to data set, method, and metrics (empty if it has a column of metrics).
COLUMNS: dict[str, tuple[str, str, list[str]]] = {
    "quality": ("{dataset}", "{method}", []),
    "perturbation": ("kang_ifnb without {cell_type}", "{method}", []),
    "speed": ("{batch} cells, {threads} threads", "{system} {stage}", ["seconds", "fixed_seconds", "peak_gib"]),
    "memory": ("{cells} cells, {source}", "{system} {stage}", ["peak_mib", "cpu_seconds"]),
    "streaming": ("{cells} cells, {way}", "SCLDM generate_to", ["peak_before_mib", "peak_mib", "cpu_seconds"]),
    "tests": ("", "pytest", ["passed", "skipped", "seconds"]),
}
TABLES = {"quality": "compare.csv"}  # the others have the name of their part
BY_RATIO = ("speed", "memory", "streaming", "tests")  # compared by ratios, the other parts by differences


def run(part: str, folder: Path) -> None:
    """Run the commands of a part that have not finished yet."""
    for number, command in enumerate(COMMANDS[part]):
        environment = {"PYTHONPATH": str(ROOT / "src")} | os.environ
        if part not in ("speed", "tests"):
            environment["OMP_NUM_THREADS"] = "1"
        if command.endswith("judge"):  # judge the cells of all packages by the metrics of this tree
            environment["PYTHONPATH"] = str(ROOT / "src")
        done = folder / f"{part}-{number}.done"
        if done.exists():
            continue
        logger.info("%s", command)
        goal = "" if part == "tests" else f" --results {folder}"
        arguments = [sys.executable, *(command.format(folder=folder) + goal).split()]
        with (folder / f"{part}.log").open("a") as log:
            subprocess.run(arguments, check=True, cwd=ROOT, env=environment, stdout=log, stderr=log)
        done.touch()


def condense(part: str, folder: Path) -> pd.DataFrame:
    """Return the figures of a part, one per row; medians over repetitions."""
    table = (
        _read_tests(folder / "tests.log") if part == "tests" else read_table(folder / TABLES.get(part, f"{part}.csv"))
    )
    if part == "quality":  # the floor of a split is the same for all methods
        table = pd.concat([table, table.dropna(subset="floor").assign(method="floor", value=table["floor"])])
    dataset, method, metrics = COLUMNS[part]
    records = table.to_dict("records")
    names = {"dataset": [dataset.format(**row) for row in records], "method": [method.format(**row) for row in records]}
    table = table.assign(**{"seed": 0} | table.filter(["seed"]).to_dict("series") | names)
    if metrics:
        table = table.melt(["dataset", "seed", "method"], metrics, var_name="metric").dropna(subset="value")
    return table.groupby(["dataset", "seed", "method", "metric"], sort=False)["value"].median().reset_index()


def _read_tests(log: Path) -> pd.DataFrame:
    """Read pytest's last line, such as ``5 passed, 2 skipped in 3.21s``."""
    last = log.read_text().splitlines()[-1]
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|skipped)", last)}
    return pd.DataFrame([{"skipped": 0} | counts | {"seconds": float(re.search(r" in ([\d.]+)s", last)[1])}])


def report(table: pd.DataFrame) -> str:
    """Write a table per part: a column per label, and the difference or ratio of the last and the first."""
    about = table[["label", "machine", "versions", "date"]].drop_duplicates().to_numpy()
    parts = ["# Record of commits", "\n".join(f"- {'; '.join(row)}" for row in about)]
    parts.append(
        "Means over seeds (± half their range) and over left-out cell types. Written by `python -m benchmarks.record`."
    )
    for part in sorted(table["part"].unique(), key=lambda part: [*COMMANDS].index(part.partition(" ")[0])):
        parts += [f"## {part}", _compare(table[table["part"] == part], by_difference=part not in BY_RATIO)]
    return "\n\n".join(parts) + "\n"


def _compare(rows: pd.DataFrame, *, by_difference: bool) -> str:
    rows = rows.assign(dataset=rows["dataset"].fillna("").str.replace(" without .*", "", regex=True))
    by_seed = rows.groupby(["dataset", "method", "metric", "label", "seed"], sort=False)["value"].mean()
    groups = by_seed.groupby(["dataset", "method", "metric", "label"], sort=False)
    labels = list(dict.fromkeys(rows["label"]))
    means, spreads = groups.mean().unstack()[labels], ((groups.max() - groups.min()) / 2).unstack()[labels]
    texts = means.map("{:.4g}".format) + spreads.map(lambda spread: f" ± {spread:.2g}" if spread else "")
    if len(labels) > 1:
        first, last = means[labels[0]], means[labels[-1]]
        change = last - first if by_difference else last / first
        texts["difference" if by_difference else "ratio"] = change.map("{:.4g}".format)
    lines = [[", ".join(filter(None, key)), *texts.loc[key]] for key in texts.index]
    return markdown_table(["", *texts.columns], lines)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default=describe_commit(), help="name of the measurement; default: the commit")
    parser.add_argument("--parts", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--collect", action="store_true", help="only collect what was measured")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "benchmarks" / "cells" / "record",
        help="parent folder of the labels' folders",
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    folder, path = arguments.work.resolve() / arguments.label, arguments.results / "record.csv"
    folder.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        if not arguments.collect:
            run(part, folder)
        if (folder / f"{part}-{len(COMMANDS[part]) - 1}.done").exists():
            about = describe_source("torch", "scvi-tools", "anndata") | {"machine": describe_processor()}
            rows = condense(part, folder).assign(**about)
            rows.insert(0, "label", arguments.label)
            rows.insert(1, "part", part)
            store_rows(path, rows, ("label", "part"))
    write_text(path.with_suffix(".md"), report(read_table(path)))


if __name__ == "__main__":
    main()
