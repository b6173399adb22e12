"""The documentation site builds without a warning, has no dead link or anchor, and makes no request."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.site import build_site

pytest.importorskip("material", reason="the site needs mkdocs-material, of the extra `dev`")
pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """Links, anchors and fetched files of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("id"):
            self.anchors.add(values["id"])
        if tag == "a":
            self.anchors |= {values["name"]} if values.get("name") else set()
            self.links += [values["href"]] if values.get("href") else []
        if tag in FETCHED and values.get(FETCHED[tag]) and values.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(values[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site):
    return {file: Page(file) for file in sorted(site.rglob("*.html"))}


def test_links_and_anchors_exist(site, pages):
    missing = []
    for file, page in pages.items():
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            folder = site if parts.path.startswith("/") else file.parent  # 404.html is served from anywhere
            target = (folder / unquote(parts.path).lstrip("/")).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and target in pages and unquote(parts.fragment) not in known):
                missing.append(f"{file.relative_to(site)}: {link}")
    assert not missing, "\n".join(missing)


def test_links_of_the_summary_for_language_models_exist(site):
    links = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) > 15 and not [link for link in links if not (site / link).is_file()]


def test_no_page_fetches_anything_from_elsewhere(site, pages):
    fetched = {link for page in pages.values() for link in page.fetched if urlsplit(link).netloc}
    assert not fetched
    for file in site.rglob("*.css"):
        assert not re.findall(
            r"url\(\s*[\"']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", file.read_text(encoding="utf-8")
        )


def test_every_page_of_the_docs_is_built(site):
    for file in (ROOT / "docs").rglob("*.md"):
        name = "index" if file.stem == "README" else file.stem
        assert (site / file.relative_to(ROOT / "docs").parent / f"{name}.html").is_file(), file
    for name in ("changelog", "contributing", "security"):
        assert (site / "project" / f"{name}.html").is_file()


def test_generated_pages_have_what_the_code_has(pages, site):
    assert {"attribute", "Run.effects", "TrainConfig"} <= pages[site / "reference" / "api.html"].anchors
    assert {"run", "dictionary-compare", "demo"} <= pages[site / "reference" / "command-line.html"].anchors
    fields = pages[site / "reference" / "study-file.html"].anchors
    assert {"corpus-tokens", "dictionaries-from", "interventions-patching"} <= fields
    text = "".join(file.read_text(encoding="utf-8") for file in (site / "reference").glob("*.html"))
    assert "<!-- generated" not in text


def test_tables_and_lists_are_rendered(site):
    """Markdown that GitHub renders and the site does not: a list or table without a blank line before it."""
    left = []
    for file in site.rglob("*.html"):
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        left += [
            f"{file.relative_to(site)}: {found}" for found in re.findall(r"<p>(?:[^<]*\n)?(?:- |\| |1\. )[^\n<]*", text)
        ]
        left += [f"{file.relative_to(site)}: {found}" for found in re.findall(r"[^\n<>]*\*\*[^\n<>]*", text)]
    assert not left, "\n".join(left)


def test_the_search_index_has_every_field_and_function(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    locations = {entry["location"] for entry in index}
    assert {"reference/api.html#attribute", "reference/study-file.html#corpus"} <= locations
    assert (site / "search" / "search_index.js").is_file()  # for pages opened from disk


def test_a_page_without_its_link_fails_the_build(tmp_path):
    """The build is strict: a dead link ends it."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[nowhere](absent.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\nplugins: []\n")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode == 1 and "absent.md" in built.stderr
