"""Load what all tests share, but not into the process that hands tests to workers: its imports take ten seconds."""

import gc
import os
import sys
from pathlib import Path


def pytest_configure(config):
    """Register the fixtures in every process that runs tests. Several processes have one thread each."""
    has_workers = bool(config.getoption("numprocesses", None))
    if has_workers:
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ.setdefault(name, "1")
    if hasattr(config, "workerinput") or not has_workers:
        gc.disable()  # until all is imported, which is no garbage: looking for some takes a third of the time
        sys.path.insert(0, str(Path(__file__).parent))
        config.pluginmanager.import_plugin("builders")
