"""Conversations that are made up: what each says, to the letter, and what holds for all of them."""

import ast
import hashlib
import importlib
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from random import Random

import pytest

from nanochat.inference.calculator import calculate
from nanochat.tasks.arithmetic import Arithmetic
from nanochat.tasks.identity import TEXTS, Identity
from nanochat.tasks.pydocs_qa import PyDocsQA, described, first_sentences, library
from nanochat.tasks.spelling import QUESTIONS, SimpleSpelling, SpellingBee

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "dglmnprt"] + [
    "strawberry",
    "banana",
]
ME = {
    "model_name": "Pip",
    "maker": "Ada",
    "purpose": "answer questions",
    "facts": {"favourite colour": "dark blue"},
}


@pytest.fixture
def words(tmp_path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return str(path)


def made(kind, words, **more):
    own = {Identity: ME, SpellingBee: {"path": words}, SimpleSpelling: {"path": words}}.get(
        kind, {}
    )
    return kind(**{"size": 400, **own, **more})


KINDS = [Arithmetic, Identity, PyDocsQA, SimpleSpelling, SpellingBee]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_conversation_obeys_the_rules_and_scores_itself(kind, split, words, rules):
    task = made(kind, words, split=split)
    assert len(task) == 400
    for i in range(400):
        conversation = task[i]
        assert rules(conversation) == [], (i, conversation)
        content = conversation["messages"][-1]["content"]
        said = content if isinstance(content, str) else " ".join(part["text"] for part in content)
        if task.kind == "answer" and (kind is not Identity or "answer" in conversation):
            assert task.score(conversation, said) == 1.0, conversation
            assert task.score(conversation, "") == task.score(conversation, "I do not know.") == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_a_function_of_settings_and_index(kind, words):
    task = made(kind, words, start=5, step=3)
    backwards = [task[i] for i in reversed(range(len(task)))][::-1]
    other = pickle.loads(pickle.dumps(made(kind, words, start=5, step=3)))
    assert [other[i] for i in range(len(other))] == backwards
    longer = made(kind, words, size=500)
    assert [longer[i] for i in range(5, 400, 3)] == backwards, "size only adds at the end"
    assert json.loads(json.dumps(task.settings())) == task.settings() == other.settings()
    assert made(kind, words, split="test").settings() != made(kind, words).settings()


@pytest.mark.slow
def test_another_process_makes_the_same(words, tmp_path):
    """With another hash seed, too: nothing depends on the order of a set."""
    tasks = [made(kind, words, size=20) for kind in KINDS]
    file = tmp_path / "tasks.pickle"
    file.write_bytes(pickle.dumps(tasks))
    code = (
        f"import json, pickle; tasks = pickle.load(open({str(file)!r}, 'rb'));"
        "print(json.dumps([[list(t[i] for i in range(len(t))), t.settings()] for t in tasks]))"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "5"}
    )
    assert json.loads(done.stdout) == [[[t[i] for i in range(len(t))], t.settings()] for t in tasks]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"size": 0}, "size=0 must be a whole number from 1 up"),
        ({"size": 10_000_001}, "size=10000001 is above 10,000,000"),
        ({"split": "val"}, "split=val is not known; set `split` to train or test"),
    ],
)
def test_wrong_sizes_and_splits(kind, wrong, line, words):
    with pytest.raises(ValueError, match=line):
        made(kind, words, **wrong)


@pytest.mark.parametrize("kind", [Arithmetic, SpellingBee])
def test_the_tool_says_what_the_conversation_says_it_says(kind, words):
    for split in ("train", "test"):
        task = made(kind, words, split=split)
        for i in range(400):
            parts = task[i]["messages"][1]["content"]
            (call,), (result,) = (
                [p["text"] for p in parts if p["type"] == t] for t in ("python", "python_output")
            )
            assert calculate(call) == result, call


# ---- spelling


