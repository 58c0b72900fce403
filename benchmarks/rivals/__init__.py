"""Published models that are run by their own code, see ``python -m benchmarks.rivals --help``."""

RIVALS = ("CFGen", "scDiffusion")


def is_rival(method: str) -> bool:
    """Return whether a method is a rival, or a variant of one, such as ``CFGen-long``."""
    return method.partition("-")[0] in RIVALS
