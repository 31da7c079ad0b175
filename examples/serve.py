"""Serve a model over HTTP: POST /predict with an image, GET /health. One model answers all requests.

pip install 'solo-infer[serve]'
python examples/serve.py --model tiny
curl --data-binary @street.jpg "http://127.0.0.1:8000/predict?min_score=0.3&classes=car"
curl --form file=@street.jpg "http://127.0.0.1:8000/predict?format=png" --output segmented.png

Other programs run or mount ``create_app(model)``. Errors are JSON: {"error": {"type": ..., "message": ...}}.
"""

import argparse
import asyncio
import io
import json
import threading
from collections import deque
from collections.abc import Awaitable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from solo_infer import ImageError, ResultError, Segmenter, __version__, load_model
from solo_infer.data.uploads import MAX_BYTES, MAX_PIXELS, load_upload

FORM_BYTES = 10_000  # of a form besides its file
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_bytes: Greatest size of an encoded image.
        max_pixels: Greatest number of pixels of an image.
        max_waiting: Requests that are received, waiting or computed; others are answered with 503.
        receive_seconds: Time for sending an image.
    """

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    max_waiting: int = 32
    receive_seconds: float = 30.0


class Options(BaseModel):
    """Options in the query of a request; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")

    min_score: float | None = Field(None, ge=0, le=1, description="Lowest score of the instances")
    classes: list[str] = Field([], description="Classes to detect; all by default")
    format: Literal["json", "png", "coco"] = "json"
    image_id: int = Field(0, description="Image id of format=coco")


@dataclass(frozen=True)
class Job:
    """One request: an encoded image, the model with its settings, and the future of the answer."""

    content: bytes
    options: Options
    answer: "Future[Response]" = field(default_factory=Future)

    @property
    def settings(self) -> tuple[Any, ...]:
        """Settings that images of one batch have in common."""
        return self.options.min_score, tuple(self.options.classes)


class Predictor:
    """Threads that answer jobs. On a GPU, waiting images of the same settings share a forward pass.

    Images are decoded when their turn comes, so that ``threads`` times ``batch_size`` are in memory.

    Args:
        model: Model of all threads.
        limits: Limits of the images.
        threads: Defaults to 1 on the CPU, where torch uses all cores for one image, and to 4 on a GPU.
        batch_size: Greatest number of images of a forward pass. Defaults to 1 on the CPU and to 8 on a GPU.
    """

    def __init__(
        self, model: Segmenter, limits: Limits, threads: int | None = None, batch_size: int | None = None
    ) -> None:
        is_cpu = model.device.type == "cpu"
        self.model, self.limits = model, limits
        self.batch_size = batch_size or (1 if is_cpu else 8)
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads or (1 if is_cpu else 4), "predict")

    def submit(self, job: Job) -> None:
        """Queue a job."""
        with self._lock:
            self._jobs.append(job)
        self._pool.submit(self._run_batch)  # one call per job, so that none is left behind

    def close(self) -> None:
        """Answer the jobs in the queue and end the threads."""
        self._pool.shutdown(wait=True)

    def configured(self, options: Options) -> Segmenter:
        """Return the model with the settings of a request; it shares the network."""
        model = self.model.with_settings(min_score=options.min_score)
        return model.only(options.classes) if options.classes else model

    def _take(self) -> list[Job]:
        """Return the next jobs, which have the same settings; none if another thread took them."""
        with self._lock:
            batch = [job for job in self._jobs if job.settings == self._jobs[0].settings][: self.batch_size]
            for job in batch:
                self._jobs.remove(job)
        return [job for job in batch if job.answer.set_running_or_notify_cancel()]

    def _run_batch(self) -> None:
        images, jobs = [], []
        for job in self._take():
            try:
                limits = {"max_bytes": self.limits.max_bytes, "max_pixels": self.limits.max_pixels}
                images.append(load_upload(job.content, **limits))
                jobs.append(job)
            except Exception as error:
                job.answer.set_exception(error)
        if not jobs:
            return
        try:
            results = self.configured(jobs[0].options).predict_batch(images)
            for job, result in zip(jobs, results, strict=True):
                job.answer.set_result(respond(result, job.options))
        except Exception as error:
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)


def respond(result: Any, options: Options) -> Response:
    """Return the answer with a result in the requested format."""
    if options.format == "json":
        return Response(result.to_json(), media_type="application/json")
    if options.format == "coco":
        return Response(json.dumps(result.to_coco(options.image_id)), media_type="application/json")
    picture = io.BytesIO()
    result.plot().save(picture, "PNG", compress_level=1)
    return Response(picture.getvalue(), media_type="image/png")


async def read_image(request: Request, limits: Limits) -> bytes:
    """Return the image of a request: its body, or the file of a form; raise HTTPException for others."""
    is_form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    limit = limits.max_bytes + (FORM_BYTES if is_form else 0)
    received = 0

    async def receive() -> Any:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise too_large(received)
        return message

    def too_large(size: int) -> HTTPException:
        return HTTPException(413, f"The request has {size} bytes or more: expected at most {limit}.")

    stated = request.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and int(stated) > limit:
        raise too_large(int(stated))
    limited = Request(request.scope, receive)
    return await (read_form(limited) if is_form else read_body(limited))


