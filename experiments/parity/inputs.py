"""What both sides are given: sizes, weights, batches, plans, conversations, rows of tasks. Imports
neither of the two packages."""

import json
import os
import re
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from golden_eras import PATTERN, SIZES, fixed_weights

__all__ = ["PATTERN", "SIZES", "fixed_weights"]

SIZES = {**SIZES, "n_embd": 128}  # 4 layers, 256 tokens, windows of 128
STEPS, RATE = 8, 0.02  # of plain SGD
WEIGHT_DECAY = 0.2
DEPTHS = (4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34)
ROWS = 300  # of a task, evenly spaced


def batches() -> torch.Tensor:
    """Ids (STEPS, 2, T + 1): inputs and, one to the right, targets."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(
        0, SIZES["vocab_size"], (STEPS, 2, SIZES["sequence_len"] + 1), generator=generator
    )


def schedule(step: int) -> tuple[float, float, float]:
    """Multiplier of every rate, Muon's momentum and weight decay in a step."""
    return (step + 1) / 40, 0.85 + 0.01 * step, WEIGHT_DECAY * (1 - step / 16)


def widen(dtype: torch.dtype) -> None:
    """For a comparison in float64: nothing is rounded on the way, whatever the code asks for."""
    if dtype == torch.float64:
        for name in ("float", "bfloat16"):
            kept = getattr(torch.Tensor, name)
            setattr(
                torch.Tensor, name, lambda x, kept=kept: x if x.dtype == torch.float64 else kept(x)
            )


def prompts() -> list[list[int]]:
    """Token ids, some longer than the short window."""
    random = Random(3)
    return [[256, *(random.randrange(256) for _ in range(n))] for n in (1, 5, 30, 120, 140, 190)]


WORDS = (
    "the",
    "River",
    "3.14159",
    "12345",
    "naïve",
    "日本語",
    "🙂",
    "don't",
    "x = [1, 2]",
    "<|bos|>",
    "<|assistant_end|>",
    "…",
    "a\u2028b",
    "﷽",
)
SPACES = (" ", "  ", "\n", "\n\n", "\t", " \r\n", "\u00a0", "")


def conversations(count: int = 400) -> list[dict]:
    """Random ones: with and without a system message, texts and parts, every fifth text empty."""
    random = Random(7)

    def text() -> str:
        if random.random() < 0.2:
            return ""
        return "".join(
            random.choice(WORDS) + random.choice(SPACES) for _ in range(random.randrange(1, 30))
        )

    def answer() -> str | list[dict]:
        if random.random() < 0.6:
            return text()
        kinds = [
            random.choice(("text", "python", "python_output"))
            for _ in range(random.randrange(1, 6))
        ]
        return [{"type": kind, "text": text()} for kind in kinds]

    made = []
    for _ in range(count):
        messages = [{"role": "system", "content": text()}] if random.random() < 0.3 else []
        for _ in range(random.randrange(1, 5)):
            messages += [
                {"role": "user", "content": text()},
                {"role": "assistant", "content": answer()},
            ]
        made.append({"messages": messages})
    return made


def corpus(folder: Path) -> list[str]:
    """Text to train a tokenizer on: this repository's, as it was when first asked for."""
    kept, root = folder / "corpus.json", Path(__file__).parents[2]
    if not kept.exists():
        texts = [
            path.read_text() for path in (root / "README.md", *sorted((root / "src").rglob("*.py")))
        ]
        kept.write_text(json.dumps(texts))
    return json.loads(kept.read_text())


# --- tasks ---

