"""Tables of results that grow by one measurement at a time and survive interruptions."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
REAL = "real cells"


def read_table(path: Path) -> pd.DataFrame:
    """Return the stored table, empty if there is none yet."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def stored_keys(path: Path, keys: Sequence[str]) -> set[tuple[object, ...]]:
    """Return the keys that the stored table has rows for."""
    table = read_table(path)
    return set() if table.empty else set(table[list(keys)].itertuples(index=False, name=None))


def store_rows(path: Path, rows: pd.DataFrame, keys: Sequence[str] = ()) -> None:
    """Append rows, and replace stored ones with the same ``keys``. Other processes may do so at the same time.

    The file is written under another name and renamed, so that no reader sees half a table.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        stored = read_table(path)
        if keys and not stored.empty:
            replaced = pd.MultiIndex.from_frame(rows[list(keys)].astype(str))
            stored = stored[~pd.MultiIndex.from_frame(stored[list(keys)].astype(str)).isin(replaced)]
        table = rows if stored.empty else pd.concat([stored, rows.astype(object)], ignore_index=True)
        write_text(path, table.to_csv(index=False, float_format="%.6g"))


def write_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose first column is text and whose others are numbers."""
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def write_block(path: Path, name: str, text: str) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->``, which a page must have once."""
    page = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    place = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if len(place.findall(page)) != 1:
        msg = f"{path} must have one place between {start} and {end}, but found {len(place.findall(page))}."
        raise ValueError(msg)
    write_text(path, place.sub(lambda _: f"{start}\n{text.strip()}\n{end}", page))


def describe_commit() -> str:
    """Return the commit of the source tree, with a + if code was changed since; empty outside a repository."""
    answer = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)src", ":(top)benchmarks/*.py")
    return f"{answer}+" if answer and changed else answer


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def describe_source(*packages: str, device: str = "cpu") -> dict[str, str]:
    """Return columns with the machine, versions, commit and date of a measurement."""
    return {
        "machine": describe_machine(device),
        "versions": describe_versions(*packages),
        "commit": describe_commit(),
        "date": today(),
    }


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def describe_machine(device: str = "cpu") -> str:
    """Describe the machine of a measurement."""
    import torch

    if device.startswith("cuda"):
        return describe_processor(device)
    return f"{describe_processor(device)}, torch threads: {torch.get_num_threads()}"


def describe_processor(device: str = "cpu") -> str:
    """Return the name of the processor or GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()


def describe_versions(*packages: str) -> str:
    """List the versions of Python and of the given distributions."""
    found = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (source tree)")
    return ", ".join(found)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
