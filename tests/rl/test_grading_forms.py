"""Every way of writing a number that was decided on, and what it is taken for; None: it is no
number, or not one."""

import time
from fractions import Fraction

import pytest

from nanochat.rl.grading import final_number, numbers
from nanochat.tasks.gsm8k import marked

FORMS = {
    "1 000": 1000,
    "1\u00a0000": 1000,
    "1\u202f000\u202f000": 1000000,
    "1 000.5": 1000.5,
    "12 345 678": 12345678,
    "1'000": 1000,
    "1_000": 1000,
    "1.000,50": 1000.5,
    "1.234,5": 1234.5,
    "1.000.000": 1000000,
    "1.000": 1,
    "1,234.5": 1234.5,
    "$1,000.00": 1000,
    "1,000": 1000,
    "3,5": None,
    "1,2,3": None,
    "1.2.3": None,
    "1,0000": None,
    "10/11/12": None,
    "1e3": 1000,
    "1.5e3": 1500,
    "2E-2": 0.02,
    "1e\u22122": 0.01,
    "1e999": None,
    "1e3e3": None,
    "1e": 1,
    "3 1/2": 3.5,
    "½": 0.5,
    "3½": 3.5,
    "3 ½": 3.5,
    "-½": -0.5,
    "1\u20444": 0.25,
    "2/4": 0.5,
    "1/0": None,
    "3 1/0": None,
    "1.5/2": None,
    "-0": 0,
    "0": 0,
    "-1 000": -1000,
    "-3 1/2": -3.5,
    "\u22125": -5,
    "$-5": -5,
    "-$5": -5,
    "+7": 7,
    "50%": 50,
    "50 %": 50,
    "\u0661\u0662": 12,
    "12 apples": 12,
    "5km": 5,
    "12th": 12,
    "3.50 €": 3.5,
    "10^3": None,
    "10²": None,
    "42.": 42,
    "(42)": 42,
}


@pytest.mark.parametrize("text", FORMS)
def test_each_form_is_the_number_a_person_reads(text: str) -> None:
    wanted = FORMS[text]
    found = numbers(text)
    assert found == ([] if wanted is None else [Fraction(str(wanted))])
    assert final_number(f"It is {text}") == (None if wanted is None else Fraction(str(wanted)))
    assert final_number(f"7 of them\n#### {text}") == (
        None if wanted is None else Fraction(str(wanted))
    )


def test_thirds_are_exact() -> None:
    assert numbers("⅓ and 2 ⅔, ⅑, ⅒") == [
        Fraction(1, 3),
        Fraction(8, 3),
        Fraction(1, 9),
        Fraction(1, 10),
    ]


def test_nanochats_own_grading_of_gsm8k_stays_as_published() -> None:
    found = [
        marked(f"#### {text}")
        for text in ("1 000", "1.000,50", "1e3", "3 1/2", "-0", "1,234.5", "½", "50%", "12.")
    ]
    assert found == ["1", "1.00050", "1", "3", "-0", "1234.5", None, "50", "12."]


def test_hostile_texts_end() -> None:
    began = time.process_time()
    for text in (
        "100 " * 25_000 + "100,5",
        "1 1/" * 25_000,
        "1.000" * 20_000 + ",",
        "1e" * 50_000,
        "½" * 100_000,
        "1'000" * 20_000,
    ):
        numbers(text)
    assert time.process_time() - began < 20  # seconds; what explodes takes hours
