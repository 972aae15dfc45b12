"""The documentation builds as a site that needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.docs.site import OUTSIDE, with_links

REPO = Path(__file__).parents[3]
#: What a browser fetches of a page by itself.
_FETCHED = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=["']?([^"'\s>]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


class TestSite:
    def test_every_page_is_there(self, site: Path) -> None:
        pages = {p.relative_to(REPO / "docs").as_posix() for p in REPO.glob("docs/**/*.md")}
        for page in pages | set(OUTSIDE.values()):
            assert (site / page).with_suffix(".html").is_file(), page

    def test_nothing_is_fetched_from_elsewhere(self, site: Path) -> None:
        for page in site.rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            canonical = re.sub(r"<link[^>]*rel=[\"']?canonical[^>]*>", "", text)
            for address in _FETCHED.findall(canonical):
                assert not re.match(r"(https?:)?//", address), (page.name, address)
        for style in site.rglob("*.css"):
            assert not re.search(r"url\(\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8"))

    def test_no_markdown_is_left_over(self, site: Path) -> None:
        """A list or a block of code that begins where the site sees none shows its marks."""
        for page in site.rglob("*.html"):
            article = page.read_text(encoding="utf-8").partition("<article")[2]
            plain = re.sub(r"<(pre|code)\b.*?</\1>", "", article, flags=re.DOTALL)
            assert "```" not in plain, page.name
            assert not re.search(r"^(?:<p>)?(?:- |\d+\. |\| )", plain, re.MULTILINE), page.name


class TestLinks:
    def test_between_folders(self) -> None:
        text = with_links("[a](../README.md) [b](cluster.md#x) ![c](p.svg)", "howto/own.md")
        assert text == "[a](../README.md) [b](cluster.md#x) ![c](p.svg)"

    def test_outside_pages(self) -> None:
        text = with_links("[k](docs/lora.md#a) [c](config/README.md) [s](#here)", "index.md")
        assert text == "[k](lora.md#a) [c](config.md) [s](#here)"
        assert with_links("[d](../docs/hub.md)", "config.md") == "[d](hub.md)"
        assert with_links("[d](../../CHANGELOG.md)", "howto/x.md") == "[d](../changelog.md)"

    def test_what_is_not_on_the_site_is_no_link(self) -> None:
        text = with_links("[the rules](rules/merge.smk), [out](https://x.org/a.md)", "index.md")
        assert text == "the rules, [out](https://x.org/a.md)"
