"""The example that serves a model over HTTP, with a real server on this machine."""

import asyncio
import copy
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from helpers.paths import DATA, EXAMPLES, ROOT
from helpers.results import assert_same
from helpers.running_app import running_app
from helpers.uploads import bomb, encode, icon_with_large_png, png_header
from PIL import Image

from solo_infer import Result, __version__

REASON = "not installed (pip install 'solo-infer[serve]' httpx)"
for package in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(package, reason=f"{package} is {REASON}")
httpx = pytest.importorskip("httpx", reason=f"httpx is {REASON}")

PHOTO = (DATA / "chelsea.png").read_bytes()
MAX_BYTES = 400_000


@pytest.fixture(scope="module")
def serve():
    spec = importlib.util.spec_from_file_location("serve_example", EXAMPLES / "serve.py")
    sys.modules["serve_example"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def client_of(app, **options):
    with running_app(app) as address, httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(serve, small_tiny):
    limits = serve.Limits(max_bytes=MAX_BYTES, receive_seconds=60)
    with client_of(serve.create_app(small_tiny, name="small", limits=limits, threads=2)) as client:
        yield client


def post(client, content=PHOTO, *, query="", content_type="image/png", **options):
    headers = {"Content-Type": content_type} if content_type else {}
    return client.post(f"/predict{query}", content=content, headers=headers, **options)


def post_form(client, *files, data=None):
    return client.post("/predict", files=list(files), data=data)


# --- Answers


def test_health(client):
    answer = client.get("/health")
    expected = {"ready": True, "model": "small", "version": __version__, "device": "cpu", "waiting": 0}
    assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.parametrize(
    ("query", "settings", "classes"),
    [
        ("", {}, None),
        ("?min_score=0.2", {"min_score": 0.2}, None),
        ("?classes=cat", {}, ["cat"]),
        ("?classes=dog&classes=bird&min_score=0.15", {"min_score": 0.15}, ["dog", "bird"]),
    ],
)
def test_prediction_is_that_of_the_model(client, small_tiny, query, settings, classes):
    model = small_tiny if classes is None else small_tiny.only(classes)
    expected = model(PHOTO, **settings)
    assert len(expected) > 0
    answer = post(client, query=query)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert_same(Result.from_json(answer.text), expected)


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", None])
def test_raw_bodies(client, small_tiny, content_type):
    assert_same(Result.from_json(post(client, content_type=content_type).text), small_tiny(PHOTO))


def test_chunked_body_and_form(client, small_tiny):
    expected = small_tiny(PHOTO)
    chunks = (PHOTO[start : start + 10_000] for start in range(0, len(PHOTO), 10_000))
    assert_same(Result.from_json(post(client, chunks).text), expected)
    assert_same(Result.from_json(post_form(client, ("file", ("a.png", PHOTO))).text), expected)


def test_picture(client, small_tiny):
    answer = post(client, query="?format=png&min_score=0.2")
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert np.array_equal(picture, np.asarray(small_tiny(PHOTO, min_score=0.2).plot()))


def test_coco_results(client, small_tiny):
    answer = post(client, query="?format=coco&image_id=7")
    assert answer.json() == json.loads(json.dumps(small_tiny(PHOTO).to_coco(7)))


def test_concurrent_requests_get_the_answers_of_single_ones(client, small_tiny):
    photos = [encode("PNG", (60 + 20 * number, 90)) for number in range(6)]
    cases = [(photo, score) for photo in photos for score in (0.05, 0.2)] * 2
    expected = {case: small_tiny(case[0], min_score=case[1]) for case in set(cases)}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: post(client, case[0], query=f"?min_score={case[1]}"), cases))
    for case, answer in zip(cases, answers, strict=True):
        assert_same(Result.from_json(answer.text), expected[case])


# --- Bad input

