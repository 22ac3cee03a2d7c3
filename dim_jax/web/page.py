"""The page: where everything stands, and what it calls of a `Studio`."""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from dim_jax.demo import Sample
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError
from dim_jax.serve.tickets import QueueFullError, StoppedError
from dim_jax.serve.uploads import ApiError
from dim_jax.web import views
from dim_jax.web.components import mask_editor, read_mask
from dim_jax.web.studio import NOBODY, Progress, Studio, Visit, Wish

CSS = Path(__file__).with_name("page.css")
TITLE = (
    '<div id="dim-head"><h1>Draw-In-Mind</h1><p>A designer plans an edit in words, a painter paints it.</p><small>{}</small><b>{}</b></div>'
)
EMPTY = '<div class="dim-empty">Choose a picture, say what should change, and paint.<br>The result appears here.</div>'
EMPTY_TEXT = '<div class="dim-empty">Say what to paint.<br>The picture appears here.</div>'
CANCELLED = "Cancelled. Everything is as it was."
FAILED = "The server failed on this. Its log has the reason."
EXPECTED = (InputError, ApiError, QueueFullError, StoppedError)  # what a visitor can mend, or wait for
log = logging.getLogger("dim_jax.web")
HEIGHT = 430  # of pictures on the page, in pixels
AT_ONCE: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}
SHOWN, HIDDEN = gr.update(visible=True), gr.update(visible=False)
ON, OFF = gr.update(interactive=True), gr.update(interactive=False)
Updates = dict[Any, Any]  # of components
Painting = Callable[..., Generator[Progress, None, Any]]


