"""Images for tests, and a loopback web server that serves them."""

from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from solo_infer.data.images import load_image

HEIGHT, WIDTH = 12, 17
ORIENTATION = 0x0112


class ImageServer:
    """Web server on the loopback interface with preset responses."""

    def __init__(self) -> None:
        self.user_agents: list[str | None] = []
        self._responses: dict[str, tuple[int, dict[str, str], bytes] | None] = {}
        self._done = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._respond(self)

            def log_message(self, *args: Any) -> None:
                """Log nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def serve(
        self, path: str, data: bytes, *, status: int = 200, silent: bool = False, **headers: str
    ) -> str:
        """Set the response for a path and return its URL.

        Empty headers are omitted. A silent path gets no response.
        """
        headers = {"Content-Type": "image/png", "Content-Length": str(len(data)), **headers}
        self._responses[path] = None if silent else (status, headers, data)
        return self.url + path

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        self.user_agents.append(handler.headers["User-Agent"])
        response = self._responses[handler.path]
        if response is None:
            self._done.wait(10)
            return
        status, headers, data = response
        handler.send_response(status)
        for name, value in headers.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def close(self) -> None:
        """Stop the server; may be called twice."""
        self._done.set()
        self._http.shutdown()
        self._http.server_close()


def random_pixels(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Return pixels (height, width, 3) uint8 that differ from all their mirror images and rotations."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, file_format, **options)
    return buffer.getvalue()


def exif_with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def assert_pixels(source: Any, expected: np.ndarray, **options: Any) -> None:
    loaded = load_image(source, **options)
    np.testing.assert_array_equal(loaded.pixels, expected)
    assert loaded.pixels.dtype == np.uint8
    assert loaded.pixels.flags.c_contiguous and loaded.pixels.flags.writeable


def gray3(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=2)
