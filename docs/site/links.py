"""The pages of the site that are not in docs/, and the links to them. mkdocs.yml names this file as its hook.

Every link in README.md and docs/ is a path in the repository, so that it works on the forge. The site has only docs/:
README.md becomes its first page, and a file outside of docs/ that a page links to becomes a page with its text. A
notebook becomes a page with its cells.
"""

import json
import re
from pathlib import Path
from posixpath import dirname, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).absolute().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for README.md and for every file that is linked to from a page and has no page in docs/."""
    unread = [ROOT / "README.md", *(DOCS / file.src_uri for file in files.documentation_pages())]
    added = {ROOT / "README.md"}
    while unread:
        page = unread.pop()
        linked = {target for target in (target_of(link, page) for link in links_of(page)) if needs_page(target)}
        unread += linked - added
        added |= linked
    for path in sorted(added):
        files.append(File.generated(config, uri_of(path), content=text_of(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links to files that have another place in the site than in the repository."""
    uri = page.file.src_uri
    origin = next((path for path in [ROOT / "README.md", ROOT / uri, DOCS / uri] if path_has_uri(path, uri)), None)
    if origin is None:
        return markdown

    def rewritten(match: re.Match[str]) -> str:
        target = target_of(match[0], origin)
        return match[0] if not target.is_file() else relpath(uri_of(target), dirname(uri) or ".")

    return LINK.sub(rewritten, markdown)


def path_has_uri(path: Path, uri: str) -> bool:
    return path.is_file() and uri_of(path) == uri


def links_of(page: Path) -> list[str]:
    """The paths that a page in Markdown links to."""
    return LINK.findall(page.read_text(encoding="utf-8")) if page.suffix == ".md" else []


def target_of(link: str, page: Path) -> Path:
    """The file that a link in a page leads to; it may not exist, which mkdocs reports."""
    return Path((page.parent / link).resolve())


def needs_page(path: Path) -> bool:
    return path.is_file() and path.is_relative_to(ROOT) and (not path.is_relative_to(DOCS) or path.suffix == ".ipynb")


def uri_of(path: Path) -> str:
    """The place in the site's source of a file of the repository."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).with_suffix(".md" if path.suffix == ".ipynb" else path.suffix).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return name if path.suffix == ".md" else f"files/{name}.md"


def text_of(path: Path) -> str:
    """The page of a file, in Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells)
    name = path.relative_to(ROOT).as_posix()
    return f"# `{name}`\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"
