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
from PIL import Image

from dim_jax.batching import Source
from dim_jax.compositing import changed_latents, composite, mask_opacity, opacity
from dim_jax.designer.clients import Designer
from dim_jax.designer.design import write_blueprint
from dim_jax.edit_result import EditResult
from dim_jax.errors import InputError, check
from dim_jax.pipeline import EditPipeline
from dim_jax.processing.pictures import as_rgb, autoencoder_pixels_uint8
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
        self._original, self._file = Source(as_rgb(picture)), file
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
        progress: bool = False,
    ) -> EditResult:
        """Paint the next round.

        Args:
            instruction: what to change; it may be empty where there is a blueprint.
            blueprint: what the painter reads; the designer writes none then.
            written_by: who wrote that blueprint.
            seed: of the noise.
            mask: grey, of the size of `source`'s picture: where it is black (0), the round leaves that picture as it is.
            progress: show a bar.

        Raises:
            InputError: there is nothing to paint, the mask has another size, the designer wrote no blueprint, or as in `EditPipeline`. The
                session stays as it was.
        """
        self.check_mask(mask)
        if blueprint is None:
            check_prompt(instruction, "The instruction")
            blueprint, written_by = (instruction, "none") if self.designer is None else (self._blueprint(instruction), self.designer.name)
        (result,) = self.pipeline([blueprint], [self.source], seeds=[seed], settings=self.settings, progress=progress)
        return self.add(result, instruction, written_by, mask)

    def add(self, result: EditResult, instruction: str = "", written_by: str = "none", mask: Image.Image | None = None) -> EditResult:
        """Make a painted edit of `source` the next round, which is returned: what it may not change is as before.
        Arguments as in `edit`."""
        if self.keep_unchanged or mask is not None:
            result = self._composited(result, self.source, mask)
        shown_instruction = "" if result.prompt == instruction else instruction
        result = replace(result, designer=written_by, instruction=shown_instruction, earlier=self.rounds)
        self.rounds += (result,)
        return result

    def check_mask(self, mask: Image.Image | None) -> None:
        """Refuses a mask of another size than the picture that it is for, as an `InputError`."""
        picture = self.source.picture
        if mask is not None and mask.size != picture.size:
            raise InputError(
                f"The mask is {mask.width} x {mask.height} pixels, but the picture {picture.width} x {picture.height}. "
                "Give it the size of the picture."
            )

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

    def _composited(self, result: EditResult, source: Source, mask: Image.Image | None) -> EditResult:
        """The result with all that it left alone, or had to, as it was, in pixels and in latents."""
        sampler, size = self.pipeline.sampler, result.settings["size"]
        cell, latents = sampler.dim.config.autoencoder.factor, result.latents
        assert latents is not None
        source_latents = np.asarray(sampler.encode([source.picture], size))[0] if source.latents is None else source.latents
        opacities = np.ones(size, np.float32)
        if mask is not None:
            opacities = mask_opacity(255 - autoencoder_pixels_uint8(mask.convert("RGB"), size)[..., 0])
        if self.keep_unchanged:
            opacities = np.minimum(opacities, opacity(sampler.decode(source_latents[None])[0], result.image, cell))
        return replace(
            result,
            image=composite(Image.fromarray(autoencoder_pixels_uint8(source.picture, size)), result.image, opacities),
            latents=np.where(changed_latents(opacities, cell)[..., None], latents, source_latents),
            changed=float((opacities > 0).mean()),
        )
