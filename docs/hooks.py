"""Pages of the site that are made when it is built, and links between the repository and the site.

mkdocs calls ``on_files`` and ``on_page_markdown``. The pages of ``docs`` are written for the repository's own
view; links that lead out of ``docs`` are changed to the pages made here.
"""

import ast
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
SITE_PAGES = {  # pages of the repository, and anchors that have a page of their own in the site
    "README.md": "README.md",
    "README.md#models": "model-zoo.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "examples/quick_start.ipynb": "notebook.md",
}
COPIED = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
REFERENCE = {  # folder or module of solo_infer: page of the reference
    "segmenters": "models",
    "weights": "models",
    "data": "inputs",
    "results": "results",
    "config": "configuration",
    "training": "training",
    "evaluation": "evaluation",
    "export": "export",
    "errors": "errors",
}
FURTHER_NAMES = (  # public, and imported from their modules
    "solo_infer.results.writers",
    "solo_infer.results.video_writer.VideoWriter",
    "solo_infer.results.formats.polygons",
    "solo_infer.export.engine.ExportedModel",
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files of the repository."""
    pages = {SITE_PAGES[name]: (ROOT / name).read_text(encoding="utf-8") for name in COPIED}
    pages["model-zoo.md"] = model_zoo()
    pages["examples.md"] = examples()
    pages["notebook.md"] = notebook(ROOT / "examples" / "quick_start.ipynb")
    pages["reference/command-line.md"] = command_line()
    pages |= {f"reference/{name}.md": text for name, text in reference().items()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links into the repository to links into the site."""
    sources = {site: name for name, site in SITE_PAGES.items() if "#" not in name and name != "README.md"}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda match: f"]({site_link(match[1], source, page.file.src_uri)})", markdown)


def site_link(target: str, source: str, page: str) -> str:
    """Return the target of a link of a site's page.

    Args:
        target: Target as it is written.
        source: Path of the file that it is written in, from the root of the repository.
        page: Path of the page in the site.
    """
    name, hash_sign, anchor = target.partition("#")
    if not name or ":" in name:
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    if f"{path}#{anchor}" in SITE_PAGES:
        path, hash_sign, anchor = SITE_PAGES[f"{path}#{anchor}"], "", ""
    elif path in SITE_PAGES:
        path = SITE_PAGES[path]
    elif path.startswith("examples/") and (ROOT / path).is_file():
        path, hash_sign, anchor = "examples.md", "#", _anchor(path.removeprefix("examples/"))
    elif path.startswith("docs/"):
        path = path.removeprefix("docs/")
    else:
        return target
    return posixpath.relpath(path, posixpath.dirname(page) or ".") + hash_sign + anchor


def model_zoo() -> str:
    """Return the page of all checkpoints: the README's table, and files and sources from the manifest."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("<!-- models -->\n")[1].split("<!-- /models -->")[0]
    manifest = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
    lines = [
        "# Model zoo",
        "",
        "`load_model(NAME)` and `--model NAME` load these checkpoints, and download them on first use. Mask "
        "AP is the published one on COCO, in percent. The checkpoints of SOLO's authors are licensed for "
        "non-commercial use only. [Models](models.md) describes the networks, and [`tiny`]"
        "(models.md#the-embedded-model-tiny), which is part of the package.",
        "",
        table,
        "## Files",
        "",
        "A file is checked against the published digits of its SHA-256; for files of the Hugging Face Hub, "
        "it is the hash under which the Hub stores them.",
        "",
        "| name | preset | file | SHA-256 | source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in manifest["models"]:
        sources = "; ".join(map(_source, entry["sources"]))
        digits = f"`{entry['sha256_prefix']}...`" if entry["sha256_prefix"] else "of the Hub"
        if sources:
            lines.append(
                f"| `{entry['name']}` | `{entry['preset']}` | `{entry['filename']}` | {digits} | {sources} |"
            )
    return "\n".join(lines) + "\n"


def _source(source: dict[str, str]) -> str:
    """Return where a checkpoint is downloaded from, "" for files of the package."""
    if source["kind"] == "hub":
        return f"Hub, `{source['repo']}`"
    return f"[{source['url'].split('/')[2]}]({source['url']})" if source["kind"] == "url" else ""


def examples() -> str:
    """Return the page of the examples: their table, and the files that it links to."""
    folder = ROOT / "examples"
    page = (folder / "README.md").read_text(encoding="utf-8")
    sections = [page]
    for path in sorted({*folder.rglob("*.py"), *folder.glob("*.json")}):
        name = path.relative_to(folder).as_posix()
        language = {".py": "python", ".json": "json"}[path.suffix]
        text = path.read_text(encoding="utf-8")
        sections.append(f"## {name}\n\n```{language}\n{text}```\n")
    return "\n".join(sections)


def notebook(path: Path) -> str:
    """Return a notebook as a page: its text and its code."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """Return the page of the commands: the text of ``--help``."""
    from solo_infer.cli.main import COMMANDS, build_parser

    os.environ.update(COLUMNS="100", NO_COLOR="1")
    parser = build_parser()
    lines = ["# Command line", "", "```text", parser.format_help().rstrip(), "```", ""]
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    for name in COMMANDS:
        lines += [f"## {name}", "", "```text", commands[name].format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def reference() -> dict[str, str]:
    """Return the pages of the reference by name.

    Raises:
        PluginError: A public name is defined in a folder that ``REFERENCE`` lacks.
    """
    pages: dict[str, list[str]] = {name: [] for name in REFERENCE.values()}
    for package in ("solo_infer", "solo_infer.training"):
        for name, module in public_names(package):
            folder = module.split(".")[1]
            if folder not in REFERENCE:
                raise PluginError(f"docs/hooks.py: REFERENCE has no page for {folder}, which defines {name}.")
            entry = f"::: {package}.{name}"
            page = pages[REFERENCE[folder]]
            if not any(line.endswith(f".{name}") for line in page):
                page.append(entry)
    for name in FURTHER_NAMES:
        pages[REFERENCE[name.split(".")[1]]].append(f"::: {name}")
    return {name: "\n\n".join([f"# {name.capitalize()}", *entries]) for name, entries in pages.items()}


def public_names(package: str) -> Iterator[tuple[str, str]]:
    """Yield the names of a package's ``__all__`` and the modules that it imports them from."""
    path = ROOT / package.replace(".", "/") / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    homes: dict[str, Any] = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    yield from ((name, homes[name]) for name in names if not name.startswith("__"))


def _anchor(heading: str) -> str:
    """Return the anchor of a heading that is the path of a file."""
    return re.sub(r"[^\w\- ]", "", heading.lower())
