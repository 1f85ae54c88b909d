"""Small calculations answered through the calculator: an unlimited supply of problems that teach a
model to call the tool.

The assistant writes the problem down, calls the tool and repeats its result, in under 20 tokens. A
problem (two operands and an operator) belongs either to train or to test; a + b and b + a are one
problem.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from operator import add, floordiv, mul, sub
from random import Random
from typing import Annotated, Any

from pydantic import Field

from nanochat.runtime.held_out import is_held_out
from nanochat.runtime.settings import Portion
from nanochat.tasks.generated import Generated, Size, Split, checked_fraction

# operator -> (expression for the calculator, result). The calculator's `/` would give 4.0 where a
# person writes 4
CALLS = {"+": "+", "-": "-", "*": "*", "/": "//"}
RESULTS = {"+": add, "-": sub, "*": mul, "/": floordiv}
SIGNS = {"+": ("+",), "-": ("-",), "*": ("*", "x", "×"), "/": ("/", "÷")}  # noqa: RUF001
SYMBOLIC = (
    "{a} {s} {b}",
    "{a}{s}{b}",
    "{a} {s} {b} = ?",
    "{a}{s}{b}=?",
    "{a} {s} {b} =",
    "What is {a} {s} {b}?",
    "what is {a}{s}{b}",
    "What's {a} {s} {b}?",
    "How much is {a} {s} {b}?",
    "Calculate {a} {s} {b}.",
    "Compute {a} {s} {b}.",
    "Solve {a} {s} {b}.",
    "Work out {a} {s} {b}.",
    "Please calculate {a} {s} {b}.",
    "Can you compute {a} {s} {b}?",
    "Could you work out {a} {s} {b} for me?",
    "Tell me what {a} {s} {b} is.",
    "I need to know {a} {s} {b}.",
    "What does {a} {s} {b} equal?",
    "What do you get for {a} {s} {b}?",
    "Find the value of {a} {s} {b}.",
    "What is the result of {a} {s} {b}?",
)
WORDED = {
    "+": (
        "What is {a} plus {b}?",
        "what is {a} plus {b}",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "Please add {a} and {b}.",
        "Can you add {b} to {a}?",
        "What is the sum of {a} and {b}?",
        "Give me the sum of {a} and {b}.",
        "What do {a} and {b} make together?",
        "What is {b} more than {a}?",
    ),
    "-": (
        "What is {a} minus {b}?",
        "what is {a} minus {b}",
        "How much is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Please subtract {b} from {a}.",
        "Can you take {b} away from {a}?",
        "What is {a} less {b}?",
        "What is {b} less than {a}?",
        "What is left of {a} if you take away {b}?",
    ),
    "*": (
        "What is {a} times {b}?",
        "what is {a} times {b}",
        "How much is {a} times {b}?",
        "Multiply {a} by {b}.",
        "Please multiply {a} by {b}.",
        "Can you multiply {a} and {b}?",
        "What is the product of {a} and {b}?",
        "Give me the product of {a} and {b}.",
        "What is {a} multiplied by {b}?",
    ),
    "/": (
        "What is {a} divided by {b}?",
        "what is {a} divided by {b}",
        "How much is {a} divided by {b}?",
        "Divide {a} by {b}.",
        "Please divide {a} by {b}.",
        "Can you divide {a} by {b}?",
        "How many times does {b} go into {a}?",
        "What is the quotient of {a} and {b}?",
        "What do you get if you divide {a} by {b}?",
    ),
}
# used only where the numbers can be counts of things: from 2 up, with something left over
STORIES = {
    "+": (
        "I have {a} coins and get {b} more. How many coins do I have now?",
        "There are {a} birds in a tree and {b} more arrive. How many birds are there?",
        "A shop sells {a} books on Monday and {b} on Tuesday. How many books is that?",
        "Anna read {a} pages yesterday and {b} today. How many pages did she read?",
        "One box holds {a} nails, another {b}. How many nails are there?",
    ),
    "-": (
        "I have {a} coins and spend {b}. How many are left?",
        "There are {a} birds in a tree and {b} fly away. How many stay?",
        "A book has {a} pages. Tom has read {b}. How many pages are left?",
        "A shop has {a} apples and sells {b}. How many apples remain?",
        "There were {a} people in the hall and {b} went home. How many are still there?",
    ),
    "*": (
        "There are {a} boxes with {b} pens each. How many pens are there?",
        "A hall has {a} rows of {b} seats. How many seats is that?",
        "One ticket costs {b} dollars. What do {a} tickets cost?",
        "Anna reads {b} pages a day. How many pages does she read in {a} days?",
        "A bus makes {a} trips with {b} people each. How many people is that?",
    ),
    "/": (
        "{b} friends share {a} coins equally. How many does each get?",
        "We put {a} pens into {b} boxes, the same number in each. How many are in one box?",
        "Tom has {a} pages to read in {b} days. How many pages is that a day?",
        "{a} seats stand in {b} equal rows. How many seats are in a row?",
        "{b} tickets cost {a} dollars. What does one ticket cost?",
    ),
}
STORY_SHARE = 0.15  # guess
WORDED_SHARE = 0.35  # guess; the rest is asked with signs
NUMBER = re.compile(r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?")
TRIES = (
    # guess: draws per problem until one belongs to the split; at held_out=0.1 seven are enough half
    # of the time
    1000
)


class Arithmetic(Generated):
    """Two operands of up to `digits` digits, joined by one of `operators` (of + - * /).

    Every division has an integer result, and both its operands have up to `digits` digits.
    `held_out` is the share of the problems that occur only in the test split.
    """

    kind = "answer"

    def __init__(
        self,
        *,
        size: Size,
        split: Split = "train",
        digits: Annotated[int, Field(ge=1, le=9)] = 3,
        operators: Sequence[str] | str = "+-*/",
        held_out: Portion = 0.1,
        name: str = "arithmetic",
        **common: Any,
    ):
        super().__init__(name=name, size=size, split=split, **common)
        if not isinstance(digits, int) or not 1 <= digits <= 9:
            raise ValueError(f"digits={digits} must be a whole number from 1 to 9")
        if not operators or set(operators) - set(CALLS) or len(set(operators)) < len(operators):
            raise ValueError(
                f'operators={operators} must be some of + - * /, each once; try operators: "+-*/"'
            )
        self.digits = digits
        self.operators = "".join(operators)
        self.held_out = checked_fraction("held_out", held_out)

    def problem(self, random: Random) -> tuple[int, str, int]:
        """A problem of this split: a, operator, b."""
        for _ in range(TRIES):
            operator = random.choice(self.operators)
            a, b = self._number(random), self._number(random)
            if operator == "/":
                b = max(b, 1)
                a = b * random.randint(1, (10**self.digits - 1) // b)
            if is_held_out(named(a, operator, b), self.held_out) == (self.split == "test"):
                return a, operator, b
        raise ValueError(
            f"{self.name}: too few problems with digits={self.digits} and "
            f"operators={self.operators} belong to "
            f"the {self.split} split at held_out={self.held_out}; raise digits"
        )

    def _number(self, random: Random) -> int:
        # so that small numbers are not rare
        return random.randrange(10 ** random.randint(1, self.digits))

    def conversation(self, i: int) -> dict[str, Any]:
        random = self.random(i)
        a, operator, b = self.problem(random)
        answer = str(RESULTS[operator](a, b))
        style = random.random()
        if style < STORY_SHARE and min(a, b) > 1 and int(answer) > 1:
            question = random.choice(STORIES[operator])
        elif style < STORY_SHARE + WORDED_SHARE:
            question = random.choice(WORDED[operator])
        else:
            question = random.choice(SYMBOLIC)
        question = question.format(a=a, b=b, s=random.choice(SIGNS[operator]))
        return {
            "messages": [
                {"role": "user", "content": question},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": f"{a}{operator}{b}="},
                        {"type": "python", "text": f"{a}{CALLS[operator]}{b}"},
                        {"type": "python_output", "text": answer},
                        {"type": "text", "text": f"{answer}."},
                    ],
                },
            ],
            "answer": answer,
        }

    def score(self, conversation: dict[str, Any], completion: str) -> float:
        """Whether the last number of the completion is the answer; 1,200 and 1200.0 are the same
        number."""
        numbers = NUMBER.findall(completion)
        return float(
            bool(numbers)
            and Decimal(numbers[-1].replace(",", "")) == Decimal(conversation["answer"])
        )

    def reference(self, conversation: dict[str, Any]) -> str | None:
        return str(conversation["answer"])

    def settings(self) -> dict[str, Any]:
        own = {"digits": self.digits, "operators": self.operators, "held_out": self.held_out}
        return {**super().settings(), **own}


def named(a: int, operator: str, b: int) -> str:
    """The key of a problem, which is hashed to choose its split.

    >>> named(7, "+", 3), named(7, "-", 3)
    ('3+7', '7-3')
    """
    if operator in "+*":
        a, b = sorted((a, b))
    return f"{a}{operator}{b}"
