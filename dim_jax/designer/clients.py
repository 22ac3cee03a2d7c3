"""Designers behind a network: any server that speaks OpenAI's chat completions, and Azure OpenAI."""

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

from dim_jax.designer.picture import EncodedPicture
from dim_jax.designer.responses import ResponseError, error_object, parse_json, read_completion, short_message
from dim_jax.errors import InputError, check, check_unicode, require_packages

if TYPE_CHECKING:
    import openai

MAX_TOKENS = 2048  # real blueprints have about 330 tokens; reasoning models need more
TOKENS_PER_PICTURE = 1500  # estimate where a server does not count: 1024 x 1024 pixels in GPT-4o and Qwen2.5-VL
CHARS_PER_TOKEN = 4
RETRY_TEMPERATURE = 0.7  # the temperature of a second attempt
AZURE_VERSION = "2024-10-21"
# Unsupported parameters are left out; the token limit has two names.
TOKEN_LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
TRANSIENT_STATUSES = (408, 409, 425, 429)  # and 5xx: a later try may succeed
NOT_FOUND = (404, 405, 410, 501)  # no such model, or no server of this kind
KEYS = re.compile(r"\b(?:(?:sk|key|gsk)[-_]|AIza)[\w*.-]+")
# Messages that some servers send with 400 or 429, where others use a status of their own.
WRONG_KEY = re.compile(
    r"API_KEY_INVALID|invalid_api_key|\b(?:invalid|incorrect|wrong|expired|missing|no|unknown)\b[^.]{0,20}\bapi[ _-]?key"
    r"|\bapi[ _-]?key\b[^.]{0,20}\b(?:not valid|invalid|incorrect|wrong|expired|missing|not found|required|revoked|disabled)\b",
    re.IGNORECASE,
)
NO_CREDIT = re.compile(r"insufficient[_ ](?:quota|balance|credits?|funds)|credit balance is too low|billing_hard_limit", re.IGNORECASE)
WRONG_MODEL = re.compile(
    r"model_not_found|not a valid model|\bmodel\b[^.]{0,80}\b(?:does ?n[o']t exist|not exist|not found)\b", re.IGNORECASE
)
CONTENT_FILTERED = re.compile(r"content[_ ](?:filter|management policy|policy)|moderation|\bflagged\b", re.IGNORECASE)
# Messages about an unsupported parameter, never about a value that is wrong for one request.
UNSUPPORTED_PARAMETER = re.compile(
    r"unsupported|not supported|n[o']t support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|\bextra\b|\buse '?max_",
    re.IGNORECASE,
)


class Server(NamedTuple):
    """A server's default address, and the environment variable with its key."""

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
    """No answer this time; a retry may succeed, at the earliest after `retry_after` seconds if the server says so.

    `unreachable`: there was no connection, so the server has not received the request.
    """

    def __init__(self, reason: str, retry_after: float | None = None, *, unreachable: bool = False):
        super().__init__(reason)
        self.retry_after, self.unreachable = retry_after, unreachable


@dataclass(frozen=True)
class Request:
    """A request to a designer: pictures in formats that every server reads, and a text about them.

    `id` names the edit; the text was made from the `instruction`. `needs_token_limit`: send it only with a limit on the answer's tokens.
    `attempt`: the number of unusable answers so far; later attempts are sampled at random, or the same answer would come again.
    """

    id: str
    instruction: str
    text: str
    pictures: tuple[EncodedPicture, ...]
    needs_token_limit: bool = False
    attempt: int = 0


@dataclass(frozen=True)
class Response:
    """The answer to a request.

    Attributes:
        text: the answer as written.
        failure: why the text is not an answer (refused, filtered, cut off); None if it may be one.
        tokens_in, tokens_out: as the server counts them, or estimated where it does not; never negative.
        dropped: unsupported parameters that were left out.
        model: the model's name in the answer; None if it has none.
    """

    text: str
    failure: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    dropped: tuple[str, ...] = ()
    model: str | None = None


@runtime_checkable
class Designer(Protocol):
    """Writes blueprints, and answers other requests about pictures."""

    @property
    def name(self) -> str:
        """Its spec, as on the command line."""
        ...

    @property
    def max_tokens(self) -> int:
        """The most tokens of an answer; 0 if answers are free."""
        ...

    async def complete(self, request: Request) -> Response:
        """The answer.

        Raises:
            TransientError: no answer this time; retry.
            InputError: every request will fail.
        """
        ...

    async def close(self) -> None:
        """Closes connections; the next request opens them again."""
        ...


