"""What the buttons above a page refer to: notebooks are not in docs, and API pages have no source file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def correct_source(_app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Set the page's folder in the repository, and hide the buttons of pages that the build wrote."""
    context["doc_path"] = "" if page.startswith("tutorials/") else "docs"
    if "/generated/" in page:
        context["page_source_suffix"] = ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before the theme, which makes the buttons."""
    app.connect("html-page-context", correct_source, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
