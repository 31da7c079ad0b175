"""The web page of ``solo-infer demo``: drop a photo, see its masks, download them as JSON.

The page works without a network. It refers to nothing outside of its own address, and its content security
policy forbids the browser to fetch anything else.
"""

from __future__ import annotations

import errno
import html
import logging
import os
import socket
import tempfile
import time
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer._version import __version__
from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.errors import ConfigError, SoloInferError
from solo_infer.integrations.demo import HEADERS, Demo, summarize, table
from solo_infer.integrations.self_contained import SelfContained
from solo_infer.runtime.environment import set_environment
from solo_infer.runtime.messages import escaped, quoted, shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    import fastapi
    import torch

logger = logging.getLogger(__name__)

HOST, PORT = "127.0.0.1", 7860
INSTALL = "pip install 'solo-infer[demo]'"
INTRODUCTION = f"""
# solo_infer {__version__}
Drop a photo to find its objects. It is processed on this machine and sent nowhere else.
"""
STYLE = """
.message { padding: 0.6em 0.8em; border-radius: 6px; overflow-wrap: anywhere; }
.message.error { background: #fee2e2; color: #7f1d1d; border-left: 4px solid #dc2626; }
.message.done { background: #f3f4f6; color: #111827; border-left: 4px solid #4b5563; }
"""
_CACHE_SECONDS = 3600  # after which copies of photos and pictures are deleted
_WAITING = 16  # visitors


def import_gradio() -> Any:
    """Return the module ``gradio``, without its telemetry.

    Raises:
        ConfigError: It is not installed, or cannot be imported; the message says how to install it.
    """
    # Gradio reads them when it is imported. Nothing is reported to anyone.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"The page needs gradio ({shortened(error)}): {INSTALL}.") from error
    return gradio


def as_html(message: str, *, is_error: bool = False) -> str:
    """Return a message as HTML, with its markup escaped."""
    role, kind = ("alert", "error") if is_error else ("status", "done")
    lines = "<br>".join(html.escape(escaped(line)) for line in message.splitlines())
    return f'<div role="{role}" class="message {kind}">{lines}</div>'


def answer(demo: Demo) -> Callable[..., list[Any]]:
    """Return the function that the page calls: from its settings to its outputs.

    Args:
        demo: Functions behind the page.
    """
    gradio = import_gradio()

    def segment(photo: str | None, name: str, min_score: float, classes: list[str] | None) -> list[Any]:
        """Return picture, message, rows of the table, JSON file and classes of the model."""
        nothing = [None, gradio.DownloadButton(value=None, interactive=False)]
        choice = gradio.skip()
        try:
            names = demo.model(name).config.categories.names
            kept = [item for item in classes or () if item in names]
            choice = gradio.Dropdown(choices=list(names), value=kept)
            if not photo:
                return [None, as_html("Drop a photo."), *nothing, choice]
            start = time.perf_counter()
            result = demo.segment(photo, name, min_score, kept)
            text = summarize(result, time.perf_counter() - start)
            file = gradio.DownloadButton(value=demo.write_json(result), interactive=True)
            return [result.plot(), as_html(text), table(result), file, choice]
        except SoloInferError as error:
            return [None, as_html(str(error), is_error=True), *nothing, choice]

    return segment


def build_page(demo: Demo) -> Any:
    """Return the page, a ``gradio.Blocks``. The first model is loaded.

    Raises:
        ConfigError: Gradio is not installed.
        SoloInferError: The model cannot be loaded.
    """
    gr = import_gradio()
    names = demo.model(demo.models[0]).config.categories.names
    with gr.Blocks(
        title="solo_infer", analytics_enabled=False, delete_cache=(_CACHE_SECONDS, _CACHE_SECONDS)
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                photo = gr.File(label="Photo", file_types=["image"], height=160, elem_id="photo")
                model = gr.Dropdown(demo.choices(), value=demo.models[0], label="Model", elem_id="model")
                score = gr.Slider(
                    0, 1, DISPLAY_THRESHOLD, step=0.05, label="Lowest score", elem_id="min-score"
                )
                classes = gr.Dropdown(
                    list(names),
                    label="Classes",
                    info="All if none is selected",
                    multiselect=True,
                    elem_id="classes",
                )
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                file = gr.DownloadButton("Download JSON", interactive=False, elem_id="json")
            with gr.Column(scale=2, min_width=400):
                message = gr.HTML(as_html("Drop a photo."), elem_id="message")
                picture = gr.Image(
                    label="Instances",
                    show_label=False,
                    format="jpeg",
                    interactive=False,
                    height=480,
                    buttons=["download", "fullscreen"],  # none that shares it
                    elem_id="picture",
                )
                rows = gr.Dataframe(headers=list(HEADERS), interactive=False, elem_id="instances")
        gr.on(
            [photo.upload, photo.clear, model.input, score.release, classes.input, button.click],
            answer(demo),
            [photo, model, score, classes],
            [picture, message, rows, file, classes],
            api_name="segment",
            concurrency_limit=2,
            trigger_mode="always_last",
        )
    return page.queue(max_size=_WAITING)


def create_app(demo: Demo) -> fastapi.FastAPI:
    """Return the page as an ASGI application.

    Args:
        demo: Functions behind the page.

    Raises:
        ConfigError: Gradio is not installed.
        SoloInferError: The model cannot be loaded.
    """
    gr = import_gradio()
    import fastapi

    fonts = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
    app = fastapi.FastAPI(docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        app,
        build_page(demo),
        path="",
        footer_links=[],
        max_file_size=demo.max_bytes,
        ssr_mode=False,
        show_error=True,
        theme=gr.themes.Default(font=fonts, font_mono=[gr.themes.Font("monospace")]),
        css=STYLE,
    )
    app.add_middleware(SelfContained)
    return app


def serve(
    models: Sequence[str] = (),
    *,
    host: str = HOST,
    port: int = PORT,
    open_browser: bool = True,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    announce: Callable[[str], None] = print,
) -> None:
    """Show the page until the process is interrupted.

    Args:
        models: Models to offer besides the published ones; the first is selected. Defaults to "tiny".
        host: Address to listen on. Other machines reach only others than the default.
        port: Port to listen on, 0 for a free one.
        open_browser: Whether to open the page in the browser of this machine.
        device: Device of the models. Defaults to CUDA if available, else the CPU.
        dtype: Dtype of the networks.
        announce: Called with the address of the page.

    Raises:
        ConfigError: Gradio is not installed, or the address cannot be used.
        SoloInferError: The first model cannot be loaded.
    """
    import_gradio()
    import uvicorn

    with ExitStack() as stack:
        listener = stack.enter_context(_listen(host, port))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="solo-infer-demo-"))
        # Photos and pictures are deleted with the folder.
        stack.enter_context(set_environment({"GRADIO_TEMP_DIR": str(Path(folder) / "page")}))
        demo = Demo(models, device=device, dtype=dtype, folder=folder)
        config = uvicorn.Config(create_app(demo), log_level="warning", timeout_graceful_shutdown=1)
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        announce(address)
        if open_browser:
            webbrowser.open(address)  # answered as soon as the server runs
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # raised once more by uvicorn after its shutdown
            logger.info("The page at %s has ended.", address)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        ConfigError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        advice = " Pass --port 0 for a free one." if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(
            f"Cannot listen on {quoted(host)}, port {port} ({error.strerror or error}).{advice}"
        ) from error
    except OverflowError as error:
        raise ConfigError(f"port={port}: expected an integer in 0..65535.") from error
