"""Version of the installed package. To read it takes a millisecond."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("scgen-diffusion")
except PackageNotFoundError:  # the source folder is on the path, but nothing is installed
    VERSION = "unknown"
