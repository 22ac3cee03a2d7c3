"""The page as an application, and what must be so before Gradio is imported."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from PIL import Image
from starlette.types import ASGIApp

from dim_jax.batching import Request
from dim_jax.demo import read_samples
from dim_jax.edit_result import EditResult
from dim_jax.pipeline import paint_requests
from dim_jax.sampling import OnStep, Sampler
from dim_jax.serve.blueprints import BlueprintWriter
from dim_jax.serve.engine import Engine
from dim_jax.serve.limits import Limits
from dim_jax.settings import Settings
from dim_jax.web.gate import Gate, named
from dim_jax.web.preview import LatentPreview
from dim_jax.web.studio import VISITS, Studio

if TYPE_CHECKING:  # it imports Gradio
    from dim_jax.web.page import Page


@contextmanager
def web(
    sampler: Sampler,
    samples: Path,
    *,
    limits: Limits,
    writers: Mapping[str, BlueprintWriter],
    batch: int = 4,
    wait: float = 0.02,
    queue: int = 64,
    note: str = "",
) -> Iterator["Web"]:
    """The page of a sampler, to be served; at its end all files of its visitors are gone.

    Args:
        sampler: who paints; its name is what visitors see.
        samples: the folder of the examples (`demo.read_samples`).
        limits: the most that visitors may ask for.
        writers: the designers that they can choose, by name; one that computes here takes turns with the painter.
        batch, wait, queue: as in `Engine`.
        note: a line about the model.

    Raises:
        InputError: the samples cannot be used, or as in `Sampler.encode`.
    """
    with TemporaryDirectory(prefix="dim_web_") as folder:
        # Gradio reads these when it is imported, and when its components are made.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "GRADIO_RUN_HISTORY": "False"}
        from dim_jax.web.page import Page

        device, examples = threading.Lock(), read_samples(samples)
        preview = LatentPreview.fit(sampler, [sample.source for sample in examples if sample.source is not None])
        writers = {
            name: writer if writer.calls else writer._replace(write=_in_turn(device, writer.write)) for name, writer in writers.items()
        }

        def paint(requests: Sequence[Request], settings: Settings, on_step: OnStep | None = None) -> list[tuple[int, EditResult]]:
            with device:
                return list(paint_requests(sampler, requests, settings, on_step=on_step))

        engine = Engine(paint, batch=batch, wait=wait, queue=queue)
        try:
            yield Web(engine, Page(Studio(engine, sampler, limits, writers, preview), examples, Path(folder), note), limits)
        finally:
            engine.stop()


@dataclass
class Web:
    """A page over an engine, for `serve.running.serve`."""

    engine: Engine
    page: "Page"
    limits: Limits

    def app(self) -> ASGIApp:
        """The ASGI application."""
        from fastapi import FastAPI
        from gradio import mount_gradio_app
        from gradio.themes import Default

        from dim_jax.web.page import CSS

        blocks = self.page.blocks
        blocks.has_launched = True  # else Gradio does not look where the files lie that a browser names
        blocks.state_session_capacity = 4 * VISITS
        theme = Default(primary_hue="indigo", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
        app = mount_gradio_app(
            FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks, path="/", ssr_mode=False, show_error=False, footer_links=[],
            run_history=False, allowed_paths=[], max_file_size=self.limits.upload, theme=theme, css=CSS.read_text(),
        )  # fmt: skip
        return Gate(app, self.limits, named(blocks.config), lambda: self.engine.stopped)


def _in_turn(device: threading.Lock, write: Callable[[Sequence[Image.Image], Sequence[str]], list[str | None]]) -> Callable:
    """The same, while nothing is painted: a device has memory for one of them."""

    def run(pictures: Sequence[Image.Image], instructions: Sequence[str]) -> list[str | None]:
        with device:
            return write(pictures, instructions)

    return run
