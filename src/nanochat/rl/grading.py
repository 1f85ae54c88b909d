"""Whether an answer is right, as a person would say it: "42", "42.", "$42", "42.0" and "forty-two is 42" are one answer."""

import re
from fractions import Fraction

# a number as people write it: sign, currency, thousands in threes, decimals, a fraction, per cent
NUMBER = re.compile(
    r"(?<![\w.,/])(?P<sign>[-+\u2212]?)\s?[$€£¥]?(?P<sign2>[-\u2212]?)"
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?P<decimals>\.\d+)?(?:/(?P<below>\d+))?(?![\d/]|[.,]\d|[eE]\d)"
)
LONGEST = 100  # guess: characters; a longer run of digits is no answer
MARK = "####"  # from: facts sheet 4.4, what GSM8K's answers put before the number


def numbers(text: str) -> list[Fraction]:
    """The numbers in a text, in order. What only looks like one (a date, a version, 1,2,3) is none.

    >>> [str(n) for n in numbers("It is **1,000**, or $42.50, minus -3/4; not 1.2.3 nor 10/11/12.")]
    ['1000', '85/2', '-3/4']
    """
    found = []
    for match in NUMBER.finditer(text):
        whole, decimals, below = match["whole"], match["decimals"], match["below"]
        if (whole is None and decimals is None) or len(match[0]) > LONGEST:
            continue
        value = Fraction((whole or "0").replace(",", "") + (decimals or ""))
        if below is not None:
            if int(below) == 0 or decimals is not None:
                continue
            value /= int(below)
        negative = bool(match["sign2"]) or (match["sign"] not in ("", "+") and not _joins(text, match.start()))
        found.append(-value if negative else value)
    return found


def _joins(text: str, at: int) -> bool:
    """Whether a minus there stands between two things, so that it is no sign: the 3 of "5 - 3"."""
    before = text[:at].rstrip()
    return bool(before) and (before[-1].isdigit() or before[-1] in ")%")


def final_number(text: str) -> Fraction | None:
    """What a text says in the end: the first number after its last `####`, else its last number; None if there is none.

    >>> final_number("She has 3 + 4 = 7 apples.\\n#### 7.") == 7, final_number("so 12, or 1,200 in all") == 1200
    (True, True)
    """
    _, mark, after = text.rpartition(MARK)
    found = numbers(after) if mark else numbers(text)
    if not found:
        return None
    return found[0] if mark else found[-1]


def same_number(reference: str, completion: str) -> bool:
    """Whether a completion ends with the number that `reference` is. ValueError if `reference` is no number."""
    wanted = numbers(reference)
    if len(wanted) != 1:
        raise ValueError(f"the reference answer {reference!r} is not one number; use grader=strict for this task")
    return final_number(completion) == wanted[0]


def same_text(reference: str, completion: str) -> bool:
    """Whether two short texts say the same, but for case, space and what may stand around an answer.

    >>> same_text("B", " **b**. "), same_text("stone:s,t,o,n,e", "Stone: s, t, o, n, e"), same_text("B", "A or B")
    (True, True, False)
    """
    return _bare(reference) == _bare(completion)


def _bare(text: str) -> str:
    return re.sub(r"[\s*_`\"'$()\[\]]+", "", text.split(MARK)[-1]).rstrip(".!;,").casefold()
