"""``solo-infer demo``."""

import os
import signal
import sys
import threading
import urllib.request

import pytest
from helpers.command_line import assert_clear

from solo_infer import ConfigError
from solo_infer.integrations import demo_page

pytest_plugins = ["helpers.command_line_fixtures"]


def test_gradio_is_optional(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "gradio", None)
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


def test_model_that_cannot_be_loaded(run):
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'solo-infer[demo]')")
    code, out, err = run("demo", "--no-browser", "--port", "0", "--model", "missing.pth")
    assert (code, out) == (1, "")
    assert_clear(err, "missing.pth")
