"""OpenAI's image API over an engine: routes, errors, and an end that loses no request.

POST /v1/images/edits, /v1/images/generations    GET /v1/models    GET /health, /health/live    GET /metrics
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dim_jax.errors import InputError
from dim_jax.serve import jobs
from dim_jax.serve.engine import Engine
from dim_jax.serve.limits import Limits
from dim_jax.serve.metrics import Metrics
from dim_jax.serve.tickets import BlueprintError, QueueFullError, StoppedError
from dim_jax.serve.uploads import ApiError, check_token, limit_receive, too_large

CLIENT_CLOSED_REQUEST = 499  # nobody reads this status; the metrics count it
log = logging.getLogger("dim_jax.serve")
Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class Service:
    """What the routes share: who paints, what clients may ask for, and their tokens (none: everybody is let in)."""

    engine: Engine
    model: jobs.ModelInfo
    limits: Limits = field(default_factory=Limits)
    tokens: Sequence[str] = ()
    designer: str | None = None

    def __post_init__(self):
        self.started = int(time.time())
        self._metrics = Metrics()
        self._metrics.queue.set_function(self.engine.queue.__len__)
        self.engine.on_batch = self._metrics.observe_batch
        self._codecs = anyio.CapacityLimiter(os.cpu_count() or 1)  # pictures that are decoded or encoded at once

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/images/edits", self._endpoint(self._edits), methods=["POST"]),
            Route("/v1/images/generations", self._endpoint(self._generations), methods=["POST"]),
            Route("/v1/models", self._endpoint(self._models)),
            Route("/v1/models/{name:path}", self._endpoint(self._model_by_name)),
            Route("/metrics", self._endpoint(self._metrics_text)),
            Route("/health", self._ready),
            Route("/health/live", self._live),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _internal_error})

    def _endpoint(self, handler: Handler) -> Handler:
        """The handler behind the token; errors become OpenAI's, and everything is counted."""

        async def handle(request: Request) -> Response:
            started = time.monotonic()
            try:
                check_token(request.headers.get("authorization", ""), self.tokens)
                response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=CLIENT_CLOSED_REQUEST)
            except (ApiError, InputError, QueueFullError, StoppedError) as error:
                response = _as_api_error(error).response()
            except HTTPException as error:
                response = _http_error(request, error)
            except Exception:  # counted here, and answered by `_internal_error`
                self._record(request, 500, started)
                raise
            self._record(request, response.status_code, started)
            return response

        return handle

    def _record(self, request: Request, status: int, started: float) -> None:
        endpoint, seconds = request.scope["route"].path, time.monotonic() - started
        self._metrics.observe_request(endpoint, status, seconds)
        log.info("%s %s %d %.2f s", request.method, endpoint, status, seconds)

    async def _edits(self, request: Request) -> Response:
        self.engine.queue.check_room()  # before anything is uploaded
        _check_type(request, "multipart/form-data")
        async with _limited_body(request, self.limits) as counted, counted.form(max_files=32, max_fields=64) as form:
            pictures = [value for name, value in form.multi_items() if name in ("image", "image[]")]
            if len(pictures) != 1:
                message = f"This model edits one picture; these are {len(pictures)}. Send one as the file image."
                raise ApiError(400, message, param="image")
            uploads = [*pictures, *form.getlist("mask")]
            if len(uploads) > 2 or not all(isinstance(upload, UploadFile) for upload in uploads):
                raise ApiError(400, "image and mask must be one uploaded file each; no address is opened.", param="image")
            picture, mask = [await upload.read() for upload in uploads if isinstance(upload, UploadFile)] + [None] * (2 - len(uploads))
            values = {name: value for name, value in form.multi_items() if name not in ("image", "image[]", "mask")}
        fields = jobs.read_fields(jobs.EditFields, values)
        design = self.designer is not None
        job = await self._run_in_thread(partial(jobs.edit_job, self.model, self.limits, fields, picture or b"", mask, designer=design))
        return await self._paint(request, job)

    async def _generations(self, request: Request) -> Response:
        self.engine.queue.check_room()
        _check_type(request, "application/json")
        async with _limited_body(request, self.limits) as counted:
            body = await counted.body()
        return await self._paint(request, jobs.generation_job(self.model, self.limits, jobs.read_fields(jobs.Fields, body)))

    async def _paint(self, request: Request, job: jobs.PaintJob) -> Response:
        """The pictures of a job, unless the client goes: then what is not painted yet is dropped."""
        ticket = self.engine.submit(job.requests, job.settings, design=job.design)
        results = asyncio.wrap_future(ticket.future)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((results, gone), return_when=asyncio.FIRST_COMPLETED)
            if not results.done():
                raise ClientDisconnect
            payload = partial(jobs.response_body, job, results.result(), self.model, self.designer)
            return JSONResponse(await self._run_in_thread(payload))
        finally:
            gone.cancel()
            results.cancel()  # and the ticket's

    async def _run_in_thread(self, work: Callable[[], Any]) -> Any:
        """Done in a thread, so that other requests are answered meanwhile."""
        return await anyio.to_thread.run_sync(work, limiter=self._codecs)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def _model_by_name(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self.model.name:
            raise ApiError(404, f'There is no model "{name}" here, but {self.model.name}.', param="model", code="model_not_found")
        return JSONResponse(self._description())

    def _description(self) -> dict:
        return {"id": self.model.name, "object": "model", "created": self.started, "owned_by": "dim_jax"}

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def _ready(self, request: Request) -> Response:
        stopping = self.engine.queue.stopping
        return JSONResponse({"status": "stopping" if stopping else "ready"}, 503 if stopping else 200)


@asynccontextmanager
async def _limited_body(request: Request, limits: Limits) -> AsyncIterator[Request]:
    """The request while its body arrives: within it, one that is too long or too slow is refused."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.upload:
        raise too_large(limits)
    try:
        async with asyncio.timeout(limits.upload_seconds):
            yield Request(request.scope, limit_receive(request.receive, limits))
    except TimeoutError as late:
        raise ApiError(408, f"The request took more than {limits.upload_seconds:g} s to arrive. Send it again.") from late


def _check_type(request: Request, kind: str) -> None:
    if (sent := request.headers.get("content-type", "").partition(";")[0].strip().lower()) != kind:
        raise ApiError(415, f"The body is {sent or 'of no type'}, but must be {kind}.", code="unsupported_media_type")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(max(1, math.ceil(error.retry_after)))})
    if isinstance(error, StoppedError):
        return ApiError(503, str(error), code="stopping", headers={"Retry-After": "10", "Connection": "close"})
    return ApiError(422 if isinstance(error, BlueprintError) else 400, str(error))


def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses: an unknown address, another method, a form that cannot be read."""
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{error.detail.rstrip('.')}.", headers=dict(error.headers or {})).response()


def _internal_error(request: Request, error: Exception) -> Response:
    return ApiError(500, "The server failed on this request. Its log has the reason.").response()
