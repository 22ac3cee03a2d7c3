"""Designers that are asked over the network: any server that speaks OpenAI's chat completions, and Azure OpenAI."""

import asyncio
import base64
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlsplit

from dim_jax.designer.picture import Sent
from dim_jax.designer.responses import ResponseError, error_of, load, read_completion, words
from dim_jax.errors import InputError, check_unicode, require

if TYPE_CHECKING:
    import openai

MAX_TOKENS = 2048  # real blueprints have some 330 tokens; models that think first need more
TOKENS_OF_A_PICTURE = 1500  # where a server does not count: about what 1024 x 1024 pixels are to GPT-4o and Qwen2.5-VL
LETTERS_PER_TOKEN = 4
ANEW = 0.7  # the temperature of an answer that is asked for again
AZURE_VERSION = "2024-10-21"
# A parameter that a server does not take is left out; the limit of tokens has two names.
CAPS = ("max_tokens", "max_completion_tokens")
TRANSIENT_STATUSES = (408, 409, 425, 429)  # and 5xx: what may go well a little later
NOT_FOUND = (404, 405, 410, 501)  # no such model, or no server of this kind
KEYS = re.compile(r"\b(?:(?:sk|key|gsk)[-_]|AIza)[\w*.-]+")
# What some servers say with 400 or 429 where others have a status of its own.
WRONG_KEY = re.compile(
    r"API_KEY_INVALID|invalid_api_key|\b(?:invalid|incorrect|wrong|expired|missing|no|unknown)\b[^.]{0,20}\bapi[ _-]?key"
    r"|\bapi[ _-]?key\b[^.]{0,20}\b(?:not valid|invalid|incorrect|wrong|expired|missing|not found|required|revoked|disabled)\b",
    re.IGNORECASE,
)
NO_CREDIT = re.compile(r"insufficient[_ ](?:quota|balance|credits?|funds)|credit balance is too low|billing_hard_limit", re.IGNORECASE)
WRONG_MODEL = re.compile(
    r"model_not_found|not a valid model|\bmodel\b[^.]{0,80}\b(?:does ?n[o']t exist|not exist|not found)\b", re.IGNORECASE
)
MODERATED = re.compile(r"content[_ ](?:filter|management policy|policy)|moderation|\bflagged\b", re.IGNORECASE)
# What is said of a parameter that a server does not have, and never of one whose value does not suit one question.
NOT_TAKEN = re.compile(
    r"unsupported|not supported|n[o']t support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|\bextra\b|\buse '?max_",
    re.IGNORECASE,
)


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
    """No answer this time; another try may bring one, at the earliest `retry_after` seconds from now if the server says so.

    `unreached`: there was no connection, so nobody has heard the question.
    """

    def __init__(self, reason: str, retry_after: float | None = None, *, unreached: bool = False):
        super().__init__(reason)
        self.retry_after, self.unreached = retry_after, unreached


@dataclass(frozen=True)
class Request:
    """What a designer is asked: pictures in formats that every server reads, and a text about them.

    `id` names the edit; the text was made of the `instruction`. `capped`: it may only be asked with a limit to the answer's tokens.
    `attempt`: how many answers to it could not be used; those after the first are drawn at random, or the same would come again.
    """

    id: str
    instruction: str
    text: str
    pictures: tuple[Sent, ...]
    capped: bool = False
    attempt: int = 0


