"""Not a package of this project: it answers `python -m scripts.base_train …`, nanochat's way to
start, with the line to type here.

Only in a checkout; the wheel does not have it.
"""

import sys

from nanochat.interop.habits import one_line, table


def answer(words: list[str]) -> str:
    """`words`: those of the interpreter, `python -m scripts.base_train -- --depth=20`."""
    script = next((word for word in words if word.startswith("scripts.")), "scripts")
    if script in table():
        return one_line(script, words[words.index(script) + 1 :])
    return f"{script} is not a script of nanochat; the commands of this project are in README.md"


if "-m" in sys.orig_argv:
    print(f"error: {answer(sys.orig_argv)}", file=sys.stderr)
    sys.exit(2)
