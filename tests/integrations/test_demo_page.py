"""The page of the web demo in a real browser."""

import io
import json
import os
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from helpers.paths import EXAMPLES
from helpers.results import assert_same
from helpers.running_app import running_app
from helpers.uploads import bomb
from PIL import Image

from solo_infer import Result, load_model
from solo_infer.integrations import demo_page
from solo_infer.integrations.demo import Demo
from solo_infer.integrations.self_contained import without_external_elements
from solo_infer.results.formats.result_json import schema

jsonschema = pytest.importorskip("jsonschema")

CHROMIUM = Path("/usr/bin/chromium")
STREET = EXAMPLES / "street.jpg"


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'solo-infer[demo]')")
    folder = tmp_path_factory.mktemp("demo")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "page")
    demo = Demo(device="cpu", folder=folder, max_bytes=300_000)
    with running_app(demo_page.create_app(demo)) as address:
        yield address
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=180_000
        )
        yield browser
        browser.close()


@pytest.fixture
def page(address, browser):
    """Open the page; afterwards, check that the browser asked no other host for anything."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.set_default_timeout(120_000)
    urls = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(address)
    page.locator("#photo input[type=file]").wait_for(state="attached")
    yield page
    page.close()
    hosts = {urlsplit(url).netloc for url in urls if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {urlsplit(address).netloc}


def drop(page, content, name="street.jpg"):
    page.locator("#photo input[type=file]").set_input_files(
        {"name": name, "mimeType": "image/jpeg", "buffer": content}
    )


def test_page_refers_to_no_other_host(address):
    with urllib.request.urlopen(address) as answer:
        text = answer.read().decode()
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "solo_infer" in text and '"run_history":false' in text.replace(" ", "")
    assert without_external_elements(text.encode()) == text.encode()


def test_upload_masks_and_download(page, tiny, tmp_path):
    drop(page, STREET.read_bytes())
    page.locator("#message", has_text="instances").wait_for()
    expected = tiny(STREET.read_bytes(), min_score=0.3)
    assert f"{len(expected)} instances: " in page.locator("#message").inner_text()

    url = page.locator("#picture img").get_attribute("src")
    picture = np.asarray(Image.open(io.BytesIO(page.request.get(url).body())).convert("RGB"), np.int64)
    photo = np.asarray(Image.open(STREET).convert("RGB"), np.int64)
    assert picture.shape == photo.shape
    difference = np.abs(picture - photo).max(axis=2) > 30
    masks = expected.masks.any(dim=0).numpy()
    assert difference[masks].mean() > 0.5 and difference[~masks].mean() < 0.1
    assert np.abs(picture - np.asarray(expected.plot(), np.int64)).mean() < 3

    # Gradio also renders a hidden row that measures the columns.
    page.locator("#instances", has_text=f"{float(expected.scores[0]):.3f}").wait_for()
    assert expected.names[0] in page.locator("#instances").inner_text()
    with page.expect_download() as download:
        page.locator("#json").click()
    assert download.value.suggested_filename == "street.json"
    download.value.save_as(tmp_path / "street.json")
    values = json.loads((tmp_path / "street.json").read_text(encoding="utf-8"))
    jsonschema.validate(values, schema())
    assert values["source"] == "street.jpg"
    assert_same(Result.from_dict({**values, "source": ""}), expected)


def test_settings_of_the_page(page, tiny):
    drop(page, STREET.read_bytes())
    page.locator("#message", has_text="instances").wait_for()
    page.locator("#classes input").click()
    page.get_by_role("option", name="traffic light", exact=True).click()
    expected = tiny.only("traffic light")(STREET.read_bytes(), min_score=0.3)
    page.locator("#message", has_text=f"{len(expected)} instances: {len(expected)} traffic light").wait_for()
    page.locator("#min-score input[type=number]").fill("0.95")
    page.locator("#min-score input[type=number]").press("Enter")
    page.locator("#segment").click()
    page.locator("#message", has_text="No instances").wait_for()
    assert page.locator("#picture img").is_visible()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "not an image of a supported format"),
        (STREET.read_bytes()[:5000], "truncated"),
        (bomb(6000), "6000 x 6000 pixels: expected at most 25000000"),
    ],
    ids=["text", "truncated", "bomb"],
)
def test_error_on_the_page(page, content, message):
    drop(page, content, "<b>photo.jpg")
    alert = page.locator("#message [role=alert]")
    alert.wait_for()
    assert message in alert.inner_text()
    assert not page.locator("#picture img").is_visible()
    page.locator("#photo button").first.click()  # removes the file
    page.locator("#message", has_text="Drop a photo.").wait_for()


def test_file_that_is_too_large(page):
    drop(page, bytes(300_001))
    page.get_by_text("maximum allowed size").first.wait_for()


def test_model_that_is_not_on_this_machine(page, monkeypatch):
    monkeypatch.setenv("SOLO_INFER_OFFLINE", "1")
    drop(page, STREET.read_bytes())
    page.locator("#message", has_text="instances").wait_for()
    page.locator("#model input").click()
    page.get_by_role("option", name="solov2_r50_1x (to be downloaded)", exact=True).click()
    alert = page.locator("#message [role=alert]")
    alert.wait_for()
    assert "Offline mode is on, and solov2_r50_1x is not on this machine" in alert.inner_text()