class Page:
    """Gradio's blocks over a studio."""

    def __init__(self, studio: Studio, samples: Sequence[Sample], folder: Path, note: str = ""):
        """
        Args:
            studio: what the page calls.
            samples: examples, of edits and of pictures from text.
            folder: where files for browsers are written: Gradio's own.
            note: a line about the model.
        """
        self._studio, self._samples, self._folder = studio, samples, folder
        with gr.Blocks(title="Draw-In-Mind", analytics_enabled=False, delete_cache=(600, 7200)) as self.blocks:
            gr.HTML(TITLE.format(views.escape(note), views.escape(studio.model.name)), padding=False)
            with gr.Tabs() as self._tabs:
                if studio.model.edits:
                    with gr.Tab("Edit a picture", id="edit"):
                        self._edit_tab()
                with gr.Tab("Picture from text", id="text"):
                    self._text_tab()
            self.blocks.unload(self._leave)

    # Where everything stands

    def _edit_tab(self) -> None:
        examples = [(i, sample) for i, sample in enumerate(self._samples) if sample.source is not None]
        designers = [NOBODY, *self._studio.writers]
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=340):
                self._file = gr.File(label="Picture: drop one here, or click", file_types=["image"], type="binary", height=124)
                self._editor = mask_editor(label="Brush over what may change", visible=False, height=HEIGHT)
                self._another = gr.Button("Another picture", size="sm", visible=False)
                with gr.Row(elem_classes="dim-examples") as self._examples:
                    buttons = [gr.Button(sample.prompt, icon=self._icon(i, sample), size="sm", min_width=220) for i, sample in examples]
                self._prompt = gr.Textbox(label="What should change?", placeholder="Make the sky red.", lines=1, elem_id="dim-prompt")
                with gr.Accordion("Designer and blueprint", open=False):
                    self._designer = gr.Dropdown(
                        designers, value=NOBODY, label="Designer",
                        info="Who plans the edit. none: the painter reads your words as they are.",
                    )  # fmt: skip
                    self._plan = gr.Button("Write the blueprint", size="sm", elem_id="dim-plan")
                    self._blueprint = gr.Textbox(
                        label="Blueprint", lines=5, max_lines=14, elem_id="dim-blueprint",
                        info="What stands here is painted: change it as you like. Where it is empty, the designer writes it first.",
                    )  # fmt: skip
                fields = self._fields(edit=True)
                with gr.Row():
                    self._paint = gr.Button("Paint", variant="primary", elem_id="dim-paint")
                    self._cancel = gr.Button("Cancel", interactive=False, elem_id="dim-cancel")
            with gr.Column(scale=6, min_width=340):
                self._status = gr.HTML(elem_id="dim-status", visible=False, padding=False)
                self._empty = gr.HTML(EMPTY, padding=False)
                self._slider = gr.ImageSlider(
                    label="Before and after", format="png", visible=False, interactive=False, buttons=["fullscreen"], height=HEIGHT,
                    max_height=HEIGHT,
                )  # fmt: skip
                self._facts = gr.HTML(visible=False)
                with gr.Row(visible=False) as self._actions:
                    self._download = gr.DownloadButton("Download", size="sm", elem_id="dim-download")
                    undo = gr.Button("Undo", size="sm", elem_id="dim-undo")
                    branch = gr.Button("Branch", size="sm", elem_id="dim-branch")
                self._branches = gr.Radio(label="Branches", type="index", visible=False, elem_id="dim-branches")
                self._rounds = gr.Gallery(
                    label="Rounds", show_label=False, columns=6, height=130, fit_columns=False, allow_preview=False, visible=False,
                    buttons=[], object_fit="contain", interactive=False, format="png", elem_id="dim-rounds",
                )  # fmt: skip
        self._edit_outputs = [
            self._status, self._empty, self._file, self._editor, self._another, self._examples, self._prompt, self._blueprint, self._plan,
            self._paint, self._cancel, self._slider, self._facts, self._actions, self._download, self._branches, self._rounds,
        ]  # fmt: skip
        inputs = [self._prompt, self._editor, self._blueprint, self._designer, *fields.values()]

        def wish(prompt: str | None, layers: list[bytes], blueprint: str | None, designer: str | None, *values: Any) -> Wish:
            chosen = dict(zip(fields, values, strict=True))
            keep = chosen.pop("keep_unchanged")
            return Wish(prompt or "", blueprint or "", designer or NOBODY, read_mask(layers), keep, _given(chosen))

        started = {self._paint: OFF, self._plan: OFF, self._cancel: ON, self._empty: HIDDEN, self._slider: HIDDEN, self._facts: HIDDEN}
        run = partial(
            self._run, self._status, self._edit_outputs, inputs=inputs, started=started, restored=self._result,
            ended={self._paint: ON, self._plan: ON, self._cancel: OFF},
        )  # fmt: skip
        run([self._paint.click, self._prompt.submit], lambda visit, *values: self._studio.edit(visit, wish(*values)), self._seen)
        run([self._plan.click], lambda visit, *values: self._studio.design(visit, wish(*values)), self._result)
        on = partial(self._on, self._status, self._edit_outputs)
        on(self._file.upload, self._open, [self._file])
        for button, (_, sample) in zip(buttons, examples, strict=True):
            on(button.click, partial(self._example, sample))
        on(self._another.click, self._other)
        on(self._editor.clear, lambda visit: {self._editor: visit.session.source.picture})  # the drawing, and not the picture below it
        on(self._prompt.input, lambda visit: {self._blueprint: ""})
        on(self._cancel.click, self._give_up)
        on(undo.click, self._undo)
        on(branch.click, self._branch)
        on(self._branches.input, self._go_to, [self._branches])
        self._rounds.select(self._look, None, [self._slider, self._facts, self._download], **AT_ONCE)

    def _text_tab(self) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=340):
                text = gr.Textbox(label="What should be painted?", lines=1, elem_id="dim-text")
                with gr.Row(elem_classes="dim-examples"):
                    examples = [gr.Button(sample.prompt, size="sm") for sample in self._samples if sample.source is None]
                fields = self._fields(edit=False)
                with gr.Row():
                    paint = gr.Button("Paint", variant="primary", elem_id="dim-generate")
                    cancel = gr.Button("Cancel", interactive=False)
            with gr.Column(scale=6, min_width=340):
                status = gr.HTML(elem_id="dim-text-status", visible=False, padding=False)
                empty = gr.HTML(EMPTY_TEXT, padding=False)
                image = gr.Image(
                    label="Picture",
                    elem_id="dim-image",
                    format="png",
                    visible=False,
                    interactive=False,
                    buttons=["fullscreen"],
                    height=HEIGHT,
                )
                facts = gr.HTML(visible=False)
                with gr.Row(visible=False) as actions:
                    download = gr.DownloadButton("Download", size="sm", elem_id="dim-text-download")
                    edit = gr.Button("Edit this picture", size="sm", visible=self._studio.model.edits, elem_id="dim-edit-painted")
        outputs = [status, empty, text, paint, cancel, image, facts, actions, download]

        def painting(visit: Visit, prompt: str | None, *values: Any) -> Generator[Progress, None, EditResult]:
            return self._studio.generate(visit, Wish(prompt or "", fields=_given(dict(zip(fields, values, strict=True)))))

        def seen(visit: Visit) -> Updates:
            if visit.painted is None:
                return {empty: SHOWN}
            files = views.save(visit.painted, self._folder, "picture")
            return {
                empty: HIDDEN, image: gr.update(value=files.result, visible=True), actions: SHOWN, download: files.result,
                facts: gr.update(value=views.facts(visit.painted, ""), visible=True),
            }  # fmt: skip

        def edit_painted(visit: Visit) -> Updates:
            if visit.painted is not None:
                self._studio.open(visit, visit.painted.image)
            return {**self._opened(visit), self._tabs: gr.Tabs(selected="edit")}

        self._run(
            status, outputs, [paint.click, text.submit], painting, seen, inputs=[text, *fields.values()],
            started={paint: OFF, cancel: ON, empty: HIDDEN, image: HIDDEN, facts: HIDDEN}, ended={paint: ON, cancel: OFF}, restored=seen,
        )  # fmt: skip
        for button in examples:
            self._on(status, outputs, button.click, lambda visit, prompt=button.value: {text: prompt})
        self._on(status, outputs, cancel.click, self._give_up)
        if self._studio.model.edits:
            self._on(status, [status, *self._edit_outputs, self._tabs], edit.click, edit_painted)

    def _fields(self, *, edit: bool) -> dict[str, Any]:
        """The settings of a tab, by their names in `EditFields` or `Wish`."""
        settings, limits = self._studio.model.settings, self._studio.limits
        side = settings.resolution
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                fields: dict[str, Any] = {
                    "steps": gr.Slider(1, limits.steps, settings.num_steps, step=1, label="Steps", info="More take longer."),
                    "guidance": gr.Slider(0, 15, settings.guidance_scale, step=0.1, label="Guidance", info="1 turns it off."),
                }
            with gr.Row():
                fields["seed"] = gr.Number(0, precision=0, label="Seed", min_width=100, info="Another one paints another picture.")
                fields["size"] = gr.Textbox(
                    label="Size", placeholder=f"such as {side}x{side}", min_width=100,
                    info=f"WIDTHxHEIGHT; empty: {'by the picture' if edit else f'{side} pixels square'}.",
                )  # fmt: skip
            if edit:
                fields["image_guidance"] = gr.Slider(
                    0, 5, settings.image_guidance_scale, step=0.1, label="Image guidance",
                    info="How near to stay to the picture, for models that were trained with it. 1 turns it off.",
                )  # fmt: skip
                fields["keep_unchanged"] = gr.Checkbox(False, label="Keep what the edit leaves alone, to the bit")
        return fields

    def _icon(self, number: int, sample: Sample) -> str:
        file = self._folder / f"example-{number}.png"
        assert sample.source is not None
        views.thumbnail(sample.source).save(file)
        return str(file)

    # How events reach the studio

    def _on(self, status: gr.HTML, outputs: Sequence[Any], event: Any, handler: Callable[..., Updates], inputs: Sequence[Any] = ()) -> None:
        """Answer an event at once. `status` says what went wrong."""

        def run(request: gr.Request, *values: Any) -> Updates:
            try:
                return {status: gr.skip(), **handler(self._studio.visit(request.session_hash or ""), *values)}
            except EXPECTED as error:
                return {status: _say(str(error), "error")}

        event(run, list(inputs), list(outputs), **AT_ONCE)

    def _run(
        self,
        status: gr.HTML,
        outputs: Sequence[Any],
        events: Sequence[Any],
        painting: Painting,
        done: Callable[[Visit], Updates],
        *,
        inputs: Sequence[Any],
        started: Updates,
        ended: Updates,
        restored: Callable[[Visit], Updates],
    ) -> None:
        """Show the progress of what takes its time; then what there is when it is `done`, or `restored` where it could not be."""

        def run(request: gr.Request, *values: Any) -> Iterator[Updates]:
            visit = self._studio.visit(request.session_hash or "")
            planned = visit.planned
            yield {status: _html(views.progress(Progress(""))), **started}
            finish, text, kind = restored, "", "error"
            try:
                with closing(painting(visit, *values)) as work:
                    for now in work:
                        yield {status: _html(views.progress(now)), **self._written(visit, planned)}
                finish = done
            except CancelledError:
                text, kind = CANCELLED, "note"
            except EXPECTED as error:
                text = str(error)
            except Exception:  # a bug or a device's: the visitor hears of it, and the others are served
                log.exception("painting failed")
                text = FAILED
            yield {status: _say(text, kind), **self._written(visit, planned), **ended, **finish(visit)}

        gr.on(
            list(events), run, list(inputs), list(outputs), api_visibility="private", show_progress="hidden", trigger_mode="once",
            concurrency_limit=self._studio.engine.queue.capacity,
        )  # fmt: skip

    def _written(self, visit: Visit, before: tuple[str, str]) -> Updates:
        """The blueprint, where a designer has written one since."""
        return {} if visit.planned is before else {self._blueprint: visit.planned[0]}

    # What a visitor does, and sees then

    def _open(self, visit: Visit, picture: bytes | None) -> Updates:
        try:
            self._studio.open(visit, picture or b"")
        except EXPECTED as error:
            return {self._status: _say(str(error), "error"), self._file: None}
        return self._opened(visit)

    def _example(self, sample: Sample, visit: Visit) -> Updates:
        assert sample.source is not None
        self._studio.open(visit, sample.source)
        return {**self._opened(visit), self._prompt: sample.prompt}

    def _opened(self, visit: Visit) -> Updates:
        chosen = {self._file: gr.update(value=None, visible=False), self._examples: HIDDEN, self._another: SHOWN}
        return {self._status: HIDDEN, self._blueprint: "", **chosen, **self._seen(visit)}

    def _other(self, visit: Visit) -> Updates:
        """Choose another picture; this one stays until there is one."""
        visit.idle()
        return {self._file: SHOWN, self._examples: SHOWN, self._another: HIDDEN, self._editor: HIDDEN}

    def _undo(self, visit: Visit) -> Updates:
        visit.undo()
        return {self._status: HIDDEN, **self._seen(visit)}

    def _branch(self, visit: Visit) -> Updates:
        visit.branch()
        return {self._status: _say(f"This is branch {visit.current + 1}. The others stay as they are."), **self._seen(visit)}

    def _go_to(self, visit: Visit, number: int) -> Updates:
        visit.go_to(number)
        return {self._status: HIDDEN, **self._seen(visit)}

    def _give_up(self, visit: Visit) -> Updates:
        visit.cancel()
        return {}

    def _leave(self, request: gr.Request) -> None:
        self._studio.leave(request.session_hash or "")

    def _look(self, request: gr.Request, event: gr.SelectData) -> Updates:
        """At an earlier round."""
        visit = self._studio.visit(request.session_hash or "")
        known = visit.branches and event.index < len(visit.session.rounds)
        return self._round(visit, event.index) if known else {self._slider: gr.skip()}

    def _seen(self, visit: Visit) -> Updates:
        """What there is after a change: the picture to edit next, without a mask, and what led to it."""
        return {self._editor: gr.update(value=visit.session.source.picture, visible=True), **self._result(visit)}

    def _result(self, visit: Visit) -> Updates:
        """The rounds of the branch, the last one large."""
        rounds = visit.session.rounds if visit.branches else ()
        names = [f"Branch {i}, round {len(branch.rounds)}" for i, branch in enumerate(visit.branches, 1)]
        updates = {
            self._branches: gr.update(choices=names, value=names[visit.current] if names else None, visible=len(names) > 1),
            self._rounds: gr.update(
                value=[(views.thumbnail(one.image), str(i)) for i, one in enumerate(rounds, 1)],
                selected_index=None,
                visible=len(rounds) > 1,
            ),
            self._empty: HIDDEN if rounds else SHOWN,
            self._actions: SHOWN if rounds else HIDDEN,
        }
        return updates | (self._round(visit, len(rounds) - 1) if rounds else {self._slider: HIDDEN, self._facts: HIDDEN})

    def _round(self, visit: Visit, index: int) -> Updates:
        """One round, before and after."""
        result = visit.session.rounds[index]
        files = views.save(result, self._folder, f"round-{index + 1}")
        return {
            self._slider: gr.update(value=(files.before, files.result), visible=True),
            self._facts: gr.update(value=views.facts(result, f"Round {index + 1}:"), visible=True),
            self._download: files.result,
        }


def _html(text: str) -> Updates:
    """HTML that takes no room where there is none."""
    return gr.update(value=text, visible=bool(text))


def _say(text: str, kind: str = "note") -> Updates:
    return _html(views.message(text, kind))


def _given(fields: Updates) -> Updates:
    """The fields that say something."""
    return {name: value for name, value in fields.items() if value not in (None, "")}
