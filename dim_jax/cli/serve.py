"""The command `dim serve`: options in, a server until a signal ends it."""

import ipaddress
import os
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dim_jax.cli.designer_options import local_designer
from dim_jax.cli.options import with_options
from dim_jax.cli.paint import LoadingOptions, checkpoint_or_bundled
from dim_jax.errors import InputError, check, require_packages
from dim_jax.serve.limits import MIB, Limits

TOKEN = "DIM_SERVE_TOKEN"


@dataclass(frozen=True)
class LimitOptions:
    """What one request may ask for."""

    max_upload: Annotated[int, typer.Option(min=1, metavar="MIB", help="Size of a request.")] = Limits.upload // MIB
    max_pixels: Annotated[int, typer.Option(min=64, help="Pixels of an uploaded picture.")] = Limits.pixels
    max_painted_pixels: Annotated[int, typer.Option(min=64, help="Pixels of a picture to paint.")] = Limits.painted_pixels
    max_n: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = Limits.pictures
    max_steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = Limits.steps
    max_prompt: Annotated[int, typer.Option(min=1, help="Characters of a prompt.")] = Limits.prompt

    def limits(self) -> Limits:
        return Limits(
            self.max_upload * MIB, pixels=self.max_pixels, painted_pixels=self.max_painted_pixels,
            pictures=self.max_n, steps=self.max_steps, prompt=self.max_prompt,
        )  # fmt: skip


@dataclass(frozen=True)
class ServerOptions(LoadingOptions):
    """The options of every server over a checkpoint."""

    checkpoint: Annotated[
        str | None,
        typer.Argument(help="A Draw-In-Mind: folder, gs:// address, or ORG/NAME[@REVISION] of the hub. Default: the bundled nano."),
    ] = None
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: whoever reaches this machine.")] = "127.0.0.1"
    name: Annotated[str | None, typer.Option(help="Of the model, for those who use it. Default: that of the checkpoint's folder.")] = None
    batch: Annotated[int, typer.Option(min=1, help="The most pictures that are painted together.")] = 4

    def open_sampler(self, loading: dict[str, Any]) -> Any:
        """The checkpoint, under the name that users of the server see: paths of this machine are not for them."""
        from dim_jax.sampling import Sampler  # imports JAX, which takes seconds

        source = checkpoint_or_bundled(self.checkpoint)
        sampler = Sampler.from_pretrained(source, **loading)
        sampler.name = self.name or str(source).rstrip("/").rpartition("/")[2]
        return sampler


@with_options(server=ServerOptions, limit_options=LimitOptions)
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    token: Annotated[Path | None, typer.Option(help=f"File of tokens, one a line, of which clients need one. Or {TOKEN}.")] = None,
    wait_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a picture waits for others to be painted with.")] = 20.0,
    queue: Annotated[int, typer.Option(min=1, help="The most pictures that wait; more are refused (429).")] = 64,
    grace: Annotated[float, typer.Option(min=0, help="Seconds after SIGTERM or Ctrl-C to finish what waits.")] = 30.0,
    designer: Annotated[
        str, typer.Option(metavar="KIND:NAME", help="Who writes a blueprint for each edit, as in dim edit; not file:FILE.")
    ] = "none",
    base_url: Annotated[str | None, typer.Option(help="Of the designer's server. Default: as its kind has it.")] = None,
    *,
    server: ServerOptions,
    limit_options: LimitOptions,
) -> None:
    """Serve OpenAI's image API: edits and pictures from text, painted in batches."""
    from dim_jax.designer.choice import DesignerSpec

    require_packages("starlette", "uvicorn", "python_multipart", "prometheus_client", extra="serve", feature="dim serve")
    choice, loading = DesignerSpec.parse(designer), server.loading
    if choice.kind == "file":
        raise typer.BadParameter("blueprints of a file are found by ids, which requests have not.", param_hint="--designer")
    if queue < limit_options.max_n:
        raise typer.BadParameter(f"it must hold the pictures of one request, --max-n {limit_options.max_n}.", param_hint="--queue")
    tokens = _tokens(token)
    with listen(server.host, port) as listener:
        if not tokens and not is_loopback(server.host):
            typer.echo(f"warning: whoever reaches {server.host} may paint here. Ask for a token: --token FILE, or {TOKEN}.", err=True)
        from dim_jax.serve import blueprints

        writer = None
        if choice.kind not in ("none", "local"):  # before the painter is loaded, which takes longer
            writer = blueprints.server_writer(choice, base_url)
        from dim_jax.pipeline import paint_requests  # imports JAX, which takes seconds
        from dim_jax.serve.engine import Engine
        from dim_jax.serve.jobs import ModelInfo
        from dim_jax.serve.running import log_to_stderr
        from dim_jax.serve.running import serve as run
        from dim_jax.serve.server import Service

        sampler = server.open_sampler(loading)
        if choice.kind == "local":
            writer = blueprints.local_writer(local_designer(choice.name, sampler, sampler.settings.resolution, server.dtype))
        engine = Engine(partial(paint_requests, sampler), batch=server.batch, wait=wait_ms / 1000, queue=queue, writer=writer)
        service = Service(engine, ModelInfo.from_sampler(sampler), limit_options.limits(), tokens, writer and writer.name)
        log_to_stderr()
        typer.echo(f"serving {sampler.name} at http://{address(listener)}/v1", err=True)
        run(service, listener, grace)


def _tokens(file: Path | None) -> tuple[str, ...]:
    """The lines of a file, or the one of the environment."""
    try:
        text = os.environ.get(TOKEN, "") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: the tokens cannot be read ({getattr(error, 'strerror', None) or 'no UTF-8'}). Give a text file."
        ) from error
    tokens = tuple(line.strip() for line in text.splitlines() if line.strip())
    check(file is None or tokens, f"{file}: has no token. Write one a line.")
    return tokens


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens before anything is loaded: requests wait until the model is there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"{host}, port {port}: cannot listen there ({error.strerror}). Choose another --host or --port.") from error


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
