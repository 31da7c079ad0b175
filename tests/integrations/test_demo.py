"""Functions of the web demo, its page in a real browser, and its command."""

import asyncio
import io
import json
import os
import signal
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import numpy as np
import pytest
from helpers.paths import EXAMPLES
from helpers.results import assert_same, make_result
from helpers.running_app import running_app
from helpers.uploads import bomb, encode
from PIL import Image

from solo_infer import ConfigError, ImageError, OfflineError, Result, ResultError, load_model
from solo_infer.integrations import demo_page
from solo_infer.integrations.demo import HEADERS, Demo, summarize, table
from solo_infer.integrations.self_contained import SelfContained, without_external_elements
from solo_infer.results.formats.result_json import schema

pytest_plugins = ["helpers.command_line_fixtures"]

CHROMIUM = Path("/usr/bin/chromium")
STREET = EXAMPLES / "street.jpg"


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", device="cpu")


@pytest.fixture
def demo(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("solo_infer.integrations.demo.load_model", lambda name, **options: loaded(name, tiny))
    return Demo(device="cpu", folder=tmp_path)


def loaded(name, tiny):
    return tiny if name == "tiny" else load_model(name, device="cpu", offline=True)


# --- Functions


def test_models_of_the_list(tmp_path):
    demo = Demo(["mine.pth", "solo_r50_1x", "mine.pth"], folder=tmp_path)
    texts = {name: text for text, name in demo.choices()}
    assert list(texts)[:3] == demo.models[:3] == ["mine.pth", "solo_r50_1x", "tiny"]
    assert texts["mine.pth"] == "mine.pth" and texts["tiny"] == "tiny"
    assert texts["solo_r50_1x"] == "solo_r50_1x (to be downloaded)"
    assert texts["authors_solo_r50_1x"] == "authors_solo_r50_1x (non-commercial, to be downloaded)"
    assert Demo(folder=tmp_path).models[0] == "tiny"


@pytest.mark.parametrize("name", ["/etc/passwd", "owner/name", "", None, "../tiny"])
def test_visitors_load_only_models_of_the_list(demo, name):
    with pytest.raises(ConfigError, match="expected one of the list"):
        demo.segment(str(STREET), name, 0.3, [])


def test_result_is_that_of_the_model(demo, tiny, tmp_path):
    result = demo.segment(str(STREET), "tiny", 0.4, ["car", "person"])
    expected = tiny.only(["car", "person"])(STREET.read_bytes(), min_score=0.4)
    assert result.source == "street.jpg" and len(result) == len(expected) > 0
    path = Path(demo.write_json(result))
    assert path.name == "street.json" and path.is_relative_to(tmp_path)
    values = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(values, schema())
    assert_same(Result.from_dict({**values, "source": ""}), expected)


def test_last_models_stay_in_memory(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("solo_infer.integrations.demo.load_model", lambda name, **kw: calls.append(name))
    demo = Demo(["a", "b", "c"], folder=tmp_path)
    for name in "abacaab":
        demo.model(name)
    assert calls == ["a", "b", "c", "b"]


def test_threads_share_a_demo(demo, tiny):
    expected = tiny(STREET.read_bytes(), min_score=0.3)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: demo.segment(str(STREET), "tiny", 0.3, []), range(6)))
    for result in results:
        assert result.to_dict()["instances"] == expected.to_dict()["instances"]


def test_oldest_json_files_are_removed(tmp_path):
    demo = Demo(folder=tmp_path)
    paths = [Path(demo.write_json(make_result())) for _ in range(70)]
    assert [path.exists() for path in paths] == [False] * 6 + [True] * 64
    assert len(list(tmp_path.iterdir())) == 64


