"""Answers that a grammar allows: random networks, whose answers pydantic reads as strictly as the
schema says."""

import math
from typing import Annotated, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from tiny_networks import SPECIAL, TOKENIZER, random_gpt

from nanochat.inference.constrained import Constraint, calls_grammar, compiled, json_grammar
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.tokenizer.tokenizer import CharTokenizer

PROMPT = [TOKENIZER.bos_id, *b"abc"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Tag(Strict):
    text: str
    weight: float


class Person(Strict):
    name: str
    age: int
    kind: Literal["cat", "dog", "doge"]
    tags: Annotated[list[Tag], Field(min_length=1)]
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3}$")]
    more: Tag | None = None


SCHEMAS = {
    "model": (Person, 120),
    "list": (list[list[int]], 20),
    "union": (dict[str, bool] | list[str], 12),
    "number": (float, 6),
    "text": (Annotated[str, Field(min_length=3)], 9),
    "choice": (Literal["no", "not", "nothing"], 9),
}


@pytest.fixture(scope="module")
def gpt():
    return random_gpt(std=0.15, sequence_len=200)


def written(gpt, *samplings: Sampling, looks_ahead: bool = False):
    engine = Engine(gpt, TOKENIZER)
    engine.looks_ahead = looks_ahead
    requests = [engine.submit(PROMPT, sampling) for sampling in samplings]
    while not all(request.done for request in requests):
        engine.step()
    return [request.completions[0] for request in requests]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_by_the_schema_and_whole_however_few_tokens_are_left(gpt, name):
    kind, least = SCHEMAS[name]
    adapter = TypeAdapter(kind)
    grammar = json_grammar(adapter.json_schema())
    samplings = [
        Sampling(max_tokens=most, seed=seed, temperature=temperature, grammar=grammar)
        for most in (least, least + 7, 180)
        for seed in range(3)
        for temperature in (0.0, 1.0, 2.0)
    ]
    answers = written(gpt, *samplings)
    for sampling, answer in zip(samplings, answers, strict=True):
        adapter.validate_json(answer.text, strict=True)
        assert answer.finish_reason == "stop" and len(answer.ids) <= sampling.max_tokens
        assert max(answer.ids) < min(SPECIAL.values()) and answer.end_id in (
            None,
            SPECIAL["<|assistant_end|>"],
        )
    assert written(gpt, *samplings, looks_ahead=True) == answers


def test_too_few_tokens_for_any_answer_is_a_length(gpt):
    (answer,) = written(
        gpt, Sampling(max_tokens=5, grammar=json_grammar(TypeAdapter(Person).json_schema()))
    )
    assert answer.finish_reason == "length" and len(answer.ids) == 5


@torch.no_grad()
def test_logprobs_are_of_what_the_grammar_leaves(gpt):
    grammar = json_grammar({"enum": ["ab", "ax", "b"]})
    (answer,) = written(gpt, Sampling(max_tokens=9, seed=2, grammar=grammar, top_logprobs=5))
    logits = gpt(torch.tensor([[*PROMPT, ord('"')]]))[0, -1]
    left = logits[[ord("a"), ord("b")]].log_softmax(0)
    # nothing but a quotation mark may begin it
    assert answer.logprobs[0] == pytest.approx(0, abs=1e-6)
    assert answer.logprobs[1] == pytest.approx(
        float(left["ab".index(chr(answer.ids[1]))]), abs=1e-4
    )
    assert {token for token, _ in answer.top_logprobs[1]} == set(b"ab")
    assert math.isclose(
        sum(math.exp(value) for _, value in answer.top_logprobs[1]), 1, abs_tol=1e-5
    )


def test_others_beside_it_are_what_they_are_alone(gpt):
    plain = Sampling(max_tokens=30, seed=4)
    beside = Sampling(max_tokens=60, seed=5, grammar=json_grammar({"type": "object"}))
    assert written(gpt, beside, plain, beside)[1].ids == written(gpt, plain)[0].ids


def test_a_call_is_one_of_the_functions_with_its_own_definitions(gpt):
    found = {"X": {"type": "integer"}}
    functions = {
        "add": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/X"}},
            "required": ["a"],
            "$defs": found,
        },
        "tell": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/X"}},
            "required": ["a"],
            "$defs": {"X": {"type": "boolean"}},
        },
    }
    texts = [
        a.text
        for a in written(
            gpt,
            *(Sampling(seed=s, max_tokens=60, grammar=calls_grammar(functions)) for s in range(12)),
        )
    ]

    class Add(Strict):
        name: Literal["add"]
        arguments: dict[Literal["a"], int]

    class Tell(Strict):
        name: Literal["tell"]
        arguments: dict[Literal["a"], bool]

    kinds = {type(TypeAdapter(Add | Tell).validate_json(text, strict=True)) for text in texts}
    assert kinds == {Add, Tell}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"$ref": "#/nowhere"}, "'/nowhere' does not exist"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
    ],
)
def test_what_cannot_be_kept_to_is_named(schema, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        compiled(TOKENIZER, json_grammar(schema))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_keywords_that_are_not_known_are_left_out_where_that_is_allowed():
    compiled(TOKENIZER, json_grammar({"type": "array", "uniqueItems": True}, lenient=True))


def test_a_tokenizer_of_characters_is_refused():
    with pytest.raises(ValueError, match="needs a tokenizer of bytes"):
        Constraint.of(CharTokenizer("abc"), json_grammar({}))
