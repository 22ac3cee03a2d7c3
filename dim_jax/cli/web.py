"""The command `dim web`: options in, a page until a signal ends it."""

from typing import Annotated

import typer

from dim_jax.cli.designer_options import local_designer
from dim_jax.cli.options import mesh_sizes, with_options
from dim_jax.cli.paint import Devices, Dtype, Loras, checkpoint_or_bundled
from dim_jax.cli.serve import LimitOptions, address, is_loopback, listen
from dim_jax.errors import require_packages


@with_options(limit_options=LimitOptions)
def web(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder or gs:// address of a Draw-In-Mind. Default: the bundled nano model.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: whoever reaches this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 7860,
    name: Annotated[str | None, typer.Option(help="Of the model, for visitors. Default: that of the checkpoint's folder.")] = None,
    designer: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND:NAME", help="One that visitors may choose, as in dim edit; not file:FILE. May be given several times."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Of the designers' server. Default: as their kind has it.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="The most pictures that are painted together.")] = 4,
    queue: Annotated[int, typer.Option(min=1, help="The most pictures that wait; more are refused.")] = 64,
    grace: Annotated[float, typer.Option(min=0, help="Seconds after SIGTERM or Ctrl-C to finish what waits.")] = 5.0,
    lora: Loras = None,
    dtype: Dtype = None,
    devices: Devices = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer, instead of the checkpoint's own.")] = None,
    *,
    limit_options: LimitOptions,
) -> None:
    """Show a page to edit pictures in rounds, with a designer and a mask, and to paint them from text."""
    from dim_jax.designer.choice import DesignerSpec

    require_packages("gradio", "starlette", "uvicorn", extra="web", feature="dim web")
    mesh, choices = mesh_sizes(devices), {spelling: DesignerSpec.parse(spelling) for spelling in designer or ["local"]}
    if any(choice.kind == "file" for choice in choices.values()):
        raise typer.BadParameter("blueprints of a file are found by ids, which pictures here have not.", param_hint="--designer")
    with listen(host, port) as listener:
        if not is_loopback(host):
            typer.echo(f"warning: whoever reaches {host} may paint here. Put a proxy in front that asks who it is.", err=True)
        from dim_jax.serve import blueprints

        offered = {spelling: choice for spelling, choice in choices.items() if choice.kind != "none"}
        # Before the painter is loaded, which takes longer.
        writers = {spelling: blueprints.server_writer(choice, base_url) for spelling, choice in offered.items() if choice.kind != "local"}
        from dim_jax.sampling import Sampler  # imports JAX, which takes seconds
        from dim_jax.serve.running import log_to_stderr, serve
        from dim_jax.web.app import web as page
        from dim_jax.weights.bundled import bundled_checkpoint

        source = checkpoint_or_bundled(checkpoint)
        sampler = Sampler.from_pretrained(source, dtype=dtype, tokenizer=tokenizer, mesh=mesh, loras=tuple(lora or ()))
        sampler.name = name or str(source).rstrip("/").rpartition("/")[2]  # paths of this machine are not for visitors
        for spelling, choice in offered.items():
            if choice.kind == "local":
                designer_here = local_designer(choice.name, sampler, sampler.settings.resolution, dtype)
                writers[spelling] = blueprints.local_writer(designer_here)
        note = "" if checkpoint else "the bundled model, which knows emoji of 64 pixels"
        log_to_stderr()
        with page(
            sampler, bundled_checkpoint() / "samples", limits=limit_options.limits(), writers=writers, batch=batch, queue=queue, note=note
        ) as found:
            typer.echo(f"{sampler.name} is at http://{address(listener)}", err=True)
            serve(found, listener, grace)