@pytest.mark.parametrize(
    ("content", "settings", "error", "message"),
    [
        (b"", {}, ImageError, "0 bytes"),
        (b"text", {}, ImageError, "not an image of a supported format"),
        (STREET.read_bytes()[:5000], {}, ImageError, "truncated"),
        (bomb(6000), {}, ImageError, "6000 x 6000 pixels: expected at most 25000000"),
        (bytes(20_000_001), {}, ImageError, "at least 20000001|20000001 bytes"),
        (encode(), {"min_score": 1.5}, ConfigError, "min_score=1.5: expected a number in 0..1"),
        (encode(), {"min_score": float("nan")}, ConfigError, "expected a number in 0..1"),
        (encode(), {"classes": ["unicorn"]}, ResultError, "unicorn"),
        (encode(), {"name": "solo_r50_1x"}, OfflineError, "Offline mode is on"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, dict | str) else "",
)
def test_errors(demo, tmp_path, content, settings, error, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        demo.segment(str(path), **{"name": "tiny", "min_score": 0.3, "classes": [], **settings})


def test_missing_file(demo, tmp_path):
    with pytest.raises(ImageError, match="cannot be read .*: drop it once more"):
        demo.segment(str(tmp_path / "gone.jpg"), "tiny", 0.3, [])


def test_table_and_summary():
    result = make_result(4)
    rows = table(result)
    assert [len(row) for row in rows] == [len(HEADERS)] * 4
    assert rows[1] == [2, "cat", "0.800", 2.0, 1.0, 7.0, 4.0, 14]
    assert rows[3][-1] == 0  # an empty mask
    text = summarize(result, 0.123)
    assert text == "4 instances: 2 dog, 1 cat, 1 bird. 29 x 20 pixels, 0.12 s"
    assert summarize(make_result(0), 1.0).startswith("No instances. 29 x 20")
    assert table(make_result(0)) == []


def test_messages_are_escaped():
    text = demo_page.as_html("a <script>\nb \x1b[31m & 'c'", is_error=True)
    assert '<div role="alert"' in text and "<script>" not in text and "\x1b" not in text
    assert "a &lt;script&gt;<br>b \\x1b[31m &amp; &#x27;c&#x27;" in text


def test_gradio_is_optional(monkeypatch, tmp_path, run):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    code, out, err = run("demo", "--no-browser", "--port", "0")
    assert code == 1 and out == ""
    assert "ConfigError: The page needs gradio" in err and "pip install 'solo-infer[demo]'" in err


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99_999), ("203.0.113.1", 0), ("no such host", 0)])
def test_addresses_that_cannot_be_used(host, port):
    with pytest.raises(ConfigError, match="port"):
        demo_page._listen(host, port)


def test_port_in_use():
    with demo_page._listen("127.0.0.1", 0) as listener:
        with pytest.raises(ConfigError, match="--port 0 for a free one"):
            demo_page._listen("127.0.0.1", listener.getsockname()[1])


# --- Pages without external elements


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (b'<link rel="preconnect" href="https://fonts.example/css">x', b"x"),
        (b"<script src='https://cdn.example/a.js' async></script>x", b"x"),
        (b'<meta\n property="og:image"\n content="http://a.example/b.jpg"\n/>x', b"x"),
        (b'<script src="./a.js"></script><link href="/b.css">', None),
        (b'<link href="http://127.0.0.1:7860/c.css">', None),
        (b'<script>const u = "https://a.example"</script>', None),  # text, which fetches nothing
    ],
)
def test_external_elements_are_removed(page, expected):
    assert without_external_elements(page) == (page if expected is None else expected)


def test_middleware_changes_only_html():
    def answer_of(content_type, body):
        async def app(scope, receive, send):
            headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body[:30], "more_body": True})
            await send({"type": "http.response.body", "body": body[30:]})

        async def send(message):
            sent.append(message)

        sent = []
        asyncio.run(SelfContained(app)({"type": "http"}, None, send))
        headers = dict(sent[0]["headers"])
        assert b"default-src 'self'" in headers[b"content-security-policy"]
        content = b"".join(message["body"] for message in sent[1:])
        assert int(headers[b"content-length"]) == len(content)
        return content

    page = b"<html><head><link href='https://fonts.example/css'></head>"
    assert answer_of(b"text/html; charset=utf-8", page) == b"<html><head></head>"
    assert answer_of(b"application/javascript", page) == page


# --- The page


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

    assert page.locator("#instances tbody tr").count() >= min(len(expected), 10)
    assert expected.names[0] in page.locator("#instances tbody tr").first.inner_text()
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
    drop_again = page.locator("#photo button[aria-label='Remove this file'], #photo button").first
    assert drop_again.is_visible()


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


def test_command_shows_the_page_until_ctrl_c(run, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'solo-infer[demo]')")
    pages = []

    def visit(address):
        with urllib.request.urlopen(address, timeout=120) as answer:
            pages.append(answer.read())
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(
        "webbrowser.open", lambda address: threading.Thread(target=visit, args=[address]).start()
    )
    code, out, err = run("demo", "--port", "0", "--device", "cpu")
    assert code == 0
    assert out.startswith("http://127.0.0.1:") and "ctrl-C" in err and "Traceback" not in err
    assert b"solo_infer" in pages[0]
    assert "GRADIO_TEMP_DIR" not in os.environ
