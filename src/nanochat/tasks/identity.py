"""Who the model is: its name, who made it and what for, asked in many ways.

Made from a few settings, so that a model gets its own identity without a written data set. The
wordings are in `identity.yaml`. Every fifth wording of a question is kept for the test split: it
means the same as those that are trained on and is none of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import yaml

from nanochat.tasks.generated import Generated, Size, Split

EVERY = 5  # guess: of five wordings the last is for testing
GREETED = 0.25  # guess: conversations that begin with a greeting
FOLLOWED = 0.35  # guess: conversations that ask another question after one
SMALL_TALK = 0.15  # guess: conversations of the train split that ask nothing
FOREIGN = 0.2  # guess: conversations that are not in English; they ask for name and maker
LOWER_CASE = 0.2  # guess
TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FOREIGN_LANGUAGES = sorted(TEXTS["languages"].keys() - {"en"})


class Identity(Generated):
    """`model_name`, `maker` ("I was made by …") and `purpose` ("I am here to …").

    `facts` maps other things that a model may be asked about itself to the answer, {"favourite
    colour": "blue"}. The test split always ends with a question about one of all these, which is
    `answer`; some conversations of the train split only greet, thank or say goodbye.
    """

    kind = "answer"

    def __init__(
        self,
        *,
        size: Size,
        model_name: str,
        maker: str,
        purpose: str,
        facts: Mapping[str, str] | None = None,
        split: Split = "train",
        name: str = "identity",
        **common: Any,
    ):
        super().__init__(name=name, size=size, split=split, **common)
        self.model_name, self.maker, self.purpose = model_name, maker, purpose
        self.facts = dict(facts or {})
        for key, value in (
            ("model_name", model_name),
            ("maker", maker),
            ("purpose", purpose),
            *self.facts.items(),
        ):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{key}={value!r} of {name} must be text; write {key}: …")

    def conversation(self, i: int) -> dict[str, Any]:
        random = self.random(i)
        if self.split == "train" and random.random() < SMALL_TALK:
            talk = random.choice(TEXTS["talk"])
            said, reply = random.choice(talk["said"]), random.choice(talk["replies"])
            return {"messages": list(exchange(said, reply.format(name=self.model_name)))}
        language = random.choice(FOREIGN_LANGUAGES) if random.random() < FOREIGN else "en"
        messages: list[dict[str, str]] = []
        if language == "en" and random.random() < GREETED:
            messages += exchange(
                random.choice(TEXTS["greetings"]), random.choice(TEXTS["greeted_back"])
            )
        about, question, reply, answer = self._asked(random, language)
        messages += exchange(question, reply)
        if random.random() < FOLLOWED:
            _, question, reply, answer = self._asked(random, language, but=about)
            if language == "en":
                question = linked(random.choice(TEXTS["links"]), question)
            messages += exchange(question, reply)
        return {"messages": messages, "answer": answer}

    def _asked(self, random: Random, language: str, but: str = "") -> tuple[str, str, str, str]:
        """Topic (not `but`), question, reply, and the word that a right reply holds."""
        topics = TEXTS["languages"][language]
        possible = [name for name in topics if name != but and (name != "fact" or self.facts)]
        about = random.choice([name for name in possible for _ in range(topics[name]["weight"])])
        topic = topics[about]
        fact = random.choice(sorted(self.facts)) if self.facts else ""
        words = {"name": self.model_name, "maker": self.maker, "purpose": self.purpose}
        words |= {
            "fact": fact,
            "value": self.facts.get(fact, ""),
            "other": random.choice(TEXTS["others"]),
        }
        wordings = [
            w
            for n, w in enumerate(topic["questions"], 1)
            if (n % EVERY == 0) == (self.split == "test")
        ]
        question = random.choice(wordings).format(**words)
        reply = random.choice(topic["replies"]).format(**words)
        if random.random() < LOWER_CASE:
            question = question[0].lower() + question[1:].rstrip(" ?.")
        return about, question, reply[0].upper() + reply[1:], words[topic["asks"]]

    def score(self, conversation: dict[str, Any], completion: str) -> float:
        """Whether the completion names what was asked for, in upper or lower case."""
        if "answer" not in conversation:
            raise ValueError(
                f"{self.name}: this conversation asks for nothing; score the test split"
            )
        return float(conversation["answer"].casefold() in completion.casefold())

    def settings(self) -> dict[str, Any]:
        own = {
            "model_name": self.model_name,
            "maker": self.maker,
            "purpose": self.purpose,
            "facts": self.facts,
        }
        return {**super().settings(), **own}


def exchange(said: str, reply: str) -> Iterator[dict[str, str]]:
    yield {"role": "user", "content": said}
    yield {"role": "assistant", "content": reply}


def linked(link: str, question: str) -> str:
    """A question after a link: "And " goes on with a small letter, a full stop does not."""
    return link + (question[0].lower() + question[1:] if link == "And " else question)
