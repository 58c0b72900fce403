"""Films written to files that need nothing beside themselves."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.animation import PillowWriter
from PIL import Image

from ._figures import chosen

if TYPE_CHECKING:
    import os

    from matplotlib.animation import FuncAnimation

SUFFIXES = (".gif", ".html")
PICTURE = re.compile(r"(?<=data:image/png;base64,)[^\"]+")
ICONS = {
    "minus": "−",
    "fast-backward": "|‹",
    "step-backward": "‹",
    "play": "▸",
    "pause": "‖",
    "step-forward": "›",
    "fast-forward": "›|",
    "plus": "+",
}
"""Signs in place of the font that matplotlib's page would fetch from the network."""


def check_suffix(save: str | os.PathLike[str] | None) -> None:
    """Raise for a file that cannot be written."""
    if save is not None:
        chosen("save", [Path(save).suffix.lower()], SUFFIXES)


def save_film(animation: FuncAnimation, save: str | os.PathLike[str], *, fps: int, dpi: int) -> None:
    """Write a GIF, or a page with buttons."""
    if Path(save).suffix.lower() == ".gif":
        animation.save(save, writer=PillowWriter(fps=fps), dpi=dpi)
        return
    with mpl.rc_context({"savefig.dpi": dpi}):
        page = animation.to_jshtml(fps=fps, default_mode="loop")
    small = PICTURE.sub(lambda picture: with_palette(picture[0]), page)
    Path(save).write_text(without_network(small), encoding="utf-8")


def with_palette(encoded: str) -> str:
    """Return a picture, as PNG in base 64 that may be broken into lines by backslashes, with a palette: a third of the size."""
    picture = Image.open(BytesIO(b64decode(encoded.replace("\\\n", ""))))
    buffer = BytesIO()
    # Maximum coverage: the median cut would give rare labels the colours of others.
    small = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(buffer, "PNG", optimize=True)
    return b64encode(buffer.getvalue()).decode()


def without_network(page: str) -> str:
    """Replace matplotlib's link to a font of icons by plain signs."""
    rules = [f'.fa-{name}::before {{ content: "{sign}"; }}' for name, sign in ICONS.items()]
    rules.append(".fa { font-style: normal; } .fa-flip-horizontal { display: inline-block; transform: scaleX(-1); }")
    style = "<style>\n" + "\n".join(rules) + "\n</style>"
    return '<meta charset="utf-8">\n' + style + re.sub(r"<link\b[^>]*>", "", page)
