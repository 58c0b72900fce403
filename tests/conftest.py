"""Load what all tests share, but not into the process that hands tests to workers: its imports take ten seconds."""

import sys
from pathlib import Path


def pytest_configure(config):
    """Register the fixtures in every process that runs tests."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        sys.path.insert(0, str(Path(__file__).parent))
        config.pluginmanager.import_plugin("builders")
