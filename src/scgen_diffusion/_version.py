"""Version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("scgen-diffusion")
except PackageNotFoundError:  # the source folder is on the path, but nothing is installed
    VERSION = "unknown"
