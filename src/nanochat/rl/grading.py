"""Whether an answer is right, as a person would judge: "42", "42.", "$42", "42.0" and "forty-two is
42" are one answer."""

import re
import unicodedata
from fractions import Fraction

VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
# A number as people write it: sign, currency, then one of these forms, tried in this order. Groups
# have three digits; eight of them are more than any answer has. `(?>` is an atomic group: without
# backtracking, a part of something that only resembles a number is not a number.
NUMBER = re.compile(
    r"(?<![\w.,/\u2044^])(?P<sign>[-+\u2212]?)\s?[$€£¥]?(?P<sign2>[-\u2212]?)(?>"
    rf"(?:(?P<before>\d+)[ \u00a0\u202f]?)?(?P<vulgar>[{VULGAR}])"  # ½, 3½, 3 ½
    r"|(?P<units>\d+)[ \u00a0\u202f](?P<over>\d+)[/\u2044](?P<under>\d+)"  # 3 1/2
    # 1.000,50 and 1.000.000
    r"|(?P<whole>\d{1,3}(?:\.\d{3}){1,8}(?=,\d)|\d{1,3}(?:\.\d{3}){2,8})(?:,(?P<comma>\d+))?"
    r"|(?=\.?\d)(?P<grouped>\d{1,3}(?P<gap>[,'\u2019_ "
    r"\u00a0\u2009\u202f])\d{3}(?!\d)(?:(?P=gap)\d{3}(?!\d)){0,7}|\d+)?(?P<decimals>\.\d+)?"
    r"(?:[/\u2044](?P<below>\d+)|[eE](?P<power>[-+\u2212]?\d{1,2}))?"
    r")(?![\d/\u2044^²³_]|[.,]\d|[eE][-+\u2212]?\d)"
)
LONGEST = 100  # guess: characters; a longer run of digits is not an answer
MARK = "####"  # from: facts sheet 4.4, precedes the number in GSM8K's answers


def numbers(text: str) -> list[Fraction]:
    """The numbers in a text, in order. What only resembles one (a date, a version, 1,2,3) is not a
    number.

    >>> [str(n) for n in numbers("It is **1,000**, or $42.50, minus -3/4; not 1.2.3 nor 10/11/12.")]
    ['1000', '85/2', '-3/4']
    """
    found = []
    for match in NUMBER.finditer(text):
        value = None if len(match[0]) > LONGEST else _value(match)
        if value is None:
            continue
        negative = bool(match["sign2"]) or (
            match["sign"] not in ("", "+") and not _joins(text, match.start())
        )
        found.append(-value if negative else value)
    return found


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a match; None if it has none or divides by zero."""
    part = match.groupdict()
    if part["vulgar"]:
        return int(part["before"] or 0) + Fraction(
            unicodedata.numeric(part["vulgar"])
        ).limit_denominator(10)
    if part["units"]:
        under = int(part["under"])
        return int(part["units"]) + Fraction(int(part["over"]), under) if under else None
    if part["whole"]:
        return Fraction(f"{part['whole'].replace('.', '')}.{part['comma'] or 0}")
    if part["grouped"] is None and part["decimals"] is None:
        return None
    whole = (part["grouped"] or "0").replace(part["gap"] or ",", "")
    value = Fraction(whole + (part["decimals"] or "")) * Fraction(10) ** int(
        (part["power"] or "0").replace("\u2212", "-")
    )
    if part["below"] is None:
        return value
    return value / int(part["below"]) if int(part["below"]) and part["decimals"] is None else None


def _joins(text: str, at: int) -> bool:
    """Whether a minus at this place is between two operands and therefore not a sign, as before the
    3 of "5 - 3"."""
    before = text[:at].rstrip()
    return bool(before) and (before[-1].isdigit() or before[-1] in ")%")


def final_number(text: str) -> Fraction | None:
    """The final number of a text: the first after its last `####`, else its last number; None if
    there is none.

    >>> print(final_number("She has 3 + 4 = 7 apples.\\n#### 7."))
    7
    >>> print(final_number("so 12, or 1,200 in all"))
    1200
    """
    _, mark, after = text.rpartition(MARK)
    found = numbers(after) if mark else numbers(text)
    if not found:
        return None
    return found[0] if mark else found[-1]


def same_number(reference: str, completion: str) -> bool:
    """Whether the final number of a completion equals `reference`. ValueError if `reference` is not
    one number."""
    wanted = numbers(reference)
    if len(wanted) != 1:
        raise ValueError(
            f"the reference answer {reference!r} is not one number; use grader=strict for this task"
        )
    return final_number(completion) == wanted[0]


def same_text(reference: str, completion: str) -> bool:
    """Whether two short texts are equal, apart from case, space and the usual marks around an
    answer.

    >>> same_text("B", " **b**. "), same_text("stone:s,t,o,n,e", "Stone: s, t, o, n, e")
    (True, True)
    >>> same_text("B", "A or B")
    False
    """
    return _bare(reference) == _bare(completion)


def _bare(text: str) -> str:
    return re.sub(r"[\s*_`\"'$()\[\]]+", "", text.split(MARK)[-1]).rstrip(".!;,").casefold()