def test_simple_spelling_by_hand(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("apple\n")
    task = SimpleSpelling(size=2, path=path, held_out=0)
    assert task[1] == {
        "messages": [
            {"role": "user", "content": "Spell the word: apple"},
            {"role": "assistant", "content": "apple:a,p,p,l,e"},
        ]
    }
    assert task.score(task[1], " apple:a,p,p,l,e\n") == 1.0
    assert task.score(task[1], "apple:a,p,l,e") == task.score(task[1], "apple:a,p,p,l,e.") == 0.0


def test_spelling_bee_by_hand(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("egg\n")
    task = SpellingBee(size=200, path=path, held_out=0)
    chosen = next(
        c for c in (task[i] for i in range(200)) if "'g'" in c["messages"][1]["content"][0]["text"]
    )
    assert chosen["messages"][1]["content"] == [
        {
            "type": "text",
            "text": "I count the letter 'g' in the word 'egg'.\n\nSpelled out:\negg:e,g,g\n\n"
            "1:e\n2:g hit! count=1\n3:g hit! count=2\n\nBy hand I find 2. I check it with "
            "Python:\n\n",
        },
        {"type": "python", "text": "'egg'.count('g')"},
        {"type": "python_output", "text": "2"},
        {"type": "text", "text": "\n\nPython also finds 2.\n\n#### 2"},
    ]
    assert task.score(chosen, "#### 2") == 1.0
    assert [task.score(chosen, said) for said in ("#### 3", "2", "#### 2.", "####2")] == [0.0] * 4


@pytest.mark.parametrize(("split", "seeds"), [("train", 0), ("test", 10_000_000)])
def test_spelling_draws_as_the_facts_sheet_says(words, split, seeds):
    """Seed i, or 10,000,000 + i; word, letter, template, lower case, quotes, question mark, in that
    order."""
    shuffled = list(WORDS)
    Random(42).shuffle(shuffled)
    bee, simple = (
        made(kind, words, split=split, held_out=0) for kind in (SpellingBee, SimpleSpelling)
    )
    for i in range(400):
        draw = Random(seeds + i)
        word = draw.choice(WORDS)
        letter = (
            draw.choice(word) if draw.random() < 0.9 else draw.choice("abcdefghijklmnopqrstuvwxyz")
        )
        template = draw.choice(QUESTIONS)
        template = template.lower() if draw.random() < 0.3 else template
        a, b = draw.choice(["", "'", '"']), draw.choice(["", "'", '"'])
        asked = template.format(letter=a + letter + a, word=b + word + b) + (
            "?" if draw.random() < 0.5 else ""
        )
        assert bee[i]["messages"][0]["content"] == asked
        assert (
            simple[i]["messages"][0]["content"]
            == f"Spell the word: {Random(seeds + i).choice(shuffled)}"
        )


def test_spelling_templates_are_as_many_as_the_original_has():
    assert len(QUESTIONS) == len(set(QUESTIONS)) == 51
    assert sum(q.isascii() and re.search(r"[A-Z]|:", q) is not None for q in QUESTIONS) >= 30
    assert all(
        q.count("{letter}") == 1 and q.count("{word}") == 1 and not q.endswith("?")
        for q in QUESTIONS
    )


def word_of(conversation) -> str:
    content = conversation["messages"][1]["content"]
    text = (
        content if isinstance(content, str) else content[0]["text"].partition("Spelled out:\n")[2]
    )
    return text.partition(":")[0]


@pytest.mark.parametrize("kind", [SimpleSpelling, SpellingBee])
def test_words_of_the_test_split_are_never_trained_on(kind, words):
    tasks = [made(kind, words, size=3000, split=split) for split in ("train", "test")]
    train, test = ({word_of(task[i]) for i in range(3000)} for task in tasks)
    assert not train & test and train | test == set(WORDS)
    assert 0.05 < len(test) / len(WORDS) < 0.15, "about a tenth"
    train, test = (set(made(kind, words, split=s, held_out=0).words) for s in ("train", "test"))
    assert train == test == set(WORDS), "as nanochat does"


def test_word_lists_that_cannot_be_used(tmp_path):
    for text, line in (
        ("a\ndon't\n", r"words\.txt line 2: \"don't\" is not a word of letters only"),
        ("\n\n", r"words\.txt holds no words"),
        ("zebra\n", "none of the 1 words belongs to the test split at held_out=0.1"),
    ):
        (tmp_path / "words.txt").write_text(text)
        with pytest.raises(ValueError, match=line):
            SpellingBee(size=1, split="test", path=tmp_path / "words.txt")[0]
    with pytest.raises(
        FileNotFoundError, match=r"path=.*no\.txt is not a file; set `path` of spelling_bee"
    ):
        SpellingBee(size=1, path=tmp_path / "no.txt")[0]
    with pytest.raises(FileNotFoundError, match="spelling_bee needs a list of words; set `path`"):
        SpellingBee(size=1)[0]
    for share in (-0.1, 1, "x"):
        with pytest.raises(
            ValueError, match=f"held_out={share} must be between 0 and 1, or 0 to share everything"
        ):
            SpellingBee(size=1, held_out=share)


def test_words_of_the_mirror(mirror):
    task = SpellingBee(size=10)
    assert len(task.all_words) == 58_345 and task.all_words[0] == "a"
    assert 0.095 < len(SpellingBee(size=10, split="test").words) / 58_345 < 0.105
    assert task.settings()["words"] == SimpleSpelling(size=10).settings()["words"]


def test_words_of_the_documentation_of_python():
    task = SimpleSpelling(size=10, path="library")
    assert {"argument", "list", "return", "value"} <= set(task.all_words) and 4000 < len(
        task.all_words
    ) < 8000
    assert all(
        re.fullmatch("[a-z]{3,12}", word) for word in task.all_words
    ) and task.all_words == sorted(task.all_words)
    assert word_of(task[3]) in task.words


# ---- arithmetic


def problem_of(conversation) -> tuple[str, str, str]:
    a, operator, b = re.fullmatch(
        r"(\d+)([-+*/])(\d+)=", conversation["messages"][1]["content"][0]["text"]
    ).groups()
    return a, operator, b


def test_arithmetic_by_hand():
    task = Arithmetic(size=2000)
    chosen = next(c for c in (task[i] for i in range(2000)) if "/" in problem_of(c))
    a, _, b = problem_of(chosen)
    assert chosen["messages"][1]["content"] == [
        {"type": "text", "text": f"{a}/{b}="},
        {"type": "python", "text": f"{a}//{b}"},
        {"type": "python_output", "text": str(int(a) // int(b))},
        {"type": "text", "text": f"{int(a) // int(b)}."},
    ]
    assert int(a) % int(b) == 0, "every division comes out even"


def test_arithmetic_is_right_and_asked_in_many_ways():
    task, seen = Arithmetic(size=4000), set()
    for i in range(4000):
        conversation = task[i]
        a, operator, b = problem_of(conversation)
        assert conversation["answer"] == str(eval(f"{a}{operator if operator != '/' else '//'}{b}"))
        question = conversation["messages"][0]["content"]
        assert set(re.findall(r"\d+", question)) == {a, b}, (
            "the question holds the operands and no other number"
        )
        assert max(len(a), len(b)) <= 3
        seen.add((operator, re.sub(r"\d+", "#", question)))
    assert {op for op, _ in seen} == set("+-*/") and len(seen) > 150


def test_no_problem_is_trained_on_and_tested():
    def problems(split):
        found = set()
        task = Arithmetic(size=3000, split=split, digits=2)
        for i in range(3000):
            a, operator, b = problem_of(task[i])
            found |= {(a, operator, b)} | ({(b, operator, a)} if operator in "+*" else set())
        return found

    train, test = problems("train"), problems("test")
    assert not train & test and len(test) > 300


def test_arithmetic_difficulty():
    task = Arithmetic(size=300, digits=5, operators="-")
    problems = [problem_of(task[i]) for i in range(300)]
    assert {operator for _, operator, _ in problems} == {"-"}
    assert {len(a) for a, _, _ in problems} == {1, 2, 3, 4, 5}
    assert Arithmetic(size=300, digits=5, operators=["-"]).settings() == task.settings()
    for wrong, line in (
        ({"digits": 0}, "digits=0 must be a whole number from 1 to 9"),
        ({"operators": "+%"}, r"operators=\+% must be some of \+ - \* /"),
        ({"operators": ""}, "operators= must be some of"),
        ({"operators": "++"}, r"operators=\+\+ must be some of"),
        ({"held_out": 0}, "held_out=0 must be between 0 and 1; try held_out: 0.1"),
    ):
        with pytest.raises(ValueError, match=line):
            Arithmetic(size=1, **wrong)
    with pytest.raises(ValueError, match=r"too few problems with digits=1 .* raise digits"):
        Arithmetic(size=1, digits=1, operators="-", held_out=1e-9, split="test")[0]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("600*2=<|python_start|>600*2<|python_end|><|output_start|>1200<|output_end|>1200.", 1.0),
        ("1200", 1.0),
        ("The answer is 1,200.", 1.0),
        ("It is 1200.0, I think", 1.0),
        ("600 * 2 = 1201.", 0.0),
        ("1200 or 1300", 0.0),
        ("-1200", 0.0),
        ("600*2-1200", 1.0),  # a minus after a digit is an operator
        ("12 00", 0.0),
        ("1200.5", 0.0),
        ("twelve hundred", 0.0),
        ("", 0.0),
        ("-", 0.0),
    ],
)
def test_arithmetic_scores_the_last_number(completion, right):
    assert Arithmetic(size=1).score({"answer": "1200"}, completion) == right


def test_arithmetic_scores_negative_numbers():
    task = Arithmetic(size=1)
    assert task.score({"answer": "-38"}, "4 - 42 = -38.") == 1.0
    assert task.score({"answer": "-38"}, "4 - 42 = 38.") == 0.0


# ---- Python's documentation


def test_an_answer_is_the_first_sentence_of_a_docstring():
    assert (
        first_sentences("math.sqrt", "Return the square root of x.")
        == "Return the square root of x."
    )
    assert (
        first_sentences("m.f", "f(a, b=1) -> int\n\nReturn the sum of *a*\nand b.\n\nMore here.")
        == "Return the sum of *a* and b."
    )
    assert first_sentences("m.f", "m.f(a)\n   does :func:`~x.g` and ``h``") == "Does x.g and `h`."
    assert (
        first_sentences("m.f", "One thing here. Another thing. A third thing.")
        == "One thing here. Another thing."
    )
    assert first_sentences("m.f", "One thing here. Another thing:") == "One thing here."
    for useless in ("", "Short.", "See below:", "f(x) -> y", "x " * 200, ">>> f(1) is an example."):
        assert first_sentences("m.f", useless) == "", useless


def test_what_a_source_file_says():
    source = (
        '"""What this module is for."""\nclass A:\n    """A kind of a thing."""\n    def '
        'f(self):\n        """Not asked about."""\n'
    )
    source += (
        'def g():\n    """Return a good thing."""\ndef _h():\n    """Return a hidden '
        'thing."""\ndef bare(): pass\n'
    )
    assert [tuple(entry) for entry in described("m", source)] == [
        ("module", "m", "What this module is for."),
        ("class", "m.A", "A kind of a thing."),
        ("function", "m.g", "Return a good thing."),
    ]
    assert list(described("m", "not python {{")) == []


@pytest.mark.parametrize(
    "module", ["copy", "doctest", "functools", "inspect", "json.decoder", "operator", "typing"]
)
def test_parsing_heads_finds_what_parsing_all_of_it_finds(module):
    source = inspect.getsource(importlib.import_module(module))
    tree = ast.parse(source)
    nodes = [(module, tree)]
    for node in tree.body:
        if (
            isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name[0] != "_"
        ):
            nodes.append((f"{module}.{node.name}", node))
    said = [(name, first_sentences(name, ast.get_docstring(node) or "")) for name, node in nodes]
    assert (
        [(entry.name, entry.text) for entry in described(module, source)]
        == [(n, t) for n, t in said if t]
        != []
    )


def test_the_library_is_there_and_clean():
    entries = {entry.name: entry for entry in library()}
    assert 1000 < len(entries) < 5000
    assert entries["len"].text == "Return the number of items in a container."
    assert entries["math.sqrt"].text == "Return the square root of x."
    assert entries["shutil.copy"].kind == "function" and "Copy data" in entries["shutil.copy"].text
    assert entries["json.decoder.JSONDecoder"].kind == "class" and entries["heapq"].kind == "module"
    for entry in entries.values():
        assert (
            15 <= len(entry.text) <= 160 and "\n" not in entry.text and entry.text.endswith(".")
        ), entry
        assert not entry.name.rpartition(".")[2].startswith("_")


def test_names_of_the_test_split_are_never_asked_in_training():
    train, test = PyDocsQA(size=9000), PyDocsQA(size=9000, split="test")
    names = [{task[i]["about"] for i in range(len(task))} for task in (train, test)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == len(library()), (
        "all are asked about"
    )
    assert 0.07 < len(names[1]) / len(library()) < 0.13
    first = train[0]
    assert first["about"] in first["messages"][0]["content"]
    others = [
        train[i] for i in range(len(train.entries), 9000) if train[i]["about"] == first["about"]
    ]
    assert others and {c["messages"][1]["content"] for c in others} == {
        first["messages"][1]["content"]
    }
    with pytest.raises(ValueError, match="is chat"):
        train.score(first, "x")


# ---- identity


def asked(task) -> set[str]:
    """All questions of a task without case, punctuation, and the words that link one to the one
    before."""
    found = set()
    for i in range(len(task)):
        for message in task[i]["messages"]:
            if message["role"] == "user":
                text = re.sub(r"^(And|Thanks\.|I see\.|Nice\.) ", "", message["content"])
                found.add(re.sub(r"[\W_]+", " ", text.lower()).strip())
    return found


GREETINGS = {"hi", "hello", "hey", "good morning", "good evening", "hello there", "hi there"}


def test_wordings_of_the_test_split_are_never_trained_on():
    train, test = (asked(Identity(size=6000, split=s, **ME)) for s in ("train", "test"))
    assert train & test == GREETINGS
    assert len(train) > 200 and len(test) > 40


def test_identity_asks_in_many_wordings_and_languages():
    languages = TEXTS["languages"]
    english = [q for topic in languages["en"].values() for q in topic["questions"]]
    assert len(english) == len(set(english)) >= 100
    assert set(languages) == {"en", "es", "fr", "de", "zh", "ko"}
    for topics in languages.values():
        for topic in topics.values():
            assert len(topic["questions"]) % 5 == 0, "each fifth is for testing"
            assert all("{" + topic["asks"] + "}" in reply for reply in topic["replies"]), (
                "a reply holds the answer"
            )


def test_identity_makes_the_conversations_that_runs_were_trained_on():
    """The hash is that of the conversations before their texts became a file."""
    found = hashlib.sha256()
    for split in ("train", "test"):
        for facts in ({}, {"favourite colour": "blue", "size": "small"}):
            words = {
                "model_name": "nanochat",
                "maker": "Little Model Lab",
                "purpose": "answer questions and chat",
            }
            task = Identity(size=3000, split=split, facts=facts, **words)
            for i in range(3000):
                found.update(json.dumps(task[i], ensure_ascii=False).encode())
    assert found.hexdigest() == "ca1b87f7498be11ce5ff9ca277fb9a974c57fca0626c40f393d2ebdadc42f5e3"


def test_identity_says_what_was_set():
    task = Identity(size=3000, **ME)
    replies = [
        m["content"] for i in range(3000) for m in task[i]["messages"] if m["role"] == "assistant"
    ]
    for said in (
        "My name is Pip.",
        "I was made by Ada.",
        "Ada made me.",
        "I am here to answer questions.",
        "My favourite colour is dark blue.",
        "No, I am Pip, a language model.",
        "Me llamo Pip.",
    ):
        assert said in replies
    assert not any(re.search(r"[{}]", reply) for reply in replies)
    assert max(len(task[i]["messages"]) for i in range(3000)) == 6, "a greeting and two questions"
    plain = Identity(size=1000, **{**ME, "facts": None})
    assert not any("favourite" in json.dumps(plain[i]) for i in range(1000))


def test_identity_scores_the_asked_fact():
    task = Identity(size=500, split="test", **ME)
    kinds = {task[i]["answer"] for i in range(500)}
    assert kinds == {"Pip", "Ada", "answer questions", "dark blue"}
    assert (
        task.score({"answer": "Pip"}, "i am PIP!")
        == task.score({"answer": "answer questions"}, "To Answer Questions")
        == 1.0
    )
    assert (
        task.score({"answer": "Pip"}, "I was made by Ada.")
        == task.score({"answer": "Ada"}, "")
        == 0.0
    )
    train = Identity(size=200, **ME)
    talk = next(c for c in (train[i] for i in range(200)) if "answer" not in c)
    with pytest.raises(
        ValueError, match="identity: this conversation asks for nothing; score the test split"
    ):
        train.score(talk, "Hello!")


def test_identity_needs_its_words():
    for key in ("model_name", "maker", "purpose"):
        with pytest.raises(ValueError, match=f"{key}=' ' of identity must be text"):
            Identity(size=1, **{**ME, key: " "})
    with pytest.raises(ValueError, match="age=3 of identity must be text"):
        Identity(size=1, **{**ME, "facts": {"age": 3}})