@dataclass(frozen=True)
class Response:
    """What came back.

    Attributes:
        text: as written.
        trouble: why this is no answer, whatever the text (refused, filtered, cut off); None if nothing is known against it.
        tokens_in, tokens_out: as the server counts them, or estimated where it does not; never negative.
        dropped: parameters that the server refused, and which were left out.
        model: who answered, as the server names it; None if it does not.
    """

    text: str
    trouble: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    dropped: tuple[str, ...] = ()
    model: str | None = None


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

    async def complete(self, question: Request) -> Response:
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
            InputError: the key or Azure's endpoint is missing or no such thing, the package `openai` is missing, or what the environment
                says of proxies and certificates cannot be used.
        """
        require("openai", extra="designer", what="Asking a server")
        import httpx2  # as openai does
        import openai  # takes half a second

        check_unicode(model, "The model's name")
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
        if key and not (key.isascii() and key.isprintable()):
            raise InputError(f"{kind}:{model}: the key in {server.key} has letters that no key has, such as a line break. Set it again.")
        _check_url(url)
        if azure:
            version = os.environ.get("OPENAI_API_VERSION", AZURE_VERSION)
            options = {"azure_endpoint": url, "azure_deployment": model, "api_key": key, "api_version": version}
            connect = partial(openai.AsyncAzureOpenAI, **options, **common)
        else:
            connect = partial(openai.AsyncOpenAI, api_key=key or "none", base_url=url, **common)
        try:
            return cls(f"{kind}:{model}", connect, key=server.key, max_tokens=max_tokens, time_limit=time_limit)
        except (httpx2.InvalidURL, ValueError, OSError) as error:
            raise InputError(
                f"{kind}:{model}: no client for {url} ({error}). Check --base-url and, in the environment, HTTP_PROXY, HTTPS_PROXY, "
                "SSL_CERT_FILE and SSL_CERT_DIR."
            ) from error

    async def complete(self, question: Request) -> Response:
        import openai

        urls = (f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}" for picture in question.pictures)
        content = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": question.text}]
        message: Any = {"role": "user", "content": content}
        while True:
            parameters = dict(self._parameters)
            if question.attempt:
                parameters |= {name: value for name, value in (("temperature", ANEW), ("seed", question.attempt)) if name in parameters}
            if question.capped and not set(CAPS) & set(parameters):
                raise InputError(
                    f"{self.name}: the server takes no limit to an answer's tokens ({' or '.join(CAPS)}), so that no budget can be kept. "
                    "Leave the budget out, or ask another server."
                )
            try:
                # The client's own limit is for each read: a server that drips a byte a second would never meet it.
                async with asyncio.timeout(self._time_limit):
                    found = await self._client.chat.completions.with_raw_response.create(
                        model=self._model, messages=[message], **parameters
                    )
                return self._read(found.content, question)
            except TimeoutError as error:
                raise TransientError(f"no whole answer within {self._time_limit:g} s") from error
            except openai.APIStatusError as error:
                value = load(error.response.content)
                if not self._drop(error.status_code, value, parameters):
                    return self._refused(error.status_code, value, error.response)
            except openai.APIConnectionError as error:
                raise self._unconnected(error) from error
            except ResponseError as error:
                status = error_of(error.value).get("code")
                if isinstance(status, int) and 400 <= status < 600:  # of OpenRouter, in an answer of status 200
                    return self._refused(status, error.value, found.http_response)
                raise TransientError(self._without_keys(str(error))) from error

    async def close(self) -> None:
        await self._client.close()
        self._client = self._connect()  # connects when it is asked, which may be in another event loop

    def _read(self, body: bytes, asked: Request) -> Response:
        """The answer in a completion."""
        found = read_completion(body)
        trouble = found.trouble and self._without_keys(found.trouble)
        if not trouble and found.finish == "content_filter":
            trouble = "the server's content filter stopped the answer"
        elif not trouble and found.finish == "length":
            trouble = f"the answer was cut off at {self.max_tokens} tokens; allow more (--max-tokens)"
        tokens_in = found.tokens_in or TOKENS_OF_A_PICTURE * len(asked.pictures) + len(asked.text) // LETTERS_PER_TOKEN
        tokens_out = found.tokens_out or len(found.text) // LETTERS_PER_TOKEN
        return Response(found.text, trouble, tokens_in, tokens_out, tuple(self._dropped), found.model)

    def _drop(self, status: int, value: Any, sent: dict[str, Any]) -> bool:
        """Whether the error is about a parameter that the server does not take, which is then left out from now on.

        A limit to the answer stays if only its size is refused, such as for one long question to vLLM.
        """
        fault, said = error_of(value), words(value)
        code = str(fault.get("code"))
        if status not in (400, 422) or code in ("context_length_exceeded", "content_filter"):
            return False
        named = [name for name in sent if fault.get("param") == name or re.search(rf"\b{name}\b", said)]
        if not named or (named[0] in CAPS and code != "unsupported_parameter" and not NOT_TAKEN.search(said)):
            return False
        name = named[0]
        # Calls under way at once are all refused; the first to hear of it changes the parameters.
        if name in self._parameters:
            limit = self._parameters.pop(name)
            self._dropped.append(name)
            if name == CAPS[0]:
                self._parameters[CAPS[1]] = limit
        return True

    def _refused(self, status: int, value: Any, response: Any) -> Response:
        """What follows from a status that is no success."""
        said = self._without_keys(words(value) or response.reason_phrase or "no reason given")
        whole = " ".join([*(str(error_of(value).get(name)) for name in ("code", "type", "status")), said])
        if status in (400, 403, 451) and MODERATED.search(whole):
            return Response("", f"the server's content filter refused the request: {said}")
        # Before keys: an account without credit has a right one.
        if status == 402 or (status in (400, 403, 429) and NO_CREDIT.search(whole)):
            raise InputError(f"{self.name}: the account has no credit left ({said}). Add some, then run the same command again.")
        if status == 401 or (status == 400 and WRONG_KEY.search(whole)):  # what servers say of a wrong key may hold parts of it
            raise InputError(f"{self.name}: the server does not take the key in {self._key} ({status}: {said}). Check key and --base-url.")
        if status == 403:
            raise InputError(f"{self.name}: the key in {self._key} may not use this model (403: {said}). Ask for access, or take another.")
        if status in NOT_FOUND or (status == 400 and WRONG_MODEL.search(whole)):
            raise InputError(
                f"{self.name}: not found at {self._client.base_url} ({status}: {said}). Check the model's name and --base-url."
            )
        if status in TRANSIENT_STATUSES or status >= 500:
            raise TransientError(f"the server answered {status}: {said}", retry_after(response.headers))
        return Response("", f"the server refused the request ({status}): {said}")

    def _unconnected(self, error: BaseException) -> TransientError:
        """Why there was no connection, or none to the end.

        Raises:
            InputError: it will not get better by itself.
        """
        import httpx2

        url, chain = self._client.base_url, [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        last, unreached = chain[-1], any(isinstance(one, httpx2.ConnectError | httpx2.ConnectTimeout) for one in chain)
        for one in chain:
            if isinstance(one, ssl.SSLCertVerificationError):
                raise InputError(
                    f"{self.name}: the certificate of {url} is not valid ({one.verify_message or one}). Check --base-url and this "
                    "machine's clock; for a certificate of your own, name its file in SSL_CERT_FILE."
                ) from error
            if isinstance(one, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(one):
                raise InputError(f"{self.name}: {url} does not speak TLS. Write http:// instead of https:// in --base-url.") from error
            if isinstance(one, socket.gaierror):
                reason = f"its name is not known: {one.strerror}. Check --base-url and the network"
                return TransientError(f"no connection to {url} ({reason})", unreached=True)
            if isinstance(one, ConnectionRefusedError):
                reason = "nobody listens there. Start the server, or check --base-url"
                return TransientError(f"no connection to {url} ({reason})", unreached=True)
        reason = words(str(chain[min(1, len(chain) - 1)])) or type(last).__name__
        end = "" if unreached else " to the end of the answer"
        return TransientError(f"no connection to {url}{end} ({reason})", unreached=unreached)

    def _without_keys(self, text: str) -> str:
        key = os.environ.get(self._key)
        return KEYS.sub("***", text.replace(key, "***") if key else text)


def _check_url(url: str) -> None:
    check_unicode(url, "The address of the server")
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:  # such as a port that is no number
        right = False
    if not right:
        raise InputError(f"{url}: no address of a server. Write one such as http://localhost:8000/v1 (--base-url).")


def retry_after(headers: Any) -> float | None:
    """Seconds to wait as the headers of a response say: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110); for a number
    that is too large for this machine, infinity."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if re.fullmatch(r"\s*[0-9]+(?:\.[0-9]*)?\s*", value := headers.get(name, "")):
            return float(value) * unit
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, OverflowError):  # neither
        return None
