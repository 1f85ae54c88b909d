"""Clients as they are, against a server on this machine: `python experiments/serving/clients.py
http://127.0.0.1:8000 MODEL [BASE_MODEL]`.

Each client that is not installed is skipped. Prints a table of what was tried; exit code 1 if
anything failed. What a small model answers is not judged, only that it comes as the protocol has
it: parsed, of the right types, with arguments by the schema.
"""

import asyncio
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

LETTERS_TASK = """\
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: OUTPUT
doc_to_text: "{{question}}"
doc_to_target: "TARGET"
CHOICES
metric_list:
  - metric: METRIC
"""
QUESTION = [{"role": "user", "content": "What is 17 * 23?"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def openai_client(url: str, model: str, base: str) -> dict[str, Callable[[], object]]:
    import openai
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    chat = client.chat.completions

    def chats() -> bool:
        chunks = list(
            chat.create(
                model=model, messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        )
        return (
            bool(chat.create(model=model, messages=QUESTION).choices[0].message.content)
            and chunks[-1].usage is not None
        )

    def parses() -> bool:
        found = (
            chat.parse(model=model, messages=QUESTION, response_format=Person)
            .choices[0]
            .message.parsed
        )
        return isinstance(found, Person)

    def calls() -> bool:
        message = (
            chat.create(model=model, messages=QUESTION, tools=[ADD], tool_choice="required")
            .choices[0]
            .message
        )
        arguments = json.loads(message.tool_calls[0].function.arguments)
        told = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "391"}
        after = chat.create(model=model, messages=[*QUESTION, message, told], tools=[ADD]).choices[
            0
        ]
        return all(isinstance(arguments[name], int) for name in "ab") and after.finish_reason in (
            "stop",
            "tool_calls",
            "length",
        )

    def streams_calls() -> bool:
        with chat.stream(
            model=model, messages=QUESTION, tools=[ADD], tool_choice="required"
        ) as events:
            for _ in events:
                pass
            call = events.get_final_completion().choices[0].message.tool_calls[0]
        return set(json.loads(call.function.arguments)) == {"a", "b"}

    def responds() -> bool:
        with client.responses.stream(model=model, input="What is 17 * 23?") as events:
            streamed = [event.type for event in events][-1]
        parsed = client.responses.parse(model=model, input="Who?", text_format=Person).output_parsed
        return (
            bool(client.responses.create(model=model, input="Hello").id)
            and streamed.startswith("response.")
            and bool(parsed)
        )

    def scores() -> bool:
        told = client.completions.create(
            model=base, prompt="é 😀", max_tokens=1, echo=True, logprobs=5
        ).choices[0]
        return max(told.logprobs.text_offset) <= len(told.text)

    return {
        "chat, streamed with usage": chats,
        "parse: pydantic model": parses,
        "tools, and the result sent back": calls,
        "tools streamed": streams_calls,
        "responses, streamed, parsed": responds,
        "completions, echo, logprobs": scores,
    }


def langchain_openai(url: str, model: str, base: str) -> dict[str, Callable[[], object]]:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    @tool
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    class Person(BaseModel):
        """A person."""

        name: str
        age: int

    llm = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, max_retries=0)

    def structured(method: str) -> Callable[[], object]:
        return lambda: isinstance(
            llm.with_structured_output(Person, method=method).invoke("Who are you?"), Person
        )

    def loop() -> bool:
        asked = [HumanMessage("What is 17 + 23?")]
        called = llm.bind_tools([add], tool_choice="any").invoke(asked)
        call = called.tool_calls[0]
        result = ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])
        return (
            llm.bind_tools([add]).invoke([*asked, called, result]).type == "ai"
            and call["name"] == "add"
        )

    def streams() -> bool:
        whole = None
        for chunk in llm.bind_tools([add], tool_choice="add").stream("What is 17 + 23?"):
            whole = chunk if whole is None else whole + chunk
        return set(whole.tool_calls[0]["args"]) == {"a", "b"}

    return {
        "invoke": lambda: bool(llm.invoke("Who are you?").content),
        "bind_tools, ToolMessage": loop,
        "bind_tools streamed": streams,
        "with_structured_output json_schema": structured("json_schema"),
        "with_structured_output function_calling": structured("function_calling"),
        "with_structured_output json_mode": lambda: (
            llm.with_structured_output(None, method="json_mode").invoke("JSON?") is not None
        ),
        "ainvoke, four at once": lambda: len(asyncio.run(_four(llm))) == 4,
    }


