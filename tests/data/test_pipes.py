"""Pipes, standard input and special files as sources."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.image_sources import assert_pixels, encode, random_pixels

from solo_infer.data import pipes
from solo_infer.data.images import load_image
from solo_infer.data.pipes import STDIN
from solo_infer.errors import ImageError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path / "pipe.png"


def write_later(path: Path, *parts: bytes) -> threading.Thread:
    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            for part in parts:
                file.write(part)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_fifo_is_read_to_its_end(fifo: Path) -> None:
    pixels = random_pixels(200, 300)
    data = encode(pixels)
    assert len(data) > 1 << 16  # more than a pipe holds
    writer = write_later(fifo, data[:10], data[10:])
    assert_pixels(fifo, pixels)
    writer.join(10)


def test_pipe_of_a_writer_that_is_gone() -> None:
    """Process substitution of a shell: the path of a descriptor whose writer may have finished already."""
    reader, writer = os.pipe()
    os.write(writer, encode(random_pixels()))
    os.close(writer)
    try:
        assert_pixels(f"/dev/fd/{reader}", random_pixels())
    finally:
        os.close(reader)


@pytest.mark.parametrize("parts", [None, (b"\x89PNG",)], ids=["no writer", "silent writer"])
def test_silent_pipe_does_not_block(fifo: Path, monkeypatch: pytest.MonkeyPatch, parts: Any) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.2")
    writer = os.open(fifo, os.O_RDWR) if parts else None  # of a pipe, this does not wait for a reader
    try:
        if writer is not None:
            os.write(writer, parts[0])
        with pytest.raises(ImageError, match=r"pipe\.png.*sent nothing for 0\.2 s.*SOLO_INFER_TIMEOUT"):
            load_image(fifo)
    finally:
        if writer is not None:
            os.close(writer)


def test_size_of_a_pipe_is_limited(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "MAX_PIPE_BYTES", 1000)
    writer = write_later(fifo, b"x" * 1001)
    with pytest.raises(ImageError, match="larger than the limit of 1,000 bytes"):
        load_image(fifo)
    writer.join(10)


def test_empty_pipe_raises_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.2")
    reader, writer = os.pipe()
    os.close(writer)
    monkeypatch.setattr(pipes, "_STDIN_DESCRIPTOR", reader)
    try:
        with pytest.raises(ImageError, match="0 bytes"):
            load_image(STDIN)
        with pytest.raises(ImageError, match="0 bytes|sent nothing"):
            load_image(f"/dev/fd/{reader}")
    finally:
        os.close(reader)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_raise_error(name: str) -> None:
    with pytest.raises(ImageError, match=f"{name}.*is a device"):
        load_image(name)


def test_socket_raises_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        with pytest.raises(ImageError, match=r"socket\.png.*is a socket"):
            load_image("socket.png")


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, pixels = encode(random_pixels()), random_pixels()

    def use(descriptor: int) -> None:
        monkeypatch.setattr(pipes, "_STDIN_DESCRIPTOR", descriptor)

    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    use(reader)
    assert_pixels(STDIN, pixels)
    os.close(reader)

    near, far = socket.socketpair()
    with near:
        far.sendall(data)
        far.close()
        use(near.fileno())
        assert_pixels(STDIN, pixels)

    (tmp_path / "a.png").write_bytes(data)
    with open(tmp_path / "a.png", "rb") as file:
        use(file.fileno())
        assert_pixels(STDIN, pixels)
        file.seek(0)
        assert load_image(STDIN).name == STDIN
    with open("/dev/null", "rb") as file:
        use(file.fileno())
        with pytest.raises(ImageError, match="terminal or a device"):
            load_image(STDIN)
    use(10_000)
    with pytest.raises(ImageError, match="Standard input is closed"):
        load_image(STDIN)
