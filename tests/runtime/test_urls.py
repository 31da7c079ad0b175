"""HTTP answers that arrive too slowly end within a stated time."""

import time
from urllib.request import Request

import pytest
from helpers.faulty_server import content, isolate, running_server

from solo_infer import load_image
from solo_infer.errors import DownloadError, ImageError
from solo_infer.runtime import urls
from solo_infer.weights.download import download_file

BODY = bytes(1000)


@pytest.fixture
def server(monkeypatch, tmp_path):
    isolate(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.1")  # a total time of one second
    with running_server() as server:
        yield server


def drip(handler, text):
    """Send one byte after another, until the server ends or the client has gone."""
    for byte in text:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        if handler.server.stopping.wait(0.03):
            return


def slow_body(handler):
    handler.head(200, Content_Length=len(BODY))
    drip(handler, BODY)


def slow_body_without_length(handler):
    handler.head(200)
    drip(handler, BODY)


def slow_chunks(handler):
    handler.head(200, Transfer_Encoding="chunked")
    drip(handler, b"1\r\na\r\n" * 200)


def slow_header(handler):
    drip(handler, b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 1000)


def slow_redirect(handler):
    drip(handler, b"HTTP/1.1 302 Found\r\nLocation: /" + b"x" * 1000)


def slow_error(handler):
    handler.head(500, Content_Length=len(BODY))
    drip(handler, BODY)


SLOW = [slow_body, slow_body_without_length, slow_chunks, slow_header, slow_redirect]


@pytest.mark.parametrize("behavior", SLOW)
def test_dripping_server_is_given_up(server, tmp_path, behavior):
    url = server.at("/x.png", behavior)
    start = time.monotonic()
    with pytest.raises(ImageError, match="too slow: [0-9]+ bytes within 1(.0[0-9])? s"):
        load_image(url)
    with pytest.raises(DownloadError, match="too slow: [0-9]+ bytes within 1(.0[0-9])? s"):
        download_file(url, tmp_path / "x.pth", size=len(BODY), progress=False)
    assert len(server.requests) == 2  # not tried again
    assert time.monotonic() - start < 8


def test_body_of_an_error_is_not_awaited(server):
    start = time.monotonic()
    with pytest.raises(ImageError, match="HTTP 500"):
        load_image(server.at("/x.png", slow_error))
    assert time.monotonic() - start < 4


def test_bytes_extend_the_time(server, monkeypatch):
    """Large files may take long, if they arrive fast enough."""
    monkeypatch.setattr(urls, "MIN_BYTES_PER_SECOND", 10)
    with urls.open_http(Request(server.at("/x", slow_body)), timeout=0.1) as response:
        assert response.read(60) == BODY[:60]
        assert response.status == 200


def test_content_is_unchanged(server):
    body = bytes(range(256)) * 3000
    with urls.open_http(Request(server.at("/x", content(body))), timeout=5.0) as response:
        assert response.read() == body and response.headers["Content-Length"] == str(len(body))
