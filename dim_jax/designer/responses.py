"""What servers send, read from the bytes: completions in the shapes that they come in, and the reason in an error of any kind."""

import json
import re
from html import unescape
from typing import Any, NamedTuple

from dim_jax.errors import InputError

LONGEST = 200  # letters of a reason
MOST_TOKENS = 10**9  # what a server counts beyond that is nonsense
WORDS = ("message", "error_description", "error", "detail", "msg", "reason", "refusal", "errors", "title")
NO_TEXT = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.DOTALL | re.IGNORECASE)


class ResponseError(InputError):
    """Bytes that are no completion; the message is the reason, `value` what they hold."""

    def __init__(self, reason: str, value: Any):
        super().__init__(reason)
        self.value = value


class Completion(NamedTuple):
    """An answer as it was sent.

    Attributes:
        text: its parts of text joined.
        trouble: why this is no whole answer, if the server says so, or sends something else than text.
        finish: the server's word for how it ended, if it has one.
        tokens_in, tokens_out: as the server counts them; None if it does not, or not in whole, positive numbers.
        model: as the server names it.
    """

    text: str = ""
    trouble: str | None = None
    finish: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str | None = None


def read_completion(body: bytes) -> Completion:
    """The first choice of a chat completion, also of one that was streamed unasked. What was paid for is an answer, if one with trouble.

    Raises:
        ResponseError: it is none, and nothing says that it was paid for.
    """
    value = _events(body) or load(body)
    found, model = _completion(value), value.get("model") if isinstance(value, dict) else None
    return found._replace(model=words(model) if isinstance(model, str) and model else None)


def _completion(value: Any) -> Completion:
    usage = value.get("usage") if isinstance(value, dict) else None
    tokens_in, tokens_out = (count(usage.get(name)) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens"))
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("message") is None:
        reason = f"the answer is no chat completion{', not JSON' if isinstance(value, str) else ''}: {words(value)}"
        if not (tokens_in or tokens_out):
            raise ResponseError(reason, value)
        return Completion("", reason, None, tokens_in, tokens_out)
    message = choice["message"]
    if not isinstance(message, dict):
        return Completion("", f"the answer's message is no object: {words(message)}", None, tokens_in, tokens_out)
    content, finish, trouble = message.get("content"), choice.get("finish_reason"), None
    text = _text(content)
    if refusal := message.get("refusal"):
        trouble = f"the model refused: {words(refusal)}"
    elif error := choice.get("error"):
        trouble = f"the server broke off: {words(error)}"
    elif text is None:
        trouble = f"the answer's content is no text: {words(content)}"
    return Completion(text or "", trouble, finish if isinstance(finish, str) else None, tokens_in, tokens_out)


def _text(content: Any) -> str | None:
    """A text, or the parts of text in a list of parts; None if there are only others. No content is an empty text."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [None]
    parts = [one.get("text") if isinstance(one, dict) and one.get("type", "text") in ("text", "output_text") else one for one in parts]
    texts = [one for one in parts if isinstance(one, str)]
    return "".join(texts) if texts or not parts else None


def _events(body: bytes) -> dict[str, Any] | None:
    """What a stream of server-sent events adds up to, if this is one."""
    if not re.match(rb"\s*(?:data|event|id|retry|):", body):
        return None
    lines = re.split(rb"\r\n|\n|\r", body)
    events = [load(line[5:]) for line in lines if line.startswith(b"data:") and line[5:].strip() != b"[DONE]"]
    events = [event for event in events if isinstance(event, dict)]
    choices = [event["choices"][0] for event in events if isinstance(event.get("choices"), list) and event["choices"]]
    choices = [choice for choice in choices if isinstance(choice, dict) and isinstance(choice.get("delta"), dict)]
    if not choices:
        return events[-1] if events else None
    deltas = [choice["delta"] for choice in choices]
    refusal = "".join(delta["refusal"] for delta in deltas if isinstance(delta.get("refusal"), str))
    message = {"content": "".join(_text(delta.get("content")) or "" for delta in deltas), "refusal": refusal}
    whole = {"message": message} | {name: one[name] for one in (*events, *choices) for name in ("error", "finish_reason") if one.get(name)}
    if "finish_reason" not in whole:
        whole.setdefault("error", "its stream ends in the middle")
    last = {name: next((event[name] for event in reversed(events) if event.get(name)), None) for name in ("usage", "model")}
    return {"choices": [whole], **last}


def load(body: bytes) -> Any:
    """The value of some JSON, in any Unicode encoding, with half characters replaced; or the text that stands there instead."""
    text = body.decode(json.detect_encoding(body), "replace").removeprefix("\ufeff")
    try:
        value = json.loads(text, strict=False, parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits))
        return json.loads(replaced(json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return text


def replaced(text: str) -> str:
    """The text with U+FFFD for every half of a character that lacks its other half."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def count(value: Any) -> int | None:
    """A number of tokens, also one in digits; None for anything that is no whole positive number."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_TOKENS or value != int(value):
        return None
    return int(value)


def words(value: Any) -> str:
    """What a server says, in one short line: the message in its objects and lists, the title of a page, or a text as it stands."""
    line = "".join(letter if letter.isprintable() else " " for letter in replaced(_words(value)))
    line = " ".join(line.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _words(value: Any, depth: int = 0) -> str:
    if isinstance(value, str):
        if re.search(r"<(?:!doctype|html|head|body|h1|title)\b", value, re.IGNORECASE):
            title = TITLE.search(value)
            return unescape(title[1] if title else NO_TEXT.sub(" ", value))
        return value
    if depth < 8 and isinstance(value, list):
        return "; ".join(_words(one, depth + 1) for one in value[:3])
    if depth < 8 and isinstance(value, dict):
        found = next((value[name] for name in WORDS if value.get(name)), None)
        if found is not None:
            where = value.get("loc")  # of FastAPI: which field
            behind = value.get("metadata")  # of OpenRouter: what the provider said
            raw = behind.get("raw") if isinstance(behind, dict) else None
            text = ".".join(map(str, where)) + ": " if isinstance(where, list) else ""
            return text + _words(found, depth + 1) + (f" ({_words(raw, depth + 1)})" if raw else "")
    return json.dumps(value, ensure_ascii=False)


def error_of(value: Any) -> dict[str, Any]:
    """The object in an error that holds code and parameter: the innermost `error`, of a list the first; empty if there is none."""
    while isinstance(value, list | dict):
        inner = value[0] if isinstance(value, list) and value else value.get("error") if isinstance(value, dict) else None
        if not isinstance(inner, list | dict):
            return value if isinstance(value, dict) else {}
        value = inner
    return {}