HUGE = bytes(MAX_BYTES + 20_000)
FORM = "multipart/form-data; boundary=x"
BAD_REQUESTS = {
    "empty": (400, "0 bytes", lambda c: post(c, b"")),
    "text": (400, "not an image", lambda c: post(c, b"hello")),
    "truncated JPEG": (400, "truncated", lambda c: post(c, encode("JPEG", (200, 200))[:4000])),
    "truncated PNG": (400, "truncated", lambda c: post(c, PHOTO[:5000])),
    "bomb": (400, "6000 x 6000 pixels", lambda c: post(c, bomb(6000))),
    "huge size in the header": (400, "8000 x 9000 pixels", lambda c: post(c, png_header(8000, 9000))),
    "largest size": (400, "more pixels", lambda c: post(c, png_header(2**31 - 1, 2**31 - 1))),
    "no pixels": (400, "damaged|not an image", lambda c: post(c, png_header(30, 30))),
    "zero size": (400, "damaged|not an image", lambda c: post(c, png_header(0, 0))),
    "icon": (400, "not an image of a supported", lambda c: post(c, icon_with_large_png())),
    "TIFF": (400, "not an image of a supported", lambda c: post(c, encode("TIFF"))),
    "PostScript": (400, "not an image of a supported", lambda c: post(c, encode("EPS"))),
    "PDF": (400, "not an image of a supported", lambda c: post(c, encode("PDF"))),
    "SVG": (400, "not an image of a supported", lambda c: post(c, b"<svg/>", content_type="image/svg+xml")),
    "base64 in JSON": (415, "image/\\*", lambda c: c.post("/predict", json={"image": "aGVsbG8="})),
    "plain text": (415, "text/plain", lambda c: post(c, b"hello", content_type="text/plain")),
    "odd content type": (415, "expected image", lambda c: post(c, content_type="\x7f;;;" * 100)),
    "compressed": (400, "not an image", lambda c: post(c, b"\x1f\x8b" + bytes(30))),
    "wrong field": (400, "'image'.*field 'file'", lambda c: post_form(c, ("image", ("a.png", PHOTO)))),
    "no file": (400, "field 'file'", lambda c: post_form(c, ("file", (None, b"text")))),
    "two files": (400, "Too many files", lambda c: post_form(c, *[("file", ("a.png", PHOTO[:99]))] * 2)),
    "other fields": (
        400,
        "expected one file",
        lambda c: post_form(c, ("file", ("a.png", PHOTO)), data={"min_score": "1"}),
    ),
    "many fields": (
        400,
        "Too many fields",
        lambda c: post_form(c, ("file", ("a", b"")), data={str(i): "" for i in range(50)}),
    ),
    "empty file": (400, "0 bytes", lambda c: post_form(c, ("file", ("a.png", b"")))),
    "text file": (400, "not an image", lambda c: post_form(c, ("file", ("a.txt", b"hello")))),
    "form without boundary": (400, "boundary", lambda c: post(c, content_type="multipart/form-data")),
    "damaged form": (400, "form", lambda c: post(c, b"--y\r\n\r\nhello", content_type=FORM)),
    "incomplete form": (400, "field", lambda c: post(c, b"--x\r\nContent-Disp", content_type=FORM)),
    "empty form": (400, "field", lambda c: post(c, b"", content_type=FORM)),
    "score that is text": (400, "min_score='high'", lambda c: post(c, query="?min_score=high")),
    "negative score": (400, "min_score='-0.1'", lambda c: post(c, query="?min_score=-0.1")),
    "score above 1": (400, "min_score='1.5'", lambda c: post(c, query="?min_score=1.5")),
    "NaN": (400, "min_score='nan'", lambda c: post(c, query="?min_score=nan")),
    "infinity": (400, "min_score='inf'", lambda c: post(c, query="?min_score=inf")),
    "no score": (400, "min_score=''", lambda c: post(c, query="?min_score=")),
    "unknown format": (400, "format='xml'", lambda c: post(c, query="?format=xml")),
    "unknown class": (400, "Did you mean 'cat'", lambda c: post(c, query="?classes=catt")),
    "class number": (400, "'0'", lambda c: post(c, query="?classes=0")),
    "damaged class": (400, "class", lambda c: post(c, query="?classes=%ff%00")),
    "long class": (400, "class", lambda c: post(c, query=f"?classes={'a' * 20_000}")),
    "unknown option": (400, "min_scor=.*min_score, classes", lambda c: post(c, query="?min_scor=0.5")),
    "image id that is text": (400, "image_id='x'", lambda c: post(c, query="?format=coco&image_id=x")),
    "giant body": (413, f"at most {MAX_BYTES}", lambda c: post(c, HUGE)),
    "giant body in chunks": (413, "expected at most", lambda c: post(c, iter([HUGE] * 40))),
    "giant form": (413, "expected at most", lambda c: post_form(c, ("file", ("a.png", HUGE * 40)))),
    "GET": (405, "Method", lambda c: c.get("/predict")),
    "PUT": (405, "Method", lambda c: c.put("/predict", content=PHOTO)),
    "DELETE": (405, "Method", lambda c: c.delete("/predict")),
    "POST to /health": (405, "Method", lambda c: c.post("/health", content=PHOTO)),
    "unknown path": (404, "Not Found", lambda c: c.post("/predictions", content=PHOTO)),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests(client, name):
    status, message, send = BAD_REQUESTS[name]
    answer = send(client)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert re.search(message, error["message"]) and error["type"], error
    assert list(answer.json()) == ["error"] and list(error) == ["type", "message"]
    assert len(error["message"]) < 1000 and "Traceback" not in answer.text and str(ROOT) not in answer.text
    assert client.get("/health").json()["waiting"] == 0


def test_server_answers_after_bad_requests(client, small_tiny):
    assert_same(Result.from_json(post(client).text), small_tiny(PHOTO))


@pytest.mark.parametrize(
    "request_line", [b"\x00\x01\x02\r\n\r\n", b"POST /predict HTTP/9\r\n\r\n", b"GET\r\n\r\n"]
)
def test_bytes_that_are_not_http(client, request_line):
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
        connection.sendall(request_line)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert client.get("/health").status_code == 200


# --- Load, failures, shutdown


class BlockedModel:
    """A copy of a model whose predictions wait; records the sizes of batches."""

    def __init__(self, model):
        self.batches, self.is_open, self.is_entered = [], threading.Event(), threading.Event()

        class Blocked(type(model)):
            def predict_batch(other, images):  # noqa: N805
                self.batches.append(len(images))
                self.is_entered.set()
                assert self.is_open.wait(100)
                return super().predict_batch(images)

        self.model = copy.copy(model)
        self.model.__class__ = Blocked


def wait_for(client, waiting):
    """Wait until requests are in the server; each question takes a round trip."""
    for _ in range(20_000):
        if client.get("/health").json()["waiting"] == waiting:
            return
    raise AssertionError(client.get("/health").json())


def test_busy_server_refuses_requests(serve, small_tiny):
    blocked = BlockedModel(small_tiny)
    app = serve.create_app(blocked.model, limits=serve.Limits(max_waiting=2))
    with client_of(app) as client, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post, client) for _ in range(2)]
        wait_for(client, 2)
        refused = post(client)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "busy" in refused.json()["error"]["message"]
        blocked.is_open.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert post(client).status_code == 200


