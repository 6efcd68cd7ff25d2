"""Links of README.md and docs/ lead somewhere, on the forge and in the site, which loads nothing from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.launch.command_line import ROOT
from tests.docs.pages import BLOCK, PAGES, text_of
from tests.patience import PATIENCE

LINK = re.compile(r"\]\(([^)\s]*)\)")


def links(page: str) -> list[tuple[str, str]]:
    """(path, anchor) of every link of a page that stays in the repository."""
    found = LINK.findall(BLOCK.sub("", text_of(page)))
    return [(path, anchor) for path, _, anchor in (link.partition("#") for link in found) if ":" not in path]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as the forge writes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_of_the_repository_and_to_a_heading(page):
    for path, anchor in links(page):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), path
        if anchor:
            assert anchor in anchors(os.path.relpath(target, ROOT)), f"{path}#{anchor}"


def test_the_pages_have_links_and_each_is_in_the_navigation():
    assert sum(len(links(page)) for page in PAGES) > 60
    assert anchors("docs/data.md") >= {"alignloop-check", "what-the-keys-of-a-message-mean"}
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(named) == sorted(
        ["index.md", "CONTRIBUTING.md", "notebook.md", *(Path(page).name for page in PAGES[2:])]
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of what the site is built from."""
    pytest.importorskip("material", reason="mkdocs-material is not installed; `make docs` installs it")
    place = tmp_path_factory.mktemp("site")
    for name in ("docs", "configs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, place)
    return place


def build(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"],
        cwd=place,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_site_is_built_without_a_warning_and_loads_nothing(copy):
    done = build(copy)
    assert done.returncode == 0, done.stderr
    site = copy / "build" / "docs"
    first = (site / "index.html").read_text()
    assert 'href="data.html"' in first and 'href="CONTRIBUTING.html"' in first and "site/iframe-worker.js" in first
    assert 'href="files/configs/demo.yaml.html"' in (site / "shipped-recipes.html").read_text()
    assert "load_best_policy" in (site / "notebook.html").read_text()
    assert "spike_sigma" in (site / "search" / "search_index.js").read_text()
    loading = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.?https?://")
    assert [page.name for page in site.rglob("*.html") if loading.search(page.read_text())] == []


def test_broken_links_fail_the_build(copy):
    page = copy / "docs" / "rl.md"
    page.write_text(f"{page.read_text()}\n[a page](../gone.yaml), [a heading](data.md#gone)\n")
    done = build(copy)
    assert done.returncode == 1
    assert "'../gone.yaml', but the target is not found" in done.stderr
    assert "does not contain an anchor '#gone'" in done.stderr
