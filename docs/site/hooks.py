"""MkDocs calls these while it builds the site: pages from outside `docs/`, tables made from the code, notebooks, formulas.

A page asks for a table by a line `<!-- generated: NAME -->` with a name of `reference.MAKERS`.
"""

import posixpath
import re
from pathlib import Path

import latex2mathml.converter
import reference
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "readme.md",
    "SECURITY.md": "security.md",
    "LICENSE": "licence.md",
}  #: at the top -> page of the site
ASSETS = ("iframe-worker.js", "site.css")
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL)


def on_config(config):
    """The decisions appear in the menu as they lie in their folder."""
    pages = sorted((ROOT / "docs" / "develop" / "decisions").glob("*.md"))
    develop = next(item["Develop"] for item in config.nav if "Develop" in item)
    next(item for item in develop if "Decisions" in item)["Decisions"] = [f"develop/decisions/{page.name}" for page in pages]
    return config


def on_files(files, config):
    """Adds the pages that do not lie in `docs/`, notebooks as pages, and what a browser needs."""
    for name, page in OUTSIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(
            File.generated(config, page, content=text if name != "LICENSE" else f"# Licence\n\n```text\n{text}```\n")
        )
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, page, content=reference.notebook(notebook)))
    for name in ASSETS:
        text = (Path(__file__).parent / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"extra/{name}", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in the tables; links that leave `docs/` lead to the pages made of what they name."""
    uri = page.file.src_uri
    outside = {page: name for name, page in OUTSIDE.items()}
    folder = posixpath.dirname(outside.get(uri, f"docs/{uri}"))

    def lead(match):
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        there = OUTSIDE.get(target, target.removeprefix("docs/"))
        if target not in OUTSIDE and not target.startswith("docs/"):
            raise PluginError(f"{uri}: the link {match[1]} leads out of the documentation; name the file instead")
        return f"]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}"

    return MARK.sub(lambda match: reference.MAKERS[match[1]](), LINK.sub(lead, markdown))


def on_page_content(html, page, config, files):
    """Formulas become MathML, which browsers show without a script."""

    def convert(match):
        tex = match[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return latex2mathml.converter.convert(tex, display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(convert, html)
