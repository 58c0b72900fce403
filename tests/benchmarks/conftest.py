"""Put the scripts of `benchmarks/`, which import each other by name, on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
