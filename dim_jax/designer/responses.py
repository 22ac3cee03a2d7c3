"""Parses the bytes that servers send: completions in their various forms, and the reason in errors of any kind."""

import json
import re
from html import unescape
from typing import Any, NamedTuple

from dim_jax.errors import InputError

MAX_MESSAGE = 200  # letters of a reason
MAX_TOKEN_COUNT = 10**9  # larger counts are ignored
MESSAGE_KEYS = ("message", "error_description", "error", "detail", "msg", "reason", "refusal", "errors", "title")
HTML_MARKUP = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.DOTALL | re.IGNORECASE)


class ResponseError(InputError):
    """Bytes that are not a completion; the message is the reason, `value` their content."""

    def __init__(self, reason: str, value: Any):
        super().__init__(reason)
        self.value = value


class Completion(NamedTuple):
    """An answer as it was sent.

    Attributes:
        text: its parts of text joined.
        failure: why the answer is not complete, if the server says so, or sends something other than text.
        finish: the server's word for how it ended, if it has one.
        tokens_in, tokens_out: as the server counts them; None if it does not, or not in merged, positive numbers.
        model: the model's name in the answer.
    """

    text: str = ""
    failure: str | None = None
    finish: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str | None = None


def read_completion(body: bytes) -> Completion:
    """The first choice of a chat completion, also of a streamed one. A completion that was paid for is always returned, with its `failure`.

    Raises:
        ResponseError: it is not a completion, and nothing says that it was paid for.
    """
    value = _merge_stream(body) or parse_json(body)
    completion, model = _completion(value), value.get("model") if isinstance(value, dict) else None
    return completion._replace(model=short_message(model) if isinstance(model, str) and model else None)


def _completion(value: Any) -> Completion:
    usage = value.get("usage") if isinstance(value, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = (token_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("message") is None:
        reason = f"the answer is not a chat completion{', not JSON' if isinstance(value, str) else ''}: {short_message(value)}"
        if not (tokens_in or tokens_out):
            raise ResponseError(reason, value)
        return Completion("", reason, None, tokens_in, tokens_out)
    message = choice["message"]
    if not isinstance(message, dict):
        return Completion("", f"the answer's message is not an object: {short_message(message)}", None, tokens_in, tokens_out)
    content, finish, failure = message.get("content"), choice.get("finish_reason"), None
    text = _text(content)
    if refusal := message.get("refusal"):
        failure = f"the model refused: {short_message(refusal)}"
    elif error := choice.get("error"):
        failure = f"the server broke off: {short_message(error)}"
    elif text is None:
        failure = f"the answer's content is not text: {short_message(content)}"
    return Completion(text or "", failure, finish if isinstance(finish, str) else None, tokens_in, tokens_out)


def _text(content: Any) -> str | None:
    """A text, or the parts of text in a list of parts; None if there are only others. No content is an empty text."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [None]
    parts = [part.get("text") if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text") else part for part in parts]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts or not parts else None


def _merge_stream(body: bytes) -> dict[str, Any] | None:
    """The completion of a stream of server-sent events; None if this is not one."""
    if not re.match(rb"\s*(?:data|event|id|retry|):", body):
        return None
    lines = re.split(rb"\r\n|\n|\r", body)
    events = [parse_json(line[5:]) for line in lines if line.startswith(b"data:") and line[5:].strip() != b"[DONE]"]
    events = [event for event in events if isinstance(event, dict)]
    choices = [event["choices"][0] for event in events if isinstance(event.get("choices"), list) and event["choices"]]
    choices = [choice for choice in choices if isinstance(choice, dict) and isinstance(choice.get("delta"), dict)]
    if not choices:
        return events[-1] if events else None
    deltas = [choice["delta"] for choice in choices]
    refusal = "".join(delta["refusal"] for delta in deltas if isinstance(delta.get("refusal"), str))
    message = {"content": "".join(_text(delta.get("content")) or "" for delta in deltas), "refusal": refusal}
    merged = {"message": message} | {
        name: part[name] for part in (*events, *choices) for name in ("error", "finish_reason") if part.get(name)
    }
    if "finish_reason" not in merged:
        merged.setdefault("error", "its stream ends in the middle")
    last = {name: next((event[name] for event in reversed(events) if event.get(name)), None) for name in ("usage", "model")}
    return {"choices": [merged], **last}


def parse_json(body: bytes) -> Any:
    """The value of a JSON text in any Unicode encoding, with lone surrogates replaced; or the text itself if it is not JSON."""
    text = body.decode(json.detect_encoding(body), "replace").removeprefix("\ufeff")
    try:
        value = json.loads(text, strict=False, parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits))
        return json.loads(replace_surrogates(json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return text


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for every lone surrogate."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def token_count(value: Any) -> int | None:
    """A number of tokens, also as a text; None for anything but a positive integer."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_TOKEN_COUNT or value != int(value):
        return None
    return int(value)


def short_message(value: Any) -> str:
    """A server's message in one short line: from objects and lists, the title of a page, or plain text."""
    line = "".join(letter if letter.isprintable() else " " for letter in replace_surrogates(_message(value)))
    line = " ".join(line.split())
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"


def _message(value: Any, depth: int = 0) -> str:
    if isinstance(value, str):
        if re.search(r"<(?:!doctype|html|head|body|h1|title)\b", value, re.IGNORECASE):
            title = TITLE.search(value)
            return unescape(title[1] if title else HTML_MARKUP.sub(" ", value))
        return value
    if depth < 8 and isinstance(value, list):
        return "; ".join(_message(item, depth + 1) for item in value[:3])
    if depth < 8 and isinstance(value, dict):
        message = next((value[name] for name in MESSAGE_KEYS if value.get(name)), None)
        if message is not None:
            location = value.get("loc")  # of FastAPI: which field
            metadata = value.get("metadata")  # of OpenRouter: the provider's message
            raw = metadata.get("raw") if isinstance(metadata, dict) else None
            prefix = ".".join(map(str, location)) + ": " if isinstance(location, list) else ""
            return prefix + _message(message, depth + 1) + (f" ({_message(raw, depth + 1)})" if raw else "")
    return json.dumps(value, ensure_ascii=False)


def error_object(value: Any) -> dict[str, Any]:
    """The object of an error with code and parameter: the innermost `error`, of a list the first; empty if there is none."""
    while isinstance(value, list | dict):
        inner = value[0] if isinstance(value, list) and value else value.get("error") if isinstance(value, dict) else None
        if not isinstance(inner, list | dict):
            return value if isinstance(value, dict) else {}
        value = inner
    return {}
