"""Run notebooks and store what they show: `make tutorials`, or `python docs/run_tutorials.py quick_start judging`."""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image, ImageChops

FOLDER = Path(__file__).parents[1] / "tutorials"
TIMEOUT = 7_200  # seconds for one cell; training on a busy machine is slow
COLORS = 256  # of a stored picture, which makes it a third as large
MOST_SHIFT = 32  # of a colour channel by fewer colours, out of 255; rare colours of a legend may shift more


def main() -> None:
    """Run all notebooks, or the named ones, and exit with 1 if one fails."""
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=names, metavar="NAME", help=f"one or more of {', '.join(names)}")
    parser.add_argument(
        "--lanes", type=int, default=os.cpu_count(), help="notebooks that run at the same time, on one core each"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no notebook is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")

    # A core for each notebook: threads that wait for each other make all of them many times slower. Numba, which UMAP
    # uses, raises the first number again; the limit holds.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1", "NUMBA_NUM_THREADS": "1"}
    failed = False
    with ProcessPoolExecutor(arguments.lanes, max_tasks_per_child=1) as lanes:
        runs = {lanes.submit(run, FOLDER / f"{name}.ipynb"): name for name in arguments.names}
        for finished in as_completed(runs):
            try:
                print(f"{runs[finished]}: {finished.result():.1f} minutes of processor time", flush=True)
            except CellExecutionError as error:
                failed = True
                print(f"{runs[finished]} FAILED\n{error}", file=sys.stderr, flush=True)
    sys.exit(failed)


def run(path: Path) -> float:
    """Run a notebook, store its outputs, and return the minutes of processor time.

    If it fails, the file stays as it is.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:  # for the files that it writes
        options = {"timeout": TIMEOUT, "record_timing": False, "resources": {"metadata": {"path": folder}}}
        NotebookClient(notebook, **options).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shrink(output) for output in cell.outputs if not is_log(output)]
    times = os.times()
    minutes = (times.children_user + times.children_system) / 60
    notebook.metadata["scgen_diffusion"]["minutes"] = max(1, round(minutes))
    nbformat.write(notebook, path)
    return minutes


def is_log(output: nbformat.NotebookNode) -> bool:
    """Tell whether an output is no result: a warning, a progress bar, or what scvi-tools writes to stdout."""
    text = output.get("text", "")
    is_blank = output.output_type == "stream" and not text.strip()
    return output.get("name") == "stderr" or is_blank or "\r" in text or text.startswith("\x1b[34mINFO")


def shrink(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Store a picture with fewer colours, if they look the same."""
    if "image/png" in output.get("data", {}):
        picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
        reduced = picture.quantize(COLORS, Image.Quantize.MAXCOVERAGE)
        shifts = ImageChops.difference(picture, reduced.convert("RGB")).getextrema()
        packed = io.BytesIO()
        (reduced if max(largest for _, largest in shifts) <= MOST_SHIFT else picture).save(packed, "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(packed.getvalue()).decode()
    return output


if __name__ == "__main__":
    main()
