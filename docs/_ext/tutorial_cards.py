"""The directive ``tutorials``: a card for each notebook, with a picture from its outputs and its minutes."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image, ImageChops
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

PICTURES = Path("generated", "thumbnails")  # in docs; git ignores it
SIZE = (640, 320)  # of a thumbnail, in pixels
WHITE = "white"


def first_heading(notebook: dict[str, Any]) -> str:
    """Return the title of a notebook."""
    return "".join(notebook["cells"][0]["source"]).partition("\n")[0].removeprefix("# ")


def picture(notebook: dict[str, Any], number: int) -> Image.Image | None:
    """Return one of the pictures among the outputs of a notebook, if it has any; counting starts at 0."""
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    if not pictures:
        return None
    return Image.open(io.BytesIO(base64.b64decode(pictures[min(number, len(pictures) - 1)]))).convert("RGB")


def thumbnail(image: Image.Image, panels: list[float]) -> Image.Image:
    """Cut an image to left, top, right and bottom (shares of its size), trim its margins, and fit it into a card."""
    left, top, right, bottom = panels
    image = image.crop(
        (round(left * image.width), round(top * image.height), round(right * image.width), round(bottom * image.height))
    )
    image = image.crop(ImageChops.difference(image, Image.new("RGB", image.size, WHITE)).getbbox())
    image.thumbnail(SIZE, Image.Resampling.LANCZOS)
    card = Image.new("RGB", SIZE, WHITE)
    card.paste(image, ((SIZE[0] - image.width) // 2, (SIZE[1] - image.height) // 2))
    return card


class Tutorials(SphinxDirective):
    """A YAML mapping of notebooks to ``text``, ``tags``, the number of the ``picture`` to show, and its ``panels``."""

    has_content = True

    def card(self, name: str, text: str, tags: list[str], number: int, panels: list[float]) -> list[str]:
        """Return the markup of one card."""
        source = Path(self.env.srcdir, "tutorials", f"{name}.ipynb")
        self.env.note_dependency(source)
        notebook = json.loads(source.read_text(encoding="utf-8"))
        lines = [f":::{{grid-item-card}} {first_heading(notebook)}", f":link: {name}", ":link-type: doc"]
        if (image := picture(notebook, number)) is not None:
            target = PICTURES / f"{name}.png"
            Path(self.env.srcdir, target).parent.mkdir(parents=True, exist_ok=True)
            thumbnail(image, panels).save(Path(self.env.srcdir, target))
            lines += [f":img-top: /{target.as_posix()}", f":img-alt: A picture from the tutorial {name}"]
        badges = [f"{{bdg-primary-line}}`{tag}`" for tag in tags]
        if minutes := notebook["metadata"].get("scgen_diffusion", {}).get("minutes"):
            badges.append(f"{{bdg-secondary-line}}`{minutes:.0f} min`")
        return [*lines, "", text, "", "```{card-footer}", " ".join(badges), "```", ":::"]

    def run(self) -> list[nodes.Node]:
        """Build the grid of all cards."""
        tutorials = yaml.safe_load("\n".join(self.content))
        lines = ["::::{grid} 1 2 2 3", ":gutter: 3", ""]
        for name, options in tutorials.items():
            number, panels = options.get("picture", 0), options.get("panels", [0, 0, 1, 1])
            lines += self.card(name, options["text"], options["tags"], number, panels)
        return self.parse_text_to_nodes("\n".join([*lines, "::::"]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("tutorials", Tutorials)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
