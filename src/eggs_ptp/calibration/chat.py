"""Chats: brings a row's turns into the form of chat templates, and renders them with the tokenizer's template."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError

CHAT_FIELDS: Final = ("messages", "conversations")
"""Fields of a row under which chats are published."""

# ShareGPT's names, and those of chat templates.
_KEYS: Final = {"from": "role", "value": "content"}
_ROLES: Final = {
    "human": "user",
    "observation": "tool",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant"),
}
# What a turn without content may consist of.
_IN_PLACE_OF_CONTENT: Final = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_MEDIA: Final = {"image": "an image", "audio": "audio", "video": "a video"}
_TEXT_ONLY: Final = "language models are pruned with text alone, so leave such rows out"


def render_chat(location: str, row: Mapping[str, Any], field: str, tokenizer: Tokenizer | None) -> Any:
    """Return the chat of a row as text.

    Turns go to the template as they are, with all of their keys, and the row's `tools` with them. Changed is only what
    templates do not know: ShareGPT's names of keys and roles become those of templates, keys that are null are left out
    (tables have every key in every turn), and a content of several texts becomes one.

    Args:
        location: Which row it is, for error messages.
        row: The row.
        field: The field that holds the turns.
        tokenizer: The tokenizer whose chat template renders them.

    Raises:
        CalibrationError: A turn has no role or no content, or holds an image, audio or video; or there is no template,
            or it refuses the chat.
    """
    _refuse_media(location, row, "a chat")
    turns = row[field]
    location = f"{location}, {field!r}"
    if not isinstance(turns, list):
        raise CalibrationError(
            f"{location}: expected a list of messages, got {type(turns).__name__}; name another field"
        )
    if not turns:
        raise CalibrationError(f"{location}: expected at least one message, got an empty list; leave the row out")
    messages = [_message(f"{location}, message {number}", turn) for number, turn in enumerate(turns, 1)]
    system = row.get("system")  # ShareGPT has the system prompt beside the turns
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    template = getattr(tokenizer, "apply_chat_template", None)
    if template is None:
        raise CalibrationError(f"{location}: a chat needs a tokenizer with a chat template; give plain text instead")
    tools = _tools(location, row.get("tools"))
    options = {"tokenize": False, **({"tools": tools} if tools else {})}
    try:
        return _rendered(template, messages, options)
    except Exception as error:  # templates are programs from the model's folder and may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CalibrationError(
            f"{location}: the tokenizer's chat template fails ({reason}); change the row, leave it out, or give plain "
            "text instead"
        ) from error


def _rendered(template: Callable[..., Any], messages: list[dict[str, Any]], options: Mapping[str, Any]) -> Any:
    """Return the rendered chat; for a template that cannot render null as content, null becomes an empty text."""
    try:
        return template(messages, **options)
    except Exception:
        if all(message.get("content") is not None for message in messages):
            raise
        return template([{**message, "content": message.get("content") or ""} for message in messages], **options)


def _message(location: str, turn: Any) -> dict[str, Any]:
    """Return a turn as templates expect it."""
    if not isinstance(turn, Mapping):
        raise CalibrationError(
            f"{location}: expected an object with role and content, got {type(turn).__name__}; correct the row or "
            "leave it out"
        )
    _refuse_media(location, turn, "a message")
    message = dict(turn)
    for foreign, key in _KEYS.items():
        if message.get(key) is None and foreign in message:
            message[key] = message.pop(foreign)
    message = {key: value for key, value in message.items() if value is not None or key == "content"}
    role = message.get("role")
    if not isinstance(role, str) or not role:
        got = "no role" if role in (None, "") else f"a role that is {type(role).__name__}"
        raise CalibrationError(
            f"{location}: expected role and content (or from and value), got {got} among {_quoted(turn)}; correct the "
            "row or leave it out"
        )
    message["role"] = _ROLES.get(role, role)
    content = message.get("content")
    if content is None:
        if not any(message.get(key) for key in _IN_PLACE_OF_CONTENT):
            raise CalibrationError(
                f"{location}: expected role and content (or from and value), got no content and no tool calls among "
                f"{_quoted(turn)}; correct the row or leave it out"
            )
    elif not isinstance(content, str):
        message["content"] = _joined_text(location, content)
    return message


def _joined_text(location: str, content: Any) -> str:
    """Return a content of parts as one text.

    Raises:
        CalibrationError: A part is not text.
    """
    if not isinstance(content, list):
        return _part_text(location, content)
    return "".join(_part_text(f"{location}, part {number}", part) for number, part in enumerate(content, 1))


def _part_text(location: str, part: Any) -> str:
    """Return the text of a part of a content: a string, or an object such as `{"type": "text", "text": "..."}`."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise CalibrationError(
            f"{location}: expected content as text, got {type(part).__name__}; correct the row or leave it out"
        )
    kind = part.get("type")
    text = part.get("text")
    if (kind is None or kind in _TEXT_PARTS) and isinstance(text, str):
        return text
    names = [kind] if kind and kind not in _TEXT_PARTS else [key for key, value in part.items() if value is not None]
    if medium := next((_MEDIA[name] for given in names for name in _MEDIA if name in str(given)), None):
        raise CalibrationError(f"{location}: expected text, got {medium} ({_quoted(names)}); {_TEXT_ONLY}")
    raise CalibrationError(
        f"{location}: expected a part of type 'text', got {_quoted(names)}; correct the row or leave it out"
    )


def _refuse_media(location: str, holder: Mapping[str, Any], what: str) -> None:
    """Refuse a chat or a message about images, audio or video that stand in fields of their own."""
    for name, value in holder.items():
        if value and (medium := _MEDIA.get(str(name).lower().removesuffix("s"))):
            raise CalibrationError(
                f"{location}: expected {what} of text, got {medium} with it ({name!r}); {_TEXT_ONLY}"
            )


def _tools(location: str, tools: Any) -> list[Any] | None:
    """Return the tools of a row, which some data sets store as JSON text."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(
                f"{location}: expected 'tools' as a list or as JSON of one, got text that is not JSON ({error}); "
                "correct the row or leave it out"
            ) from None
    if not tools or (isinstance(tools, str) and not tools.strip()):
        return None
    if not isinstance(tools, list):
        raise CalibrationError(
            f"{location}: expected 'tools' as a list, got {type(tools).__name__}; correct the row or leave it out"
        )
    return tools


def _quoted(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
