"""Functions of the web demo, its page in a real browser, and its command."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.paths import EXAMPLES
from helpers.results import assert_same, make_result
from helpers.uploads import bomb, encode

from solo_infer import ConfigError, ImageError, OfflineError, Result, ResultError, load_model
from solo_infer.integrations import demo_page
from solo_infer.integrations.demo import HEADERS, Demo, summarize, table
from solo_infer.integrations.self_contained import SelfContained, without_external_elements
from solo_infer.results.formats.result_json import schema

pytest_plugins = ["helpers.command_line_fixtures"]

jsonschema = pytest.importorskip("jsonschema")

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
