"""Calls of a client's functions, by the special tokens of the calculator.

A call and its result have the form of the calculator's:
`<|python_start|>{"name":"add","arguments":{"a":1}}<|python_end|><|output_start|>2<|output_end|>`,
all within one turn of the assistant. A JSON object is no calculation, so the two cannot be
confused. The functions are listed at the end of the system message, one per line. A required call
begins with <|python_start|> in the prompt and is decoded by the functions' schemas; a call that the
model opens by itself is, from its first character `{` on.
"""

import re
import uuid
from typing import Any

from nanochat.inference.constrained import calls_grammar, compiled, json_grammar
from nanochat.serve.api.messages import ChatMessage, Function, Tool
from nanochat.serve.api.requests import ChatRequest, SchemaFormat
from nanochat.tokenizer.tokenizer import Tokenizer

BEGINNING = '{"name":"'
OPENED = re.compile(r'\{"name":"([\w-]+)","arguments":')


# --- what is asked ---


def grammars(asked: ChatRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """Sampling settings that force the requested form of the answer. ValueError for an unsupported
    schema. Compiling it may take seconds."""
    if asked.wants_json:
        given = (
            asked.response_format.json_schema
            if isinstance(asked.response_format, SchemaFormat)
            else None
        )
        schema = (given and given.schema_) or {"type": "object"}
        grammar = json_grammar(schema, lenient=not (given and given.strict))
        return {"grammar": _checked(tokenizer, grammar, "response_format.json_schema")}
    functions = [tool.function for tool in asked.tools or []]
    if not functions or asked.choice == "none":
        return {}
    if asked.forced and asked.choice != "required":
        functions = [function for function in functions if function.name == asked.choice]
    for function in functions:
        _checked(tokenizer, _grammar([function]), f"tools: {function.name}")
    return {
        "grammar" if asked.forced else "calls": _checked(tokenizer, _grammar(functions), "tools")
    }


def _grammar(functions: list[Function]) -> str:
    schemas = {
        f.name: {"type": "object", "properties": {}} | (f.parameters or {}) for f in functions
    }
    return calls_grammar(schemas, lenient=tuple(f.name for f in functions if not f.strict))


def _checked(tokenizer: Tokenizer, grammar: str, what: str) -> str:
    try:
        compiled(tokenizer, grammar)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return grammar


def as_turns(messages: list[ChatMessage], tools: list[Tool] | None = None) -> list[dict[str, Any]]:
    """Messages as the tokenizer takes them: system messages at the beginning are one, and messages
    of the user in a row, with an empty line between them; messages of the assistant in a row, with
    results of calls among them, are one. ValueError for a call without a result and a result
    without a call."""
    found: list[dict[str, Any]] = []
    calls: dict[str, dict[str, str]] = {}  # id -> the part of a call that has no result yet
    for number, message in enumerate(messages):
        new, last = message.as_project(), found[-1] if found else None
        if message.role == "tool":
            call = calls.pop(message.tool_call_id or "", None)
            if call is None:
                raise ValueError(
                    f"messages.{number}: there is no call {message.tool_call_id!r} before it that "
                    "has no result yet"
                )
            parts = found[-1]["content"]
            where = next(i for i, part in enumerate(parts) if part is call)
            parts.insert(where + 1, {"type": "python_output", "text": new["content"]})
            continue
        if calls:
            raise ValueError(
                f"messages.{number}: a message of the role tool must answer the call "
                f"{next(iter(calls))!r} first"
            )
        if new["role"] == "assistant":
            parts = _parts(message, new["content"], calls, number)
            if last is not None and last["role"] == "assistant":
                last["content"] += parts
            else:
                found.append({"role": "assistant", "content": parts})
        elif (
            last is not None and last["role"] == new["role"] and new["content"] and last["content"]
        ):
            last["content"] += "\n\n" + new["content"]
        else:
            found.append(new)
    if calls:
        raise ValueError(f"a message of the role tool must answer the call {next(iter(calls))!r}")
    for new in found:
        if isinstance(new["content"], list) and all(
            part["type"] == "text" for part in new["content"]
        ):
            new["content"] = "".join(part["text"] for part in new["content"])
    if tools:
        _offer(tools, found)
    return found


def _parts(
    message: ChatMessage, content: Any, calls: dict[str, dict[str, str]], number: int
) -> list[dict[str, str]]:
    """The parts of a message of the assistant, its calls among them; these are added to `calls`."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    parts = [part for part in parts if part["text"]]
    for asked in message.tool_calls or []:
        if asked.id in calls:
            raise ValueError(f"messages.{number}: two calls have the id {asked.id!r}")
        text = f'{{"name":"{asked.function.name}","arguments":{asked.function.arguments}}}'
        calls[asked.id] = {"type": "python", "text": text}
        parts.append(calls[asked.id])
    return parts


def _offer(tools: list[Tool], turns: list[dict[str, Any]]) -> None:
    """Describe the functions in the system message, or in a new one."""
    lines = [_described(tool.function) for tool in tools]
    offered = "\n".join(["You can call these functions:", *lines])
    if turns and turns[0]["role"] == "system":
        turns[0]["content"] = f"{turns[0]['content']}\n\n{offered}".strip()
    else:
        turns.insert(0, {"role": "system", "content": offered})


def _described(function: Function) -> str:
    """One line: a small context has no room for a schema.

    >>> schema = {"properties": {"a": {"type": "integer"}, "b": {}}}
    >>> _described(Function(name="add", description="Adds two numbers.", parameters=schema))
    'add(a: integer, b): Adds two numbers.'
    """
    properties = (function.parameters or {}).get("properties")
    arguments = []
    for name, schema in properties.items() if isinstance(properties, dict) else []:
        kind = schema.get("type") if isinstance(schema, dict) else None
        arguments.append(f"{name}: {kind}" if isinstance(kind, str) else name)
    about = " ".join((function.description or "").split())
    return f"{function.name}({', '.join(arguments)})" + (f": {about}" if about else "")


# --- what is answered ---


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def called(text: str, *, whole: bool) -> dict[str, Any] | None:
    """The tool call that this JSON describes, in the form of a message; None if it is no call. JSON
    that is not `whole` was cut off."""
    found = OPENED.match(text)
    if found is None:
        return None
    arguments = text[found.end() : -1] if whole else text[found.end() :]
    return {
        "id": call_id(),
        "type": "function",
        "function": {"name": found[1], "arguments": arguments},
    }


class CallStream:
    """Turns the JSON of a call, piece by piece, into deltas of a stream. A python part that is no
    call is returned as text."""

    def __init__(self) -> None:
        self.held = ""
        self.opened = False
        self.refused = False

    def feed(self, text: str) -> tuple[list[dict[str, Any]], str]:
        """Deltas of the call, and the text that belongs to no call."""
        if self.refused:
            return [], text
        self.held += text
        deltas = []
        if not self.opened:
            if not (self.held.startswith(BEGINNING) or BEGINNING.startswith(self.held)):
                self.refused = True
                return [], self.rest()
            found = OPENED.match(self.held)
            if found is None:
                return [], ""
            self.opened, self.held = True, self.held[found.end() :]
            function = {"name": found[1], "arguments": ""}
            deltas.append({"index": 0, "id": call_id(), "type": "function", "function": function})
        # the last sign may be the one that ends the call
        arguments, self.held = (self.held[:-1], self.held[-1:])
        if arguments:
            deltas.append({"index": 0, "function": {"arguments": arguments}})
        return deltas, ""

    def rest(self) -> str:
        """The text that is still held when a part ends without being a call."""
        text, self.held = "" if self.opened else self.held, ""
        return text

    def cut(self) -> list[dict[str, Any]]:
        """The last delta of a call that was cut off: its last character belonged to the
        arguments."""
        return (
            [{"index": 0, "function": {"arguments": self.held}}]
            if self.opened and self.held
            else []
        )