def test_images_of_equal_settings_share_a_batch(serve, small_tiny):
    blocked = BlockedModel(small_tiny)
    app = serve.create_app(blocked.model, threads=1, batch_size=4)
    with client_of(app) as client, ThreadPoolExecutor(9) as pool:
        first = pool.submit(post, client)
        assert blocked.is_entered.wait(100)
        others = [pool.submit(post, client) for _ in range(5)]
        bad = pool.submit(post, client, b"hello")
        classes = [pool.submit(post, client, query="?classes=cat") for _ in range(2)]
        wait_for(client, 9)
        blocked.is_open.set()
        for answer in (first, *others):
            assert_same(Result.from_json(answer.result().text), small_tiny(PHOTO))
        for answer in classes:
            assert_same(Result.from_json(answer.result().text), small_tiny.only("cat")(PHOTO))
        assert bad.result().status_code == 400
    assert blocked.batches[0] == 1 and sum(blocked.batches) == 8
    assert max(blocked.batches) in (3, 4) and len(blocked.batches) <= 5


def test_failure_of_the_model(serve, small_tiny):
    model = copy.copy(small_tiny)
    failures = iter([RuntimeError("out of memory: secret")])

    def predict_batch(images):
        for error in failures:
            raise error
        return small_tiny.predict_batch(images)

    model.predict_batch = predict_batch
    with client_of(serve.create_app(model)) as client:
        failed = post(client)
        assert failed.status_code == 500 and "secret" not in failed.text
        assert failed.json()["error"]["type"] == "ServerError"
        assert_same(Result.from_json(post(client).text), small_tiny(PHOTO))


