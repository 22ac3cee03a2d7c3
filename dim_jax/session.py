"""Editing in rounds: each one goes on from the last result, which can be taken back, and from any of which several ways may lead on.

session = EditSession(pipeline, open_picture("photo.jpg"))
session.edit("Make the sky red.")
other = session.branch()
session.edit("Add a boat.").save("boat.png")
other.edit("Add a bird.").save("bird.png")

A picture that is encoded and decoded again and again gets worse. So SANA is given the latents of the last result as they were painted;
only the encoder, which reads pictures, sees the picture of them.
"""

from copy import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float
from PIL import Image

from dim_jax.batching import Source
from dim_jax.compositing import Frame, changed_latents, composite, opacity
from dim_jax.designer.clients import Designer
from dim_jax.designer.design import write_blueprint
from dim_jax.edit_result import EditResult
from dim_jax.errors import check
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.masks import check_mask
from dim_jax.processing.pictures import as_rgb
from dim_jax.settings import Settings, check_prompt


class EditSession:
    """A picture and what was made of it, round by round.

    Attributes:
        rounds: the results, the last one on top. A result is never changed, and remembers the rounds before it (`earlier`).
    """

    def __init__(
        self,
        pipeline: EditPipeline,
        picture: Image.Image,
        *,
        designer: Designer | None = None,
        settings: Settings | None = None,
        keep_unchanged: bool = False,
        file: Path | None = None,
        name: str | None = None,
    ):
        """
        Args:
            pipeline: who paints.
            picture: any PIL picture.
            designer: who writes a blueprint from each round's picture and instruction; by default the painter reads the instruction.
            settings: by default the painter's own.
            keep_unchanged: take what a round leaves alone from the picture before it, to the bit (`dim_jax/compositing.py`).
            file: of the picture, if a designer shall see that file; else it sees a PNG of the picture.
            name: of the edit among ready blueprints, by default that of the file without its suffix; round n > 1 is "NAME.n".

        Raises:
            InputError: as `as_rgb`.
        """
        self._original, self._file = Source(as_rgb(picture).copy()), file
        self._name = name or (file.stem if file else "picture")
        self.pipeline, self.designer, self.keep_unchanged = pipeline, designer, keep_unchanged
        self.settings = settings or pipeline.sampler.settings
        self.rounds: tuple[EditResult, ...] = ()

    @property
    def source(self) -> Source:
        """What the next round edits: the last result with its latents, or the first picture."""
        return Source(self.rounds[-1].image, self.rounds[-1].latents) if self.rounds else self._original

    def edit(
        self,
        instruction: str,
        *,
        blueprint: str | None = None,
        written_by: str = "none",
        seed: int = 0,
        mask: Image.Image | None = None,
        feather: float = 0.0,
        progress: bool = False,
    ) -> EditResult:
        """Paint the next round.

        Args:
            instruction: what to change; it may be empty where there is a blueprint.
            blueprint: what the painter reads; the designer writes none then.
            written_by: who wrote that blueprint.
            seed: of the noise.
            mask: grey, of the size of `source`'s picture: where it is black (0), the round leaves that picture as it is.
            feather: pixels within which the round fades at the rim of the mask.
            progress: show a bar.

        Raises:
            InputError: there is nothing to paint, the designer wrote no blueprint, or as in `EditPipeline`. The session stays as it was.
        """
        if mask is not None:
            check_mask(mask, self.source.picture.size)  # before a designer is asked
        if blueprint is None:
            check_prompt(instruction, "The instruction")
            blueprint, written_by = (instruction, "none") if self.designer is None else (self._blueprint(instruction), self.designer.name)
        options = {"settings": self.settings, "masks": [mask], "feather": feather, "progress": progress}
        (result,) = self.pipeline([blueprint], [self.source], seeds=[seed], **options)
        return self.add(result, instruction, written_by)

    def add(self, result: EditResult, instruction: str = "", written_by: str = "none") -> EditResult:
        """Make a painted edit of `source` the next round, which is returned: with `keep_unchanged`, what it left alone is as before.
        Arguments as in `edit`."""
        if self.keep_unchanged:
            result = self._composited(result, self.source.latents)
        shown_instruction = "" if result.prompt == instruction else instruction
        result = replace(result, designer=written_by, instruction=shown_instruction, earlier=self.rounds)
        self.rounds += (result,)
        return result

    def undo(self) -> EditResult:
        """Go back to before the last round, and return it.

        Raises:
            InputError: there is none.
        """
        check(self.rounds, "There is no round to undo. This is the picture that the session began with.")
        *rounds, last = self.rounds
        self.rounds = tuple(rounds)
        return last

    def branch(self) -> "EditSession":
        """Another session at the same round. What one does from now on, the other does not see."""
        return copy(self)  # its rounds are a tuple of its own as soon as one is added

    def _blueprint(self, instruction: str) -> str:
        """The designer's blueprint for the current picture."""
        assert self.designer is not None
        number = len(self.rounds) + 1
        name = self._name if number == 1 else f"{self._name}.{number}"
        with TemporaryDirectory() as folder:
            file = self._file if number == 1 else None
            if file is None:
                file = Path(folder) / f"round-{number}.png"
                self.source.picture.save(file)
            return write_blueprint(file, instruction, self.designer, row_id=name)

    def _composited(self, result: EditResult, known: Float[np.ndarray, "h w c"] | None) -> EditResult:
        """The result with all that it left alone as it was, in pixels and in latents."""
        sampler, source, latents = self.pipeline.sampler, result.source, result.latents
        assert source is not None
        assert latents is not None
        cell = sampler.dim.config.autoencoder.factor
        size = (latents.shape[0] * cell, latents.shape[1] * cell)
        frame = Frame.fit(source.size, size, cell)
        source_latents = np.asarray(sampler.encode([frame.canvas(source)], size))[0] if known is None else known
        before = frame.crop(sampler.decode(source_latents[None])[0])
        opacities = opacity(before, result.image, max(1, round(cell * frame.scale)))
        if result.changed is not None:  # there was a mask, outside of which the result is the source itself, never decoded
            opacities[(np.asarray(result.image) == np.asarray(source)).all(-1)] = 0
        return replace(
            result,
            image=composite(source, result.image, opacities),
            latents=np.where(changed_latents(frame.spread(opacities), cell)[..., None], latents, source_latents),
            changed=float((opacities > 0).mean()),
        )
