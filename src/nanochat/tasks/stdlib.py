"""The source of the running Python's standard library, read in place: training text that needs no
data set.

Nothing is imported. Modules that distributions omit or change, or that exist on one system only,
are excluded, so that a Python version gives the same modules everywhere. Tests, tools and data are
excluded too.
"""

import functools
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = re.compile(
    r"antigravity|curses|dbm|distutils|encodings|ensurepip|genericpath|idlelib|lib2to3|msilib|"
    r"nt.*path|pydoc_data|sitecustomize|test|this|tkinter|turtle|turtledemo|usercustomize|venv|"
    r".*\.tests?|.*(windows_|win32|forkserver).*"
)
RENAMED = {"posixpath": "os.path"}  # file name -> name under which it is imported
IN_PROSE = re.compile(r"(?<= )[a-z]{3,12}(?=[ .,;:])")


def sources(folder: Path | None = None, package: str = "") -> Iterator[tuple[str, str]]:
    """(name, source) of the public modules in a folder (None: the whole library), packages with
    their modules."""
    for path in sorted((folder or Path(sysconfig.get_path("stdlib"))).iterdir()):
        name = f"{package}{path.stem}"
        if path.stem == "__init__":
            name = package.rstrip(".")
        elif path.stem.startswith("_") or LEFT_OUT.fullmatch(name):
            continue
        if path.suffix == ".py" and name:
            yield RENAMED.get(name, name), path.read_text(encoding="utf-8", errors="replace")
        elif (path / "__init__.py").is_file():
            yield from sources(path, f"{name}.")


@functools.cache
def common_words() -> tuple[str, ...]:
    """Words that occur more than once in its comments and docstrings, in alphabetical order: about
    5,800."""
    counts: Counter[str] = Counter()
    for _, source in sources():
        counts.update(IN_PROSE.findall(source))
    return tuple(sorted(word for word, count in counts.items() if count > 1))