def test_slow_senders_are_given_up(serve, small_tiny):
    app = serve.create_app(small_tiny, limits=serve.Limits(receive_seconds=0.2))
    with client_of(app) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nfirst bytes"
            )
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert client.get("/health").json()["waiting"] == 0


@pytest.mark.parametrize("content_type", ["image/png", FORM])
def test_client_that_disconnects(serve, small_tiny, content_type):
    messages = iter([{"type": "http.request", "body": PHOTO[:99], "more_body": True}])
    sent = []

    async def receive():
        return next(messages, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    scope = {
        **{"type": "http", "method": "POST", "path": "/predict", "query_string": b""},
        "headers": [(b"content-type", content_type.encode())],
    }
    asyncio.run(serve.create_app(small_tiny)(scope, receive, send))  # without an error in the log
    assert sent[0]["status"] == 400


def test_limits_of_the_server_apply(serve, small_tiny):
    content = encode("PNG", (100, 100))
    app = serve.create_app(small_tiny, limits=serve.Limits(max_bytes=len(content), max_pixels=9_999))
    with client_of(app) as client:
        assert "expected at most 9999" in post(client, content).json()["error"]["message"]
        assert post(client, content + b"0").status_code == 413
        form = post_form(client, ("file", ("a.png", content + b"0")))
        assert form.status_code == 400 and f"at most {len(content)}" in form.json()["error"]["message"]


def test_shutdown_answers_the_requests_in_the_server(serve, small_tiny):
    blocked = BlockedModel(small_tiny)
    app = serve.create_app(blocked.model)
    with httpx.Client(timeout=120, trust_env=False) as client, ThreadPoolExecutor(1) as pool:
        with running_app(app) as address:
            answer = pool.submit(client.post, f"{address}/predict", content=PHOTO)
            assert blocked.is_entered.wait(100)
            threading.Timer(0.5, blocked.is_open.set).start()  # during the shutdown
        assert_same(Result.from_json(answer.result().text), small_tiny(PHOTO))
    asyncio.run(_assert_closed(app))


async def _assert_closed(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        health = await client.get("/health")
        assert health.status_code == 503 and health.json()["ready"] is False
        assert (await client.post("/predict", content=PHOTO)).status_code == 503


def test_mounted_in_another_application(serve, small_tiny):
    from fastapi import FastAPI

    outer = FastAPI()
    outer.mount("/segment", serve.create_app(small_tiny))
    with client_of(outer) as client:
        answer = client.post("/segment/predict", content=PHOTO)
        assert_same(Result.from_json(answer.text), small_tiny(PHOTO))
        assert client.post("/segment/predict").status_code == 400


def test_description_of_the_server(client):
    paths = client.get("/openapi.json").json()["paths"]
    names = {parameter["name"] for parameter in paths["/predict"]["post"]["parameters"]}
    assert names == {"min_score", "classes", "format", "image_id"}
    assert client.get("/docs").status_code == 404  # it would load scripts from another host


def test_program_ends_cleanly_on_sigterm(small_tiny, tmp_path):
    saved = small_tiny.save_pretrained(tmp_path / "small")
    command = [sys.executable, str(EXAMPLES / "serve.py"), "--model", str(saved), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        address = next(match[0] for line in process.stderr if (match := re.search(r"http://[\d.:]+", line)))
        with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
            assert client.get("/health").json()["model"] == str(saved)
            assert_same(Result.from_json(post(client).text), small_tiny(PHOTO))
        process.send_signal(signal.SIGTERM)
        log = process.stderr.read()
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in log and "Traceback" not in log
