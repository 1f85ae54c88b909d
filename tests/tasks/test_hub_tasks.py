"""Tasks over rows of a hub data set: byte for byte on rows written here, and as they come in the
mirror of the real ones."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nanochat.tasks.arc import ARC
from nanochat.tasks.gsm8k import GSM8K, marked, parts
from nanochat.tasks.humaneval import HumanEval, code, imports
from nanochat.tasks.messages import Messages
from nanochat.tasks.mmlu import MMLU
from nanochat.tasks.openbookqa import OpenBookQA
from nanochat.tokenizer.conversations import BadConversation

CLIPS = {
    "question": (
        "Natalia sold clips to 48 friends in April and half as many in May. How many in all?"
    ),
    "answer": (
        "In May she sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72"
    ),
}


def test_gsm8k_conversation_by_hand(small_mirror):
    small_mirror("openai/gsm8k", [CLIPS], subset="main")
    assert GSM8K()[0] == {
        "messages": [
            {"role": "user", "content": CLIPS["question"]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "In May she sold 48/2 = "},
                    {"type": "python", "text": "48/2"},
                    {"type": "python_output", "text": "24"},
                    {"type": "text", "text": "24 clips.\nIn all 48+24 = "},
                    {"type": "python", "text": "48+24"},
                    {"type": "python_output", "text": "72"},
                    {"type": "text", "text": "72 clips.\n#### 72"},
                ],
            },
        ]
    }


def test_gsm8k_calls_at_the_edges():
    assert parts("<<2+2=4>>") == [
        {"type": "text", "text": ""},
        {"type": "python", "text": "2+2"},
        {"type": "python_output", "text": "4"},
        {"type": "text", "text": ""},
    ]
    assert parts("a<<1+1>>b")[1:3] == [
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": ""},
    ]
    assert parts("<<x=1=2>>")[1:3] == [
        {"type": "python", "text": "x=1"},
        {"type": "python_output", "text": "2"},
    ]
    assert parts("a << b") == [{"type": "text", "text": "a << b"}]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("#### 72", 1.0),
        (
            (
                "48+24 = <|python_start|>48+24<|python_end|><|output_start|>72<|output_end|>72 "
                "clips.\n#### 72"
            ),
            1.0,
        ),
        ("#### 7,2", 1.0),  # commas are dropped wherever they stand
        ("#### 72 clips\n#### 5", 1.0),  # the first one counts
        ("#### 5\n#### 72", 0.0),
        ("#### 72.", 0.0),  # strings are compared
        ("#### 72.0", 0.0),
        ("####72", 0.0),
        ("#### -72", 0.0),
        ("#### $72", 0.0),
        ("The answer is 72.", 0.0),
        ("", 0.0),
    ],
)
def test_gsm8k_grader_is_the_strict_one(small_mirror, completion, right):
    small_mirror("openai/gsm8k", [CLIPS], subset="main")
    task = GSM8K()
    assert task.score(task[0], completion) == right


def test_gsm8k_without_a_marked_answer_is_never_right(small_mirror):
    small_mirror("openai/gsm8k", [{"question": "q", "answer": "no mark"}], subset="main")
    task = GSM8K()
    assert task.score(task[0], "no mark") == task.score(task[0], "#### None") == 0.0
    assert marked("#### -1,234.5 x") == "-1234.5" and marked("none") is None


def test_mmlu_prompt_to_the_byte(small_mirror):
    row = {
        "question": "What is 2+2?",
        "subject": "arithmetic",
        "choices": ["3", "4", "5", "6"],
        "answer": 1,
    }
    small_mirror("cais/mmlu", [row], subset="all", split="test")
    assert MMLU(split="test")[0] == {
        "messages": [
            {
                "role": "user",
                "content": "Multiple Choice question: What is 2+2?\n- 3=A\n- 4=B\n- 5=C\n- 6=D\n\n"
                "Respond only with the letter of the correct answer.",
            },
            {"role": "assistant", "content": "B"},
        ],
        "letters": ["A", "B", "C", "D"],
        "subject": "arithmetic",
    }


def test_arc_takes_letters_of_the_row(small_mirror):
    row = {
        "id": "1",
        "question": "Which is hot?",
        "choices": {"text": ["ice", "fire", "snow"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    }
    small_mirror("allenai/ai2_arc", [row], subset="ARC-Easy")
    task = ARC()
    assert task[0] == {
        "messages": [
            {
                "role": "user",
                "content": "Multiple Choice question: Which is hot?\n- ice=1\n- fire=2\n- "
                "snow=3\n\n"
                "Respond only with the letter of the correct answer.",
            },
            {"role": "assistant", "content": "2"},
        ],
        "letters": ["1", "2", "3"],
    }
    scores = {said: task.score(task[0], said) for said in ("2", " 2\n", "2.", "B", "1", "", "2 2")}
    assert scores == {"2": 1.0, " 2\n": 1.0, "2.": 0.0, "B": 0.0, "1": 0.0, "": 0.0, "2 2": 0.0}


def test_openbookqa_prompt_and_an_answer_that_is_no_choice(small_mirror):
    row = {
        "question_stem": "The sun gives",
        "choices": {"text": ["light", "soup"], "label": ["A", "B"]},
        "answerKey": "A",
    }
    small_mirror("allenai/openbookqa", [row], subset="main")
    said = OpenBookQA()[0]["messages"]
    assert said[0]["content"] == (
        "Multiple Choice question: The sun gives\n- light=A\n- soup=B\n\nRespond only with the "
        "letter of the correct answer."
    )
    assert said[1]["content"] == "A"
    small_mirror("allenai/openbookqa", [{**row, "answerKey": "E"}], subset="main", split="test")
    with pytest.raises(
        BadConversation,
        match="row 0 of allenai/openbookqa test: the answer 'E' is not one of 2 choices",
    ):
        OpenBookQA(split="test")[0]


def test_humaneval_conversation_and_score(small_mirror):
    row = {
        "task_id": "0",
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    }
    small_mirror("openai/openai_humaneval", [row], subset="openai_humaneval", split="test")
    task = HumanEval()
    assert task[0] == {
        "messages": [
            {"role": "user", "content": "def one():\n"},
            {"role": "assistant", "content": "def one():\n\n    return 1\n"},
        ],
        "entry_point": "one",
        "test": row["test"],
    }
    answers = [
        "def one():\n\n    return 1\n",
        "Certainly:\n```python\ndef one():\n    return 1\n```\n```python\nnothing of this\n```",
        "def one():\n    return 2",
        "    return 1",  # without the function's head: the question is not part of the program
        "",
    ]
    assert task.scores([task[0]] * 5, answers) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert task.score(task[0], answers[0]) == 1.0


@pytest.mark.parametrize("fence", ["```python  \n", "``` \n", "```python\r\n", "```\n"])
def test_humaneval_the_code_of_a_fence_with_spaces_after_it(fence):
    """As nanochat's extraction: what follows the word python up to the end of the line may be
    white."""
    assert code(f"Here:\n{fence}x = 1\n```\nand that is all") == "x = 1"


def test_humaneval_imports_that_are_indented_or_before_an_indented_comment():
    assert imports("\n\nimport a\n  # d\n  import b\nx\nimport c") == "import a\nimport b"


EARLY = [
    "import os\nos._exit(0)",
    "import sys\nsys.exit()",
    "raise SystemExit(0)",
    "quit()",
    "import atexit, os\natexit.register(os._exit, 0)",
]


@pytest.mark.parametrize("code", EARLY)
def test_humaneval_an_answer_that_ends_before_the_tests_is_wrong(code):
    asked = {
        "messages": [
            {"role": "user", "content": "import math\n"},
            {"role": "assistant", "content": ""},
        ],
        "entry_point": "f",
        "test": "def check(f):\n    assert f() == 1",
    }
    assert HumanEval().score(asked, code) == 0.0
    assert HumanEval().score(asked, code + "\ndef f():\n    return 2") == 0.0
    assert HumanEval().score(asked, "def f():\n    return int(math.cos(0))") == 1.0


@pytest.mark.slow
def test_humaneval_canonical_solutions_are_right_and_others_wrong(mirror):
    task = HumanEval()
    talks = [task[i] for i in range(len(task))]
    right = [talk["messages"][1]["content"] for talk in talks]
    assert task.scores(talks, right) == [1.0] * 164
    assert task.scores(talks[:16], [f"```python\n{text}\n```" for text in right[:16]]) == [1.0] * 16
    nothing = [f"def {talk['entry_point']}(*args):\n    return None" for talk in talks]
    assert task.scores(talks, nothing) == [0.0] * 164


def said(*contents: str, roles=("user", "assistant")) -> list[dict]:
    return [
        {"role": roles[n % 2], "content": text, "extra": None} for n, text in enumerate(contents)
    ]


def test_messages_of_any_column_and_bad_rows_named(small_mirror):
    rows = [
        {"talk": said("a", "b"), "id": 0},
        {"talk": said("c", "d", roles=("user", "user")), "id": 1},
    ]
    small_mirror("me/talks", rows)
    task = Messages(name="talks", dataset="me/talks", column="talk")
    order = list(np.random.default_rng(42).permutation(2))
    good, bad = order.index(0), order.index(1)
    assert task[good] == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    }
    with pytest.raises(BadConversation, match=r"^row 1 of me/talks train: .*take turns"):
        task[bad]
    with pytest.raises(BadConversation, match="column id is not a list of messages"):
        Messages(name="talks", dataset="me/talks", column="id", ignore=["talk"])[0]
    assert task.settings() == pickle.loads(pickle.dumps(task)).settings()


@pytest.mark.parametrize(
    ("task", "error", "line"),
    [
        (
            Messages(name="m", dataset="me/none"),
            FileNotFoundError,
            r"me/none is not in the mirror .*NANOCHAT_HUB_DIR \(paths.hub_dir=",
        ),
        (
            GSM8K(subset="hard"),
            ValueError,
            (
                "subset=hard is not a config of openai/gsm8k in the mirror; set `subset` to one "
                "of: main, other"
            ),
        ),
        (
            GSM8K(subset=None),
            ValueError,
            "subset=None is not a config .* set `subset` to one of: main, other",
        ),
        (
            GSM8K(split="validation"),
            ValueError,
            (
                "split=validation is not in openai/gsm8k main in the mirror; set `split` to one "
                "of: train, test"
            ),
        ),
        (
            Messages(name="m", dataset="openai/gsm8k", subset="main"),
            ValueError,
            (
                "openai/gsm8k train in the mirror has no column messages; its columns are: "
                "question, answer"
            ),
        ),
    ],
)
def test_what_is_missing_is_named_in_one_line(small_mirror, task, error, line):
    for subset, split in (("main", "train"), ("main", "test"), ("other", "test")):
        small_mirror("openai/gsm8k", [CLIPS], subset=subset, split=split)
    with pytest.raises(error, match=line) as caught:
        len(task)
    assert "\n" not in str(caught.value)


def test_a_spoilt_mirror_and_an_unreachable_hub_are_one_line(small_mirror, monkeypatch):
    small_mirror("me/talks", [{"messages": said("a", "b")}])
    (
        Path(sys.modules["os"].environ["NANOCHAT_HUB_DIR"]) / "me/talks/default/train.parquet"
    ).write_bytes(b"spoilt")
    with pytest.raises(
        OSError, match=r"me/talks in the mirror .* cannot be read \(.*\); copy it there again"
    ):
        len(Messages(name="talks", dataset="me/talks"))

    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.delenv("NANOCHAT_HUB_DIR")
    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    monkeypatch.setattr(datasets, "get_dataset_config_names", unreachable)
    line = (
        r"cannot get me/talks from the hub \(no route to host\); go online, or set "
        r"NANOCHAT_HUB_DIR .* with me/talks/"
    )
    with pytest.raises(OSError, match=line):
        len(Messages(name="talks", dataset="me/talks"))


def test_the_order_of_rows_is_that_of_nanochat(small_mirror):
    """Seed 42; the first numbers are written down, so that another generator or seed would show."""
    small_mirror("me/talks", [{"messages": said(f"q{n}", f"a{n}")} for n in range(10)])
    task = Messages(name="talks", dataset="me/talks")
    assert [int(c["messages"][0]["content"][1:]) for c in (task[i] for i in range(10))] == TEN


TEN = [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]  # numpy.random.default_rng(42).permutation(10)

MIRRORED = [
    # task, rows, its first question's beginning
    (GSM8K(), 7473),
    (GSM8K(split="test"), 1319),
    (MMLU(split="test"), 14042),
    (ARC(), 2251),
    (ARC(split="test"), 2376),
    (ARC(name="arc_challenge", subset="ARC-Challenge"), 1119),
    (ARC(name="arc_challenge", subset="ARC-Challenge", split="test"), 1172),
    (OpenBookQA(), 4957),
    (OpenBookQA(split="test"), 500),
    (HumanEval(), 164),
    (
        Messages(
            name="dolly",
            dataset="databricks/databricks-dolly-15k",
            ignore=["instruction", "context", "response"],
        ),
        14213,
    ),
    (Messages(name="oasst", dataset="OpenAssistant/oasst1-en-threads"), 298),
    (Messages(name="self_dialogue", dataset="jfainberg/self_dialogue_corpus"), 22239),
    (
        Messages(
            name="schema_guided", dataset="google-research-datasets/dstc8-schema-guided-dialogue"
        ),
        12174,
    ),
    (Messages(name="topical_chat", dataset="alexa/Topical-Chat"), 1078),
]


@pytest.mark.parametrize(
    ("task", "size"), MIRRORED, ids=[f"{task.name}-{task.split}" for task, _ in MIRRORED]
)
def test_real_rows_in_the_mirror(mirror, rules, task, size):
    """Sizes of the facts sheet and the mirror's README; conversation i is row permutation[i], read
    with pyarrow alone."""
    assert len(task) == size
    (path,) = Path(mirror, task.dataset).glob(f"{task.subset or 'data'}/{task.split}-*.parquet")
    order = np.random.default_rng(42).permutation(size)
    first = {
        "question": "question",
        "question_stem": "question",
        "prompt": "prompt",
        "messages": "messages",
    }
    table = pq.read_table(path)
    column = next(name for name in first if name in table.column_names)
    for i in (0, 1, size - 1):
        raw = table[column][int(order[i])].as_py()
        asked = task[i]["messages"][0]["content"]
        assert (raw[0]["content"] if column == "messages" else raw) in asked
        if task.kind == "choice":
            assert asked.startswith(f"Multiple Choice question: {raw}\n- ")
    for i in range(0, size, max(1, size // 300)):
        assert rules(task[i]) == [], (i, task[i])
        if task.kind == "choice":
            assert task[i]["messages"][-1]["content"] in task[i]["letters"]


def test_the_right_answers_of_the_mirror_score_and_the_next_ones_do_not(mirror):
    for task in (
        GSM8K(split="test"),
        ARC(split="test"),
        OpenBookQA(split="test"),
        MMLU(split="test"),
    ):
        for i in range(50):
            content = task[i]["messages"][-1]["content"]
            own = content if isinstance(content, str) else "".join(part["text"] for part in content)
            assert task.score(task[i], own) == 1.0, (task.name, i)
            assert task.score(task[i], own + "0" if task.kind == "answer" else "Z") == 0.0


@pytest.mark.parametrize(
    ("task", "line"),
    [
        (
            MMLU(),
            (
                "split=auxiliary_train is not in cais/mmlu all in the mirror; set `split` to one "
                "of: test, dev"
            ),
        ),
        (
            ARC(split="validation"),
            (
                "split=validation is not in allenai/ai2_arc ARC-Easy in the mirror; set `split` to "
                "one of: train, test"
            ),
        ),
        (
            GSM8K(subset="socratic"),
            (
                "split=train is not in openai/gsm8k socratic in the mirror; set `split` to one of: "
                "test"
            ),
        ),
    ],
)
def test_splits_the_mirror_lacks(mirror, task, line):
    with pytest.raises(ValueError, match=line):
        len(task)


def test_another_process_sees_the_same(mirror, tmp_path):
    """A task sent to a fresh process, as a loader's worker gets it, makes the same conversations
    and settings."""
    task = GSM8K(split="test", start=3, stop=100, step=7)
    file = tmp_path / "task.pickle"
    file.write_bytes(pickle.dumps(task))
    code = (
        f"import pickle; t = pickle.load(open({str(file)!r}, 'rb')); print([t[i] for i in "
        "range(len(t))], t.settings())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[task[i] for i in range(len(task))]} {task.settings()}"