class ChatDesigner:
    """A model behind a server that speaks OpenAI's chat completions."""

    def __init__(
        self, name: str, connect: Callable[[], "openai.AsyncOpenAI"], *, key: str, max_tokens: int = MAX_TOKENS, time_limit: float = 180.0
    ):
        """`name` is `kind:model`; `connect` makes a client, one for each run; `key` is the environment
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
            InputError: the key or Azure's endpoint is missing or invalid, the package `openai` is missing, or proxies or certificates in
                the environment cannot be used.
        """
        require_packages("openai", extra="designer", feature="Asking a server")
        import httpx2  # as openai does
        import openai  # takes half a second

        check_unicode(model, "The model's name")
        common: dict[str, Any] = {"max_retries": 0, "timeout": time_limit}
        azure = kind == "azure"
        server = Server(os.environ.get("AZURE_OPENAI_ENDPOINT", ""), "AZURE_OPENAI_API_KEY") if azure else SERVERS[kind]
        # OPENAI_BASE_URL is the variable of the package openai.
        url = base_url or (os.environ.get("OPENAI_BASE_URL") if kind == "openai" else None) or server.url
        key = os.environ.get(server.key)
        check(key or not server.needs_key, f"{kind}:{model} needs a key. Put it into the environment variable {server.key}.")
        check(url, f"{kind}:{model}: name the endpoint of the resource in AZURE_OPENAI_ENDPOINT (or with --base-url).")
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

    async def complete(self, request: Request) -> Response:
        import openai

        urls = (f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}" for picture in request.pictures)
        content = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": request.text}]
        message: Any = {"role": "user", "content": content}
        while True:
            parameters = dict(self._parameters)
            if request.attempt:
                retry = {"temperature": RETRY_TEMPERATURE, "seed": request.attempt}
                parameters |= {name: value for name, value in retry.items() if name in parameters}
            if request.needs_token_limit and not set(TOKEN_LIMIT_NAMES) & set(parameters):
                raise InputError(
                    f"{self.name}: the server supports no token limit ({' or '.join(TOKEN_LIMIT_NAMES)}), so no budget can be kept. "
                    "Leave the budget out, or ask another server."
                )
            try:
                # The client's own limit is for each read: a server that sends a byte a second would never reach it.
                async with asyncio.timeout(self._time_limit):
                    raw_response = await self._client.chat.completions.with_raw_response.create(
                        model=self._model, messages=[message], **parameters
                    )
                return self._response(raw_response.content, request)
            except TimeoutError as error:
                raise TransientError(f"no whole answer within {self._time_limit:g} s") from error
            except openai.APIStatusError as error:
                value = parse_json(error.response.content)
                if not self._drop_parameter(error.status_code, value, parameters):
                    return self._handle_status(error.status_code, value, error.response)
            except openai.APIConnectionError as error:
                raise self._connection_error(error) from error
            except ResponseError as error:
                status = error_object(error.value).get("code")
                if isinstance(status, int) and 400 <= status < 600:  # of OpenRouter, in an answer of status 200
                    return self._handle_status(status, error.value, raw_response.http_response)
                raise TransientError(self._without_keys(str(error))) from error

    async def close(self) -> None:
        await self._client.close()
        self._client = self._connect()  # connects on its next request, which may be in another event loop

    def _response(self, body: bytes, request: Request) -> Response:
        """The answer in a completion."""
        completion = read_completion(body)
        failure = completion.failure and self._without_keys(completion.failure)
        if not failure and completion.finish == "content_filter":
            failure = "the server's content filter stopped the answer"
        elif not failure and completion.finish == "length":
            failure = f"the answer was cut off at {self.max_tokens} tokens; allow more (--max-tokens)"
        tokens_in = completion.tokens_in or TOKENS_PER_PICTURE * len(request.pictures) + len(request.text) // CHARS_PER_TOKEN
        tokens_out = completion.tokens_out or len(completion.text) // CHARS_PER_TOKEN
        return Response(completion.text, failure, tokens_in, tokens_out, tuple(self._dropped), completion.model)

    def _drop_parameter(self, status: int, value: Any, parameters: dict[str, Any]) -> bool:
        """Whether the error is about an unsupported parameter, which is left out from now on.

        The token limit stays if only its value is refused, for example for one long request to vLLM.
        """
        fault, message = error_object(value), short_message(value)
        code = str(fault.get("code"))
        if status not in (400, 422) or code in ("context_length_exceeded", "content_filter"):
            return False
        names = [name for name in parameters if fault.get("param") == name or re.search(rf"\b{name}\b", message)]
        if not names or (names[0] in TOKEN_LIMIT_NAMES and code != "unsupported_parameter" and not UNSUPPORTED_PARAMETER.search(message)):
            return False
        name = names[0]
        # All concurrent requests are refused; the first one changes the parameters.
        if name in self._parameters:
            limit = self._parameters.pop(name)
            self._dropped.append(name)
            if name == TOKEN_LIMIT_NAMES[0]:
                self._parameters[TOKEN_LIMIT_NAMES[1]] = limit
        return True

    def _handle_status(self, status: int, value: Any, response: Any) -> Response:
        """The response to an error status. Raises TransientError or InputError, as in `complete`."""
        message = self._without_keys(short_message(value) or response.reason_phrase or "no reason given")
        details = " ".join([*(str(error_object(value).get(name)) for name in ("code", "type", "status")), message])
        if status in (400, 403, 451) and CONTENT_FILTERED.search(details):
            return Response("", f"the server's content filter refused the request: {message}")
        # Before keys: an account without credit has a right one.
        if status == 402 or (status in (400, 403, 429) and NO_CREDIT.search(details)):
            raise InputError(f"{self.name}: the account has no credit left ({message}). Add some, then run the same command again.")
        if status == 401 or (status == 400 and WRONG_KEY.search(details)):  # messages about a wrong key may contain parts of it
            raise InputError(f"{self.name}: the server rejects the key in {self._key} ({status}: {message}). Check key and --base-url.")
        if status == 403:
            raise InputError(
                f"{self.name}: the key in {self._key} may not use this model (403: {message}). Ask for access, or take another."
            )
        if status in NOT_FOUND or (status == 400 and WRONG_MODEL.search(details)):
            raise InputError(
                f"{self.name}: not found at {self._client.base_url} ({status}: {message}). Check the model's name and --base-url."
            )
        if status in TRANSIENT_STATUSES or status >= 500:
            raise TransientError(f"the server answered {status}: {message}", retry_after(response.headers))
        return Response("", f"the server refused the request ({status}): {message}")

    def _connection_error(self, error: BaseException) -> TransientError:
        """The reason of a connection error. Raises InputError if a retry cannot help."""
        import httpx2

        url, chain = self._client.base_url, [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        root, unreachable = chain[-1], any(isinstance(exception, httpx2.ConnectError | httpx2.ConnectTimeout) for exception in chain)
        for exception in chain:
            if isinstance(exception, ssl.SSLCertVerificationError):
                raise InputError(
                    f"{self.name}: the certificate of {url} is not valid ({exception.verify_message or exception}). Check --base-url and "
                    "this machine's clock; for a certificate of your own, name its file in SSL_CERT_FILE."
                ) from error
            if isinstance(exception, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(exception):
                raise InputError(f"{self.name}: {url} does not speak TLS. Write http:// instead of https:// in --base-url.") from error
            if isinstance(exception, socket.gaierror):
                reason = f"its name is not known: {exception.strerror}. Check --base-url and the network"
                return TransientError(f"no connection to {url} ({reason})", unreachable=True)
            if isinstance(exception, ConnectionRefusedError):
                reason = "nothing listens there. Start the server, or check --base-url"
                return TransientError(f"no connection to {url} ({reason})", unreachable=True)
        reason = short_message(str(chain[min(1, len(chain) - 1)])) or type(root).__name__
        end = "" if unreachable else " to the end of the answer"
        return TransientError(f"no connection to {url}{end} ({reason})", unreachable=unreachable)

    def _without_keys(self, text: str) -> str:
        key = os.environ.get(self._key)
        return KEYS.sub("***", text.replace(key, "***") if key else text)


def _check_url(url: str) -> None:
    check_unicode(url, "The address of the server")
    try:
        parts = urlsplit(url)
        labels = (parts.hostname or "").removesuffix(".").split(".")
        valid = parts.scheme in ("http", "https") and all(labels) and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:  # such as a port that is not a number
        valid = False
    check(valid, f"{url}: not the address of a server. Write one such as http://localhost:8000/v1 (--base-url).")


def retry_after(headers: Any) -> float | None:
    """Seconds to wait by the headers of a response: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110); for a number
    that is too large for this machine, infinity."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if re.fullmatch(r"\s*[0-9]+(?:\.[0-9]*)?\s*", value := headers.get(name, "")):
            return float(value) * unit
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, OverflowError):  # neither
        return None
