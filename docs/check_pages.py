"""Look at every page of the built site in Chromium, on a wide and on a narrow screen, and print what is wrong.

Use: python docs/check_pages.py [part of the names of pages]. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

from playwright.sync_api import Page, sync_playwright

SITE = Path(__file__).parent / "_build" / "html"
WIDTHS = (1400, 420)

# What is wider than its box and cannot be seen in full without scrolling sideways, and images that did not load.
LOOK = """() => {
    const found = [];
    const overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    if (overflow > 0) found.push(`the page is ${overflow} px too wide`);
    const wide = "article pre, article table, .pst-scrollable-table-container, article div.math, article dt";
    for (const box of document.querySelectorAll(`${wide}, article img, nav, aside`)) {
        const more = box.scrollWidth - box.clientWidth;
        const text = box.textContent.trim().replaceAll(/\\s+/g, " ").slice(0, 60);
        if (more > 1 && box.clientWidth > 0)
            found.push(`${box.tagName.toLowerCase()} is ${more} px too wide: ${text}`);
    }
    for (const image of document.images)
        if (!image.complete || image.naturalWidth === 0) found.push(`image is missing: ${image.src}`);
    const buttons = [...document.querySelectorAll(".search-button-field, .search-button")];
    const searches = buttons.filter((button) => button.checkVisibility());
    if (searches.length > 1) found.push(`${searches.length} search boxes`);
    if (document.querySelector("mjx-merror")) found.push("a formula has an error");
    return found;
}"""
LINKS = "() => [...document.querySelectorAll('a[href]')].map((link) => link.href)"
TARGETS = "() => [...document.querySelectorAll('[id]')].map((element) => element.id)"


def check(page: Page, file: Path, links: dict[str, set[str]], targets: dict[str, set[str]]) -> list[str]:
    """Return what is wrong with one page, at both widths; collect its links and the targets that it has."""
    found: list[str] = []
    page.on("console", lambda message: found.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    page.on("request", lambda request: found.append(f"network: {request.url}") if request.url[:4] == "http" else None)
    page.goto(file.as_uri())
    if page.locator(".math").count():
        page.wait_for_function("() => window.MathJax?.startup?.promise")
        page.evaluate("() => MathJax.startup.promise.then(() => true)")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        found += [f"at {width}: {line}" for line in page.evaluate(LOOK)]
    targets[file.as_uri()] = set(page.evaluate(TARGETS))
    for link in page.evaluate(LINKS):
        if link.startswith("file:"):
            links.setdefault(link, set()).add(file.name)
    return found


def broken(links: dict[str, set[str]], targets: dict[str, set[str]]) -> list[str]:
    """Return links to files, or to places in pages, that do not exist."""
    found = []
    for link, pages in sorted(links.items()):
        address, place = urldefrag(link)
        exists = Path(unquote(urlparse(address).path)).exists()
        if not exists or (place and address in targets and unquote(place) not in targets[address]):
            found.append(f"{link} in {', '.join(sorted(pages)[:3])}")
    return found


def main() -> int:
    """Check all pages whose name contains the argument; return the number of findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="")
    part = parser.parse_args().part
    pages = [
        file for file in sorted(SITE.rglob("*.html")) if file.relative_to(SITE).parts[0] not in ("_static", "_modules")
    ]
    files = [file for file in pages if part in str(file.relative_to(SITE))]
    links: dict[str, set[str]] = {}
    targets: dict[str, set[str]] = {}
    count = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for file in files:
            page = browser.new_page()
            page.set_default_timeout(120_000)
            for line in dict.fromkeys(check(page, file, links, targets)):
                print(f"{file.relative_to(SITE)}: {line}", flush=True)
                count += 1
            page.close()
    for line in broken(links, targets):
        print(f"broken link: {line}")
        count += 1
    print(f"{len(files)} pages at {' and '.join(map(str, WIDTHS))} px: {count} findings")
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main())
