"""Designers that are asked over the network: any server that speaks OpenAI's chat completions, and Azure OpenAI."""

import asyncio
import base64
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from dim_jax.designer.picture import Sent
from dim_jax.errors import InputError, require

if TYPE_CHECKING:
    import openai

MAX_TOKENS = 2048  # real blueprints have some 330 tokens; models that think first need more
TOKENS_OF_A_PICTURE = 1500  # where a server does not count: about what 1024 x 1024 pixels are to GPT-4o and Qwen2.5-VL
LETTERS_PER_TOKEN = 4
AZURE_VERSION = "2024-10-21"
# A parameter that a server does not take is left out; the limit of tokens has two names.
OTHER_NAMES = {"max_tokens": "max_completion_tokens"}
PASSING = (408, 409, 425, 429)  # and 5xx: what may go well a little later
KEYS = re.compile(r"\b(?:sk|key|gsk|AIza)[-_][\w*.-]+")


class Server(NamedTuple):
    """Where a server is unless the user says otherwise, and the environment variable with its key."""

    url: str
    key: str
    needs_key: bool = True


SERVERS = {
    "openai": Server("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "openrouter": Server("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "anthropic": Server("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
    "google": Server("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "vllm": Server("http://localhost:8000/v1", "VLLM_API_KEY", False),
    "sglang": Server("http://localhost:30000/v1", "SGLANG_API_KEY", False),
    "ollama": Server("http://localhost:11434/v1", "OLLAMA_API_KEY", False),
}


class TransientError(Exception):
    """No answer this time; another try may bring one, at the earliest `retry_after` seconds from now if the server says so."""

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Question:
    """What a designer is asked: pictures in formats that every server reads, and a text about them.

    `id` names the edit; the text was made of the `instruction`.
    """

    id: str
    instruction: str
    text: str
    pictures: tuple[Sent, ...]


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: as written.
        trouble: why this is no answer, whatever the text (refused, filtered, cut off); None if nothing is known against it.
        tokens_in, tokens_out: as the server counts them, or estimated where it does not.
        dropped: parameters that the server refused, and which were left out.
    """

    text: str
    trouble: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    dropped: tuple[str, ...] = ()


@runtime_checkable
class Designer(Protocol):
    """Writes blueprints, and answers other questions about pictures."""

    @property
    def name(self) -> str:
        """As it is spelled on the command line."""
        ...

    @property
    def max_tokens(self) -> int:
        """The most that an answer may have; 0 if answers cost nothing."""
        ...

    async def ask(self, question: Question) -> Answer:
        """The answer.

        Raises:
            TransientError: there is none this time.
            InputError: there will be none for any question.
        """
        ...

    async def close(self) -> None:
        """Ends connections, until something is asked again."""
        ...


class ChatDesigner:
    """A model behind a server that speaks OpenAI's chat completions."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], "openai.AsyncOpenAI"],
        *,
        key: str,
        max_tokens: int = MAX_TOKENS,
        time_limit: float = 180.0,
    ):
        """`name` is the spelling, `kind:model`; `connect` makes a client, of which every run has its own; `key` is the environment
        variable with the key; `time_limit` seconds, for each call."""
        self.name, self.max_tokens = name, max_tokens
        self._model = name.partition(":")[2]
        self._connect, self._client, self._key, self._time_limit = connect, connect(), key, time_limit
        self._parameters: dict[str, Any] = {"temperature": 0, "seed": 0, "max_tokens": max_tokens}
        self._dropped: list[str] = []

    @classmethod
    def open(cls, kind: str, model: str, *, base_url: str | None = None, max_tokens: int = MAX_TOKENS, time_limit: float = 180.0):
        """The model of a server in `SERVERS`, at `base_url` if given, or an Azure deployment. Keys come from the environment.

        Raises:
            InputError: the key or Azure's endpoint is missing, or the package `openai` is.
        """
        require("openai", extra="designer", what="Asking a server")
        import openai  # takes half a second

        common: dict[str, Any] = {"max_retries": 0, "timeout": time_limit}
        azure = kind == "azure"
        server = Server(os.environ.get("AZURE_OPENAI_ENDPOINT", ""), "AZURE_OPENAI_API_KEY") if azure else SERVERS[kind]
        # OPENAI_BASE_URL is the variable of the package openai.
        url = base_url or (os.environ.get("OPENAI_BASE_URL") if kind == "openai" else None) or server.url
        key = os.environ.get(server.key)
        if not key and server.needs_key:
            raise InputError(f"{kind}:{model} needs a key. Put it into the environment variable {server.key}.")
        if not url:
            raise InputError(f"{kind}:{model}: name the endpoint of the resource in AZURE_OPENAI_ENDPOINT (or with --base-url).")
        if azure:
            version = os.environ.get("OPENAI_API_VERSION", AZURE_VERSION)
            options = {"azure_endpoint": url, "azure_deployment": model, "api_key": key, "api_version": version}
            connect = partial(openai.AsyncAzureOpenAI, **options, **common)
        else:
            connect = partial(openai.AsyncOpenAI, api_key=key or "none", base_url=url, **common)
        return cls(f"{kind}:{model}", connect, key=server.key, max_tokens=max_tokens, time_limit=time_limit)

    async def ask(self, question: Question) -> Answer:
        import openai

        urls = (f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}" for picture in question.pictures)
        content = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": question.text}]
        message: Any = {"role": "user", "content": content}
        while True:
            parameters = dict(self._parameters)
            try:
                # The client's own limit is for each read: a server that drips a byte a second would never meet it.
                async with asyncio.timeout(self._time_limit):
                    found: Any = await self._client.chat.completions.create(model=self._model, messages=[message], **parameters)
                return self._read(found, question)
            except TimeoutError as error:
                raise TransientError(f"no whole answer within {self._time_limit:g} s") from error
            except openai.APIStatusError as error:
                if not self._drop(error, parameters):
                    return self._refused(error)
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                raise TransientError(f"no connection to {self._client.base_url} ({cause or type(cause).__name__})") from error
            except (json.JSONDecodeError, openai.APIResponseValidationError) as error:
                raise TransientError(f"the answer is not JSON ({error})") from error

    async def close(self) -> None:
        await self._client.close()
        self._client = self._connect()  # connects when it is asked, which may be in another event loop

    def _read(self, found: Any, asked: Question) -> Answer:
        """The answer in a completion. The client does not check what a server sends, so everything may be missing."""
        choices = getattr(found, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if choice is None or message is None:
            said = getattr(found, "error", None) or found
            raise TransientError(f"the answer is no chat completion: {_short(self._without_keys(str(said)))}")
        text, finish = message.content or "", choice.finish_reason
        trouble = None
        if refusal := getattr(message, "refusal", None):
            trouble = f"the model refused: {_short(refusal)}"
        elif finish == "content_filter":
            trouble = "the server's content filter stopped the answer"
        elif finish == "length":
            trouble = f"the answer was cut off at {self.max_tokens} tokens; allow more (--max-tokens)"
        usage = getattr(found, "usage", None)
        tokens_in = getattr(usage, "prompt_tokens", None) or (
            TOKENS_OF_A_PICTURE * len(asked.pictures) + len(asked.text) // LETTERS_PER_TOKEN
        )
        tokens_out = getattr(usage, "completion_tokens", None) or len(text) // LETTERS_PER_TOKEN
        return Answer(text, trouble, tokens_in, tokens_out, tuple(self._dropped))

    def _drop(self, error: "openai.APIStatusError", sent: dict[str, Any]) -> bool:
        """Whether the error is about a parameter, which is then left out from now on."""
        if error.status_code not in (400, 422) or error.code in ("context_length_exceeded", "content_filter"):
            return False
        named = [name for name in sent if error.param == name or re.search(rf"\b{name}\b", str(error.body or error.message))]
        if not named:
            return False
        name = named[0]
        # Calls under way at once are all refused; the first to hear of it changes the parameters.
        if name in self._parameters:
            value = self._parameters.pop(name)
            self._dropped.append(name)
            if name in OTHER_NAMES:
                self._parameters[OTHER_NAMES[name]] = value
        return True

    def _refused(self, error: "openai.APIStatusError") -> Answer:
        """What follows from a status that is no success."""
        status, said = error.status_code, _short(self._without_keys(error.message.removeprefix(f"Error code: {error.status_code} - ")))
        if status == 401:  # what servers say of a wrong key may hold parts of it
            raise InputError(f"{self.name}: the server does not take the key in {self._key} (401). Check key and --base-url.")
        if status == 402 or error.code == "insufficient_quota":
            raise InputError(f"{self.name}: the account has no credit left ({said}). Add some, then run the same command again.")
        if status == 403:
            raise InputError(f"{self.name}: the key in {self._key} may not use this model (403: {said}). Ask for access, or take another.")
        if status == 404:
            raise InputError(f"{self.name}: not found at {self._client.base_url} (404: {said}). Check the model's name and --base-url.")
        if status in PASSING or status >= 500:
            raise TransientError(f"the server answered {status}: {said}", retry_after(error.response.headers))
        if error.code == "content_filter" or "content management policy" in error.message:
            return Answer("", f"the server's content filter refused the request: {said}")
        return Answer("", f"the server refused the request ({status}): {said}")

    def _without_keys(self, text: str) -> str:
        key = os.environ.get(self._key)
        return KEYS.sub("***", text.replace(key, "***") if key else text)


def retry_after(headers: Any) -> float | None:
    """Seconds to wait as the headers of a response say: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if re.fullmatch(r"\s*\d+(?:\.\d+)?\s*", value := headers.get(name, "")):
            return float(value) * unit
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except ValueError:  # neither
        return None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"
