"""Results worked out by hand, and what must not hang, crash or run."""

import threading
import time
import warnings

import pytest

from nanochat.inference.calculator import MAX_LENGTH, calculate

RESULTS = {
    # whole numbers
    "7": "7",
    "1+1": "2",
    "2+3*4": "14",
    "(2+3)*4": "20",
    "10-4-3": "3",
    "2*3*4": "24",
    " 12 + 30 ": "42",
    "12345679*9": "111111111",
    "99999999999*99999999999": "9999999999800000000001",
    "00": "0",
    # signs
    "-5": "-5",
    "-5+2": "-3",
    "--5": "5",
    "+5": "5",
    "3*-2": "-6",
    "-(2+3)": "-5",
    "3--2": "5",
    # division: a float, as Python writes it
    "10/2": "5.0",
    "1/5": "0.2",
    "1/3": "0.3333333333333333",
    "24/4/2": "3.0",
    "7//2": "3",
    "-7//2": "-4",
    "7.5//2": "3.0",
    "17%5": "2",
    "-7%3": "2",
    "100/3*3": "100.0",
    # decimals
    "0.5*4": "2.0",
    ".5+.25": "0.75",
    "5.+1": "6.0",
    "0.1+0.2": "0.30000000000000004",
    "1.10*3": "3.3000000000000003",
    "10000000000000000.0*10": "1e+17",
    # commas
    "1,000+1": "1001",
    "1,234,567": "1234567",
    "2,000.50*2": "4001.0",
    # counting
    "'strawberry'.count('r')": "3",
    '"banana".count("an")': "2",
    "'hello'.count(\"l\")": "2",
    "'abc'.count('z')": "0",
    "'Anna'.count('a')": "1",
    "'a,b,c'.count(',')": "2",
    "'directory of files'.count('i')": "2",
    "'naïve café'.count('é')": "1",
    "'ab'.count('')": "3",
    "('over'.count('o'))": "1",
    "'eel'.count('e') + 'bee'.count('e')": "4",
}

NOTHING = [
    "",
    " ",
    "abc",
    "1+",
    "+",
    "1 2",
    "(1",
    "1)",
    "()",
    "...",
    "007",
    "1..2",
    "1.2.3",
    "2(3)",
    "(1)(2)",
    "x=1",
    "1==1",
    "1<2",
    "True",
    "2**3",
    "9**9**9",
    "1/0",
    "1//0",
    "5%0",
    "1e5",
    "0x10",
    "1_000",
    "3j",
    "$5+1",
    "20%",
    "5!",
    "1\n+1",
    "1+1\n",
    "1;2",
    "[1]",
    "{1}",
    "'abc'",
    "'a'*3",
    "'a'+'b'",
    "-'a'",
    "'abc'.count",
    "'abc'.count()",
    "'abc'.count('a', 1)",
    "'abc'.count(1)",
    "5 .count('a')",
    "'abc'.upper()",
    "'abc'.count('a').count('b')",
    "b'abc'.count(b'a')",
    "f'{1}'.count('1')",
    "'a\\x41'.count('A')",
    "'a.count('a')",
    "'a'.join(())",
    "len('abc')",
    "abs(1)",
    "print(1)",
    "__import__('os').system('true')",
    "().__class__",
    "lambda: 1",
    "1 if 1 else 2",
    "'abc'.count('a' if 1 else 'b')",
    "1 and 2",
    "~1",
    "1|2",
    "1@2",
    "1<<9",
    "\x00",
    "\ud800",
    "'\ud800'.count('\x00')",
]

ATTACKS = [
    "9**9**9",
    "9" * 200 + "**" + "9" * 100,
    "'a'*10**9",
    "'" + "a" * 10**7 + "'.count('a')",
    "(" * 10_000 + "1" + ")" * 10_000,
    "(" * 399,
    "(" * 199 + "1" + ")" * 199,
    "-" * 10_000 + "1",
    "-" * 399 + "1",
    "1+" * 100_000 + "1",
    "*".join(["9" * 1000] * 1000),
    "*".join(["99999999999999999999"] * 19),
    "/".join(["9" * 190] * 2),
    "9" * 390 + "*1.5",
    "9" * 390 + ".0",
    "." * 399,
    "'" * 399,
    ",,,," * 99,
    "'a'.count(" * 39 + "'a'" + ")" * 9,
]


@pytest.mark.parametrize(("expression", "result"), RESULTS.items())
def test_results_worked_out_by_hand(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize("expression", NOTHING)
def test_anything_else_is_none(expression):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Python's parser warns of some of these
        assert calculate(expression) is None


@pytest.mark.parametrize("expression", ATTACKS, ids=lambda text: f"{text[:12]}…{len(text)}")
def test_attacks_end_soon_and_small(expression):
    took = []
    # the least of three, and of this thread's own work: a busy machine says nothing
    for _ in range(3):
        start = time.thread_time()
        result = calculate(expression)
        took.append(time.thread_time() - start)
    assert min(took) < 0.1  # a thousandth of it on an idle core
    assert result is None or len(result) <= MAX_LENGTH


def test_what_is_too_long_or_too_large_is_none():
    assert calculate("1" * MAX_LENGTH) == "1" * MAX_LENGTH
    assert calculate("1" * (MAX_LENGTH + 1)) is None
    assert calculate("9" * 390 + ".0") is None  # infinite
    assert calculate("9" * 390 + "*1.5") is None  # too large for a float
    assert calculate("+".join(["1"] * 200)) == "200"  # as deep as it gets


def test_works_outside_the_main_thread():
    results = []
    threads = [threading.Thread(target=lambda: results.append(calculate("6*7"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["42"] * 4
