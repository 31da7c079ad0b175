"""The documentation site: it builds without a warning, is complete, and loads nothing from the network."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from helpers.documentation import PAGES, page_name
from helpers.paths import EXAMPLES, ROOT

import solo_infer

for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install 'solo-infer[docs]')")

GALLERY = sorted((ROOT / "docs" / "gallery").iterdir())
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
NOT_LOADED = {"canonical", "next", "prev", "alternate"}  # values of rel


class LoadedFiles(HTMLParser):
    """Addresses that a browser loads with a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        address = values.get(LOADED.get(tag, ""))
        if address and values.get("rel") not in NOT_LOADED:
            self.addresses.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site once with warnings as errors, and return its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables, timeout=300)
    assert finished.returncode == 0, finished.stderr[-5000:]
    assert "WARNING" not in finished.stderr
    return folder


@pytest.fixture(scope="module")
def html(site):
    """Return the text of each HTML file by its path in the site."""
    return {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")
    }


@pytest.fixture
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "page", "target", "expected"),
    [
        ("docs/models.md", "models.md", "offline.md", "offline.md"),
        ("docs/models.md", "models.md", "#licenses", "#licenses"),
        ("docs/models.md", "models.md", "../README.md#models", "model-zoo.md"),
        ("docs/models.md", "models.md", "../examples/tiny.json", "examples.md#tinyjson"),
        ("docs/models.md", "models.md", "https://example.com/a.md", "https://example.com/a.md"),
        ("docs/models.md", "models.md", "../SECURITY.md#images", "security.md#images"),
        ("SECURITY.md", "security.md", "docs/annotations.md", "annotations.md"),
        ("examples/README.md", "examples.md", "../docs/recipes.md", "recipes.md"),
        ("examples/README.md", "examples.md", "recipes/train.py", "recipes/train.py"),
        ("docs/reference/x.md", "reference/x.md", "../outputs.md#json", "../outputs.md#json"),
    ],
)
def test_links_into_the_repository_lead_into_the_site(hooks, source, page, target, expected):
    assert hooks.site_link(target, source, page) == expected


def test_reference_refuses_a_name_without_a_page(hooks, monkeypatch):
    from mkdocs.exceptions import PluginError

    monkeypatch.delitem(hooks.REFERENCE, "errors")
    with pytest.raises(PluginError, match="no page for errors"):
        hooks.reference()


def training_names():
    tree = ast.parse((ROOT / "solo_infer" / "training" / "__init__.py").read_text(encoding="utf-8"))
    return ast.literal_eval(tree.body[-1].value)


@pytest.mark.parametrize("package", ["solo_infer", "solo_infer.training"])
def test_every_public_name_is_in_the_reference(html, package):
    text = "".join(page for name, page in html.items() if name.startswith("reference/"))
    documented = set(re.findall(r'id="([\w.]+)"', text))
    names = solo_infer.__all__ if package == "solo_infer" else training_names()
    missing = [
        name
        for name in names
        if not name.startswith("__") and not {f"{package}.{name}", f"solo_infer.{name}"} & documented
    ]
    assert not missing


@pytest.mark.parametrize(
    "name", ["SOLO.from_pretrained", "Segmenter.stream", "Result.filter", "Instance.rle"]
)
def test_methods_are_in_the_reference(html, name):
    assert any(f'id="solo_infer.{name}"' in page for page in html.values())


def test_every_page_is_in_the_navigation(html):
    links = {
        os.path.normpath(link.partition("#")[0])
        for block in re.findall(r"<nav.*?</nav>", html["index.html"], re.DOTALL)
        for link in re.findall(r'href="([^"]+)"', block)
    }
    links = {"index.html" if link == "." else link for link in links}
    assert set(html) - {"404.html"} <= links
    # Each page of the repository is a page of the site.
    pages = {page_name(page).removeprefix("docs/").lower() for page in PAGES if page.parent != EXAMPLES}
    made = {name.replace(".html", ".md") for name in html}
    assert pages - {"readme.md"} <= made
    assert "examples.html" in html


def test_nothing_is_loaded_from_the_network(site, html):
    for name, page in html.items():
        addresses = LoadedFiles(page).addresses
        assert any(address.endswith(".css") for address in addresses), name
        assert not [address for address in addresses if re.match(r"(\w+:)?//", address)], name
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not [address for style in styles for address in re.findall(r"url\(.?(?:\w+:)?//[^)]+", style)]


def test_links_of_the_site_lead_to_pages_and_anchors(site, html):
    anchors = {name: set(re.findall(r' id="([^"]+)"', page)) for name, page in html.items()}
    for name, page in html.items():
        if name == "404.html":  # its links are those of any folder of a server
            continue
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]*)"', page):
            if re.match(r"\w+:", link):
                continue
            target, _, anchor = link.partition("#")
            path = os.path.normpath(os.path.join(os.path.dirname(name), target)) if target else name
            path = "index.html" if path == "." else path
            assert (site / path).is_file(), (name, link)
            assert not anchor or anchor in anchors[path], (name, link)


def test_model_zoo_has_all_checkpoints(html):
    from solo_infer.weights.manifest import load_manifest

    page = html["model-zoo.html"]
    for entry in load_manifest().values():
        if entry.folder is None:
            rows = re.findall(rf"<tr>\s*<td><code>{entry.name}</code></td>", page)
            assert len(rows) == 2, entry.name  # one in each table
            assert entry.filename in page


def test_command_line_page_has_all_commands(html):
    from solo_infer.cli.main import COMMANDS

    for name in COMMANDS:
        assert f"usage: solo-infer {name}" in html["reference/command-line.html"]


def test_examples_are_in_the_site(html):
    for path in EXAMPLES.rglob("*.py"):
        anchor = re.sub(r"[^\w\- ]", "", path.relative_to(EXAMPLES).as_posix())
        assert f'id="{anchor}"' in html["examples.html"], path


def test_gallery_is_small_and_shown():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert {f"gallery/{path.name}" for path in GALLERY} == set(re.findall(r"\((gallery/[^)]+)\)", page))
    sizes = [path.stat().st_size for path in GALLERY]
    assert max(sizes) < 150_000 and sum(sizes) < 1_000_000