# task -> (data set, subset, split)
TASKS = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "mmlu": ("cais/mmlu", "all", "test"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "humaneval": ("openai/openai_humaneval", "openai_humaneval", "test"),
    "smoltalk": ("HuggingFaceTB/smol-smoltalk", "default", "test"),
}
ANSWERS = (
    "#### 12",
    "#### 12.",
    "so #### 1,200",
    "#### -5\n#### 6",
    "12",
    "####12",
    "#### $12",
    "",
    "#### 1.50",
    "#### ,",
    "#### 1 000",
)
PROGRAMS = (
    "x = 1",
    "```python\nx = 1\n```",
    "``` \ny\n```",
    "```python  \nz = 1\n``` tail",
    "```py\nz\n```",
    "a\n```\nb\n```\n```\nc\n```",
    "```python\nx = 1",
    "```python\r\nx = 1\r\n```",
    "```python\n\n```",
    "  indented",
)
PROMPTS = (
    "import math\n\ndef f():\n    import os",
    "# c\nfrom a import b\nx",
    "  import os\ndef f(): pass",
    "def f(): pass\nimport z",
    "\n\nimport a\n  # d\nimport b",
)


def made_rows() -> dict[str, list[dict]]:
    """Rows in the form of each data set, for where there is no mirror of them."""
    random = Random(5)

    def word():
        return "".join(random.choice("abcdefgh ,'\n") for _ in range(random.randrange(1, 40)))

    many = range(60)

    def solution():
        return (
            f"{word()}<<{random.randrange(99)}*2=8>>8 {word()}<<3>>{word()}<<a=b=c>>\n#### "
            f"{random.randrange(9999):,}"
        )

    def choice(labels):
        return {"text": [word() for _ in labels], "label": list(labels)}

    def arc():
        return [
            {
                "question": word(),
                "choices": choice(labels := random.choice(("ABCD", "1234", "ABC", "ABCDE"))),
                "answerKey": labels[-1],
            }
            for _ in many
        ]

    return {
        "gsm8k": [{"question": word(), "answer": solution()} for _ in many],
        "mmlu": [
            {
                "question": word(),
                "subject": word(),
                "choices": [word() for _ in range(4)],
                "answer": random.randrange(4),
            }
            for _ in many
        ],
        "arc_easy": arc(),
        "arc_challenge": arc(),
        "humaneval": [
            {
                "task_id": str(i),
                "prompt": word(),
                "canonical_solution": word(),
                "entry_point": "f",
                "test": word(),
            }
            for i in many
        ],
        "smoltalk": [
            {
                "messages": [
                    {"role": r, "content": word()}
                    for r in ("user", "assistant") * random.randrange(1, 4)
                ],
                "source": "x",
            }
            for _ in many
        ],
    }


def mirror(folder: Path) -> Path:
    """Where the data sets are: the mirror in NANOCHAT_HUB_DIR, with the made rows of those that it
    has not, or made rows alone."""
    place, real, rows = folder / "hub", os.environ.get("NANOCHAT_HUB_DIR"), made_rows()
    if place.exists():
        return place
    configs: dict[str, list[tuple[str, str]]] = {}
    for task, (dataset, subset, split) in TASKS.items():
        target = place / dataset
        if real and (Path(real) / dataset).is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(Path(real) / dataset)
            continue
        (target / subset).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows[task]), target / subset / f"{split}.parquet")
        configs.setdefault(dataset, []).append((subset, split))
    for dataset, parts in configs.items():
        lines = [
            f"- config_name: {s}\n  data_files:\n  - split: {p}\n    path: {s}/{p}.parquet"
            for s, p in parts
        ]
        (place / dataset / "README.md").write_text(
            "\n".join(["---", "configs:", *lines, "---", ""])
        )
    return place


def words(folder: Path) -> Path:
    path, random = folder / "words_alpha.txt", Random(9)
    if not path.exists():
        path.write_text(
            "\n".join(
                "".join(random.choices("abcdefghij", k=random.randrange(1, 12))) for _ in range(500)
            )
            + "\n"
        )
    return path


def spread(count: int) -> list[int]:
    return [k * count // min(count, ROWS) for k in range(min(count, ROWS))]


def as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def run(part: str, functions: dict) -> None:
    """Call the function of a part; `numbers` has three, one for each dtype."""
    functions[re.sub(r"_(fp32|fp64|bf16)$", "", part)]()
