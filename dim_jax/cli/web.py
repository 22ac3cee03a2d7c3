"""The command `dim web`: options in, a page until a signal ends it."""

from typing import Annotated

import typer

from dim_jax.cli.designer_options import local_designer
from dim_jax.cli.options import with_options
from dim_jax.cli.serve import LimitOptions, ServerOptions, address, is_loopback, listen
from dim_jax.errors import require_packages


@with_options(server=ServerOptions, limit_options=LimitOptions)
def web(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 7860,
    designer: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND:NAME", help="One that visitors may choose, as in dim edit; not file:FILE. May be given several times."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Of the designers' server. Default: as their kind has it.")] = None,
    queue: Annotated[int, typer.Option(min=1, help="The most pictures that wait; more are refused.")] = 64,
    grace: Annotated[float, typer.Option(min=0, help="Seconds after SIGTERM or Ctrl-C to finish what waits.")] = 5.0,
    *,
    server: ServerOptions,
    limit_options: LimitOptions,
) -> None:
    """Show a page to edit pictures in rounds, with a designer and a mask, and to paint them from text."""
    from dim_jax.designer.choice import DesignerSpec

    require_packages("gradio", "starlette", "uvicorn", extra="web", feature="dim web")
    loading, choices = server.loading, {spelling: DesignerSpec.parse(spelling) for spelling in designer or ["local"]}
    if any(choice.kind == "file" for choice in choices.values()):
        raise typer.BadParameter("blueprints of a file are found by ids, which pictures here have not.", param_hint="--designer")
    with listen(server.host, port) as listener:
        if not is_loopback(server.host):
            typer.echo(f"warning: whoever reaches {server.host} may paint here. Put a proxy in front that asks who it is.", err=True)
        from dim_jax.serve import blueprints

        offered = {spelling: choice for spelling, choice in choices.items() if choice.kind != "none"}
        # Before the painter is loaded, which takes longer.
        writers = {spelling: blueprints.server_writer(choice, base_url) for spelling, choice in offered.items() if choice.kind != "local"}
        from dim_jax.serve.running import log_to_stderr, serve
        from dim_jax.web.app import web as page
        from dim_jax.weights.bundled import bundled_checkpoint

        sampler = server.open_sampler(loading)
        for spelling, choice in offered.items():
            if choice.kind == "local":
                designer_here = local_designer(choice.name, sampler, sampler.settings.resolution, server.dtype)
                writers[spelling] = blueprints.local_writer(designer_here)
        note = "" if server.checkpoint else "the bundled model, which knows emoji of 64 pixels"
        log_to_stderr()
        with page(
            sampler,
            bundled_checkpoint() / "samples",
            limits=limit_options.limits(),
            writers=writers,
            batch=server.batch,
            queue=queue,
            note=note,
        ) as service:
            typer.echo(f"{sampler.name} is at http://{address(listener)}", err=True)
            serve(service, listener, grace)