async def _four(llm: object) -> list[object]:
    return await asyncio.gather(*(llm.ainvoke("Who are you?") for _ in range(4)))  # type: ignore[attr-defined]


def litellm(url: str, model: str, base: str) -> dict[str, Callable[[], object]]:
    import litellm as client

    common = {
        "model": f"openai/{model}",
        "api_base": f"{url}/v1",
        "api_key": "none",
        "num_retries": 0,
    }

    def calls() -> bool:
        got = (
            client.completion(messages=QUESTION, tools=[ADD], tool_choice="required", **common)
            .choices[0]
            .message
        )
        return set(json.loads(got.tool_calls[0].function.arguments)) == {"a", "b"}

    def formats() -> bool:
        got = client.completion(
            messages=QUESTION, response_format={"type": "json_object"}, **common
        )
        return isinstance(json.loads(got.choices[0].message.content), dict)

    return {
        "completion": lambda: bool(
            client.completion(messages=QUESTION, **common).choices[0].message.content
        ),
        "streamed": lambda: (
            len(list(client.completion(messages=QUESTION, stream=True, **common))) > 1
        ),
        "tools": calls,
        "response_format": formats,
        "text_completion": lambda: (
            client.text_completion(
                model=f"text-completion-openai/{base}",
                prompt="a",
                max_tokens=4,
                api_base=f"{url}/v1",
                api_key="none",
            )
            .choices[0]
            .text
            is not None
        ),
        "responses": lambda: bool(client.responses(input="Who are you?", **common).id),
    }


def lm_eval(url: str, model: str, base: str) -> dict[str, Callable[[], object]]:
    def run(kind: str, name: str, path: str, task: dict[str, str], *more: str) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.jsonl"
            rows = [
                {"question": f"Spell {word}:", "choices": [word, word[::-1]], "answer": 0}
                for word in ("cat", "dog", "sun")
            ]
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            text = LETTERS_TASK
            for key, value in ({"DATA": str(data)} | task).items():
                text = text.replace(key, value)
            (Path(folder) / "letters.yaml").write_text(text)
            given = [f"base_url={url}{path}", f"model={name}", "num_concurrent=2", "max_retries=1"]
            options = ",".join([*given, *more])
            command = [
                sys.executable,
                "-m",
                "lm_eval",
                "--model",
                kind,
                "--model_args",
                options,
                "--include_path",
                folder,
                "--tasks",
                "letters",
                *(["--apply_chat_template"] if "chat" in kind else []),
            ]
            got = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if "|letters|" not in got.stdout.replace(" ", ""):
                raise RuntimeError(
                    got.stderr.strip().splitlines()[-1] if got.stderr.strip() else got.stdout
                )
            return got.returncode == 0

    scored = {
        "OUTPUT": "multiple_choice",
        "TARGET": "answer",
        "CHOICES": 'doc_to_choice: "choices"',
        "METRIC": "acc",
    }
    written = {
        "OUTPUT": "generate_until",
        "TARGET": "{{choices[0]}}",
        "METRIC": "exact_match",
        "CHOICES": "generation_kwargs: {until: ['.'], max_gen_toks: 16}",
    }
    return {
        "local-completions, loglikelihood": lambda: run(
            "local-completions", base, "/v1/completions", scored, "tokenizer_backend=remote"
        ),
        "local-completions, generate_until": lambda: run(
            "local-completions", base, "/v1/completions", written, "tokenizer_backend=remote"
        ),
        "local-chat-completions, generate_until": lambda: run(
            "local-chat-completions", model, "/v1/chat/completions", written
        ),
    }


def main() -> int:
    url, model = sys.argv[1].rstrip("/"), sys.argv[2]
    base = sys.argv[3] if len(sys.argv) > 3 else model
    failed = 0
    print("| client | tried | outcome |\n|---|---|---|")
    for package, make in {
        "openai": openai_client,
        "langchain_openai": langchain_openai,
        "litellm": litellm,
        "lm_eval": lm_eval,
    }.items():
        if importlib.util.find_spec(package) is None:
            print(f"| {package} | | not installed |")
            continue
        version = importlib.metadata.version(package.replace("_", "-"))
        for what, trial in make(url, model, base).items():
            try:
                outcome = "passed" if trial() else "FAILED: not what it should be"
            except Exception as error:
                outcome = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            failed += outcome != "passed"
            print(f"| {package} {version} | {what} | {outcome} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