async def read_body(request: Request) -> bytes:
    """Return the body of a request that is an image."""
    kind = request.headers.get("content-type", "image/*").lower()
    # curl states the type of a form for any --data-binary.
    if not kind.startswith(("image/", "application/octet-stream", "application/x-www-form-urlencoded")):
        raise HTTPException(415, f"Content-Type {kind!r:.80}: expected image/* or multipart/form-data.")
    return await request.body()


async def read_form(request: Request) -> bytes:
    """Return the file of a form that has no other fields."""
    expected = "expected one file in the field 'file'"
    try:
        form = await request.form(max_files=1, max_fields=1)
    except HTTPException as error:
        if error.status_code != 400:  # the request is too large
            raise
        raise HTTPException(400, f"The form cannot be read ({error.detail}): {expected}.") from error
    except ValueError as error:  # python-multipart raises its own ValueErrors
        raise HTTPException(400, f"The form cannot be read ({error}): {expected}.") from error
    file = form.get("file")
    if len(form) != 1 or not isinstance(file, UploadFile):
        raise HTTPException(400, f"The form has the fields {sorted(form)!r:.200}: {expected}.")
    return await file.read()


def error_response(status: int, kind: str, message: str, **headers: str) -> JSONResponse:
    """Return an error as JSON."""
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error with JSON."""

    @app.exception_handler(HTTPException)
    def explain_http_error(request: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, "HTTPError", str(error.detail), **(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def explain_options(request: Request, error: RequestValidationError) -> Response:
        problems = "; ".join(
            f"{item['loc'][-1]!s:.80}={item.get('input')!r:.80}: {item['msg']}" for item in error.errors()[:5]
        )
        names = ", ".join(Options.model_fields)
        return error_response(400, "OptionError", f"{problems}. Options of the query: {names}.")

    @app.exception_handler(ImageError)
    @app.exception_handler(ResultError)
    def explain_input(request: Request, error: Exception) -> Response:
        return error_response(400, type(error).__name__, str(error))

    @app.exception_handler(ClientDisconnect)
    def explain_disconnect(request: Request, error: ClientDisconnect) -> Response:  # nobody reads it
        return error_response(400, "ClientDisconnect", "The client has gone.")

    @app.exception_handler(Exception)
    def explain_failure(request: Request, error: Exception) -> Response:  # uvicorn logs its traceback
        response = error_response(500, "ServerError", "The server failed; its log has the reason.")
        response.headers["Connection"] = "close"  # uvicorn closes it after an exception
        return response


def create_app(
    model: Segmenter,
    *,
    name: str = "",
    limits: Limits | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
) -> FastAPI:
    """Return the ASGI application of a model.

    Args:
        model: Model of all requests.
        name: Name of the model for /health. Defaults to its description.
        limits: Limits of the requests.
        threads: Threads that predict; see ``Predictor``.
        batch_size: Images of a forward pass; see ``Predictor``.
    """
    limits = limits or Limits()
    predictor = Predictor(model, limits, threads, batch_size)
    waiting, is_closed = 0, False

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        nonlocal is_closed
        yield
        is_closed = True
        await asyncio.to_thread(predictor.close)

    # The pages of the documentation would load scripts from another host; /openapi.json describes the server.
    app = FastAPI(title="solo_infer", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    add_error_handlers(app)

    @app.get("/health")
    def health() -> Response:
        state = {
            "ready": not is_closed,
            "model": name or repr(model),
            "version": __version__,
            "device": str(model.device),
            "waiting": waiting,
        }
        return JSONResponse(state, 503 if is_closed else 200)

    @app.post("/predict")
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
        nonlocal waiting
        if waiting >= limits.max_waiting or is_closed:
            raise HTTPException(503, "The server is busy: try again later.", {"Retry-After": "1"})
        waiting += 1
        try:
            predictor.configured(options)  # raises the error of an unknown class before the image is received
            content = await within(limits.receive_seconds, read_image(request, limits))
            job = Job(content, options)
            predictor.submit(job)
            return await asyncio.wrap_future(job.answer)
        finally:
            waiting -= 1

    return app


async def within(seconds: float, receiving: Awaitable[T]) -> T:
    """Return what is received in time; raise HTTPException 408 otherwise."""
    try:
        return await asyncio.wait_for(receiving, seconds)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"The image did not arrive within {seconds:g} seconds.") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a model over HTTP.")
    parser.add_argument("--model", default="tiny", help="published model, file or folder (default: tiny)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--input-size", type=int, help="of the network (default: the model's)")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one (default: 8000)")
    parser.add_argument("--threads", type=int, help="threads that predict")
    parser.add_argument("--max-waiting", type=int, default=Limits.max_waiting, help="requests at a time")
    args = parser.parse_args()
    model = load_model(args.model, device=args.device).with_settings(input_size=args.input_size)
    limits = Limits(max_waiting=args.max_waiting)
    app = create_app(model, name=args.model, limits=limits, threads=args.threads)
    uvicorn.run(app, host=args.host, port=args.port, access_log=False)


if __name__ == "__main__":
    main()
