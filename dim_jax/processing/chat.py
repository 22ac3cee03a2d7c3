"""The text and the tokens of a turn, as the published processor renders it; special tokens in a prompt stay plain text."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from dim_jax.errors import InputError, check, check_unicode, first_line
from dim_jax.storage.hub import cached_snapshot, fetch
from dim_jax.storage.paths import as_path, local_path

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"  # of videos, which are not read; an encoder's config has its id
SPECIALS = (IM_START, IM_END, END_OF_TEXT, VISION_START, VISION_END, IMAGE_PAD)

SYSTEM_TEXT = "system\nYou are a helpful assistant."
# What is fetched of a model on the hub: it has the encoder's weights as well.
HUB_FILES = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "config.json")
USER_HEADER = "user\n"
ASSISTANT_HEADER = "assistant\n"


@dataclass(frozen=True)
class Turn:
    """The tokens of one turn; `user_turn` is [begin, end), the tokens that become the condition (pictures and prompt)."""

    ids: Int[np.ndarray, " t"]
    user_turn: tuple[int, int]


def segments(
    prompt: str, picture_tokens: Sequence[int] = (), *, generation_prompt: bool = False, system: bool = True
) -> list[tuple[str, bool]]:
    """The turn as (text, is it a special token?), in order, by the published template; two plain texts are never neighbours.

    `picture_tokens` has the number of tokens of each picture; pictures come before the prompt. `generation_prompt` opens the assistant's
    turn, for a model that writes text; the published model reads the turn without it. `system`: the system's message comes first.
    """
    pictures = [(text, True) for n in picture_tokens for text in (VISION_START, *[IMAGE_PAD] * n, VISION_END)]
    # Without a picture no special token separates header and prompt, so the tokenizer must see them as one text.
    user = [(USER_HEADER, False), *pictures, (prompt, False)] if pictures else [(USER_HEADER + prompt, False)]
    turn = [(IM_START, True), (SYSTEM_TEXT, False), (IM_END, True), ("\n", False)] if system else []
    turn += [(IM_START, True), *user, (IM_END, True), ("\n", False)]
    return turn + ([(IM_START, True), (ASSISTANT_HEADER, False)] if generation_prompt else [])


def render(prompt: str, picture_tokens: Sequence[int] = (), *, generation_prompt: bool = False) -> str:
    """The turn as one text, for reading and comparing; encode it with `ChatTokenizer.turn`, which keeps the prompt plain."""
    return "".join(text for text, _ in segments(prompt, picture_tokens, generation_prompt=generation_prompt))


class ChatTokenizer:
    """A Qwen tokenizer and the ids of its special tokens (`ids["<|im_end|>"]`, `pad_id`, `image_id`).

    Special tokens enter by id from the template alone. Everything else is encoded by a copy of the tokenizer without added
    tokens, so `<|im_end|>` or `<|image_pad|>` inside a prompt is the text it looks like.
    """

    def __init__(self, tokenizer: Tokenizer, name: str):
        """`name` (folder or hub id) is for errors.

        Raises:
            InputError: a special token of the template is not in the vocabulary.
        """
        id_or_none = {token: tokenizer.token_to_id(token) for token in SPECIALS}
        ids = {token: index for token, index in id_or_none.items() if index is not None}
        if missing := [token for token in SPECIALS if token not in ids]:
            raise InputError(f"{name}: the tokenizer lacks {', '.join(missing)}. Give the tokenizer of a Qwen2.5-VL model.")
        self.name = name
        self.ids = ids
        self.pad_id, self.image_id = ids[END_OF_TEXT], ids[IMAGE_PAD]
        self.max_id = max(tokenizer.get_vocab().values())
        self._tokenizer = tokenizer
        self._plain = Tokenizer(tokenizer.model)
        # Not copied: added tokens (see above), truncation and padding.
        if tokenizer.pre_tokenizer is not None:
            self._plain.pre_tokenizer = tokenizer.pre_tokenizer
        if tokenizer.normalizer is not None:
            self._plain.normalizer = tokenizer.normalizer
        self._template_ids = {text: self.encode(text) for text in (SYSTEM_TEXT, "\n", USER_HEADER, ASSISTANT_HEADER)}

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike) -> "ChatTokenizer":
        """The tokenizer of a local folder, of one `tokenizer.json` or of a hub id; a folder without that file goes through transformers.

        Raises:
            InputError: there is no tokenizer, it cannot be fetched or read, or it lacks the template's special tokens.
        """
        return cls(load_tokenizer(name), str(name))

    @property
    def digest(self) -> str:
        """A hash of the vocabulary."""
        return hashlib.sha256(json.dumps(self._tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()[:16]

    def token_id(self, token: str) -> int:
        """The id of a special token.

        Raises:
            InputError: there is no such token.
        """
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise InputError(f"{self.name}: the tokenizer lacks {token}. Give the tokenizer of a Qwen2.5-VL model.")
        return index

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; a special token's name in it is text like any other."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The number of ids that `encode` gives for each text; uses all cores."""
        return [len(encoding.ids) for encoding in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids, by default without special tokens (what a designer wrote)."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def turn(self, prompt: str, picture_tokens: Sequence[int] = (), *, generation_prompt: bool = False, system: bool = True) -> Turn:
        """The ids of `segments(...)` and which of them are the user turn.

        The user turn begins after the tokens that hold the newline of `user\\n` and ends before `<|im_end|>`. Qwen's tokenizer
        merges newlines: where a prompt without picture begins with newlines, they are part of the header's token. The encoder
        reads them, but they are not in the condition. (The published code searches for exactly `<|im_start|>`, `user`, `\\n`
        and finds no turn there.)

        Raises:
            InputError: there is no picture and the prompt has only white space, or the prompt is not valid Unicode.
        """
        check_unicode(prompt, "The prompt")
        check(picture_tokens or prompt.strip(), f"The prompt is empty ({prompt!r}) and there is no picture. Write a prompt.")
        ids: list[int] = []
        begin = end = 0
        for text, special in segments(prompt, picture_tokens, generation_prompt=generation_prompt, system=system):
            if special:
                # The last <|im_end|> closes the user turn.
                end = len(ids) if text == IM_END else end
                ids.append(self.ids[text])
                continue
            if text in self._template_ids:
                ids += self._template_ids[text]
                begin = begin or (len(ids) if text == USER_HEADER else 0)
                continue
            encoding = self._plain.encode(text, add_special_tokens=False)
            if text.startswith(USER_HEADER) and not begin:
                begin = len(ids) + sum(start < len(USER_HEADER) for start, _ in encoding.offsets)
            ids += encoding.ids
        return Turn(np.array(ids, np.int32), (begin, end))


def load_tokenizer(name: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a local folder, of one `tokenizer.json` or of a hub id; a folder without that file goes through transformers.

    Raises:
        InputError: there is no tokenizer, or it cannot be fetched or read.
    """
    path = tokenizer_path(name)
    if path.is_dir() and not any((path / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise InputError(f"{path}: the folder has no tokenizer.json. Copy the tokenizer's files there, or give another folder.")
    try:
        file = path / "tokenizer.json" if path.is_dir() else path
        return Tokenizer.from_file(str(file)) if file.is_file() else _from_transformers(path)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises it for any malformed file
        # Any other error is a bug: let it raise.
        if type(error) is not Exception and not isinstance(error, (OSError, ValueError, KeyError)):
            raise
        reason = first_line(error)
        raise InputError(
            f"{name}: no tokenizer could be loaded ({reason}). Give a folder with tokenizer.json and tokenizer_config.json, "
            "or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct (which needs the network the first time)."
        ) from error


def tokenizer_path(name: str | os.PathLike) -> Path:
    """The folder or file of a tokenizer on this machine. What is not a path here is an id of the hub, whose files are fetched unless they
    are in its cache.

    Raises:
        InputError: there is no such folder, file or model, or the hub cannot be reached.
    """
    path = local_path(as_path(name))
    if path.exists():
        return path
    if path.is_absolute() or str(name).startswith(".") or len(path.parts) > 2:
        raise InputError(f"{path}: there is no such folder or file. Check the path of the tokenizer.")
    if (folder := cached_snapshot(str(name), "tokenizer.json", "vocab.json")) is not None:
        return folder
    return fetch(str(name), HUB_FILES)


def _from_transformers(path: Path) -> Tokenizer:
    """The tokenizer that transformers loads for a folder or file."""
    # Importing transformers takes seconds, and a tokenizer.json does not need it.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{path}: {type(tokenizer).__name__} has no tokenizer.json. Save the tokenizer's fast form there.")
    return backend
