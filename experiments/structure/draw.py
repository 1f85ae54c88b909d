"""Draw the imports of the code and print its sizes: `python experiments/structure/draw.py
[--against COMMIT]`.

Rooms are the folders of `src/nanochat`; its files at the top, and each `__main__.py`, are commands.
Floors are the code block of CONTRIBUTING.md that begins with `commands`. Needs the standard library
alone, so any Python 3.11 draws any commit.
"""

import argparse
import ast
import io
import math
import re
import statistics
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONG_FILE, LONG_FUNCTION = 350, 60  # lines
COMMANDS = "commands"
# Calls at module level that only make a value. Any other is work done by an import.
PLAIN_CALLS = frozenset(
    "Field Built TypeVar NewType compile frozenset set dict tuple list sorted range len sum min "
    "max "
    "float int str split splitlines Path join replace items keys values getLogger dtype Struct "
    "product chain fromkeys format bytes encode format_map maketrans partial chr ord count fields "
    "asdict finfo get_args".split()
)


@dataclass(frozen=True)
class Import:
    """`source` uses `target`; both are dotted modules. `how`: at import, in a function, or by a
    name in a string."""

    source: str
    target: str
    how: str
    line: int


@dataclass
class Code:
    """What is read from the Python files below one `src`."""

    files: dict[str, int] = field(default_factory=dict)  # module: lines
    # which, unlike lines, do not depend on the formatter, comments or docstrings
    statements: int = 0
    functions: dict[str, int] = field(default_factory=dict)  # module.Class.name: lines
    imports: list[Import] = field(default_factory=list)
    work: list[str] = field(default_factory=list)  # module-level code that is no definition
    commands: set[str] = field(default_factory=set)  # modules that are commands

    def room(self, module: str) -> str:
        return COMMANDS if module in self.commands else module.split(".")[1]

    def rooms(self) -> dict[str, int]:
        """Lines of each room."""
        lines: Counter[str] = Counter()
        for module, count in self.files.items():
            if module != "nanochat":
                lines[self.room(module)] += count
        return dict(lines)

    def between_rooms(self) -> dict[tuple[str, str], list[Import]]:
        arrows: dict[tuple[str, str], list[Import]] = {}
        for one in self.imports:
            ends = self.room(one.source), self.room(one.target)
            if ends[0] != ends[1]:
                arrows.setdefault(ends, []).append(one)
        return arrows


def read(src: Path) -> Code:
    """Every module of `src/nanochat`."""
    code, trees = Code(), {}
    for path in sorted((src / "nanochat").rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        code.files[module], trees[module] = text.count("\n"), ast.parse(text)
        if (len(parts) == 2 and parts[-1] != "__init__") or parts[-1] == "__main__":
            code.commands.add(module)
    for module, tree in trees.items():
        code.statements += sum(
            isinstance(node, ast.stmt) and not is_docstring(node) for node in ast.walk(tree)
        )
        code.functions.update(functions(tree, module))
        code.work += [f"{module}:{node.lineno}" for node in module_level_work(tree)]
        code.imports += imports(tree, module, code.files)
    return code


def functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    """Name and lines of every function, those inside others too."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}"
            if not isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                yield name, node.end_lineno - node.lineno + 1
        yield from functions(node, name)


def module_level_work(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that an import runs and that neither define something nor name a plain value."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        ):
            continue
        if isinstance(
            node,
            ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
        ):
            continue
        if is_docstring(node):
            continue
        if isinstance(node, ast.Assign | ast.AnnAssign) and all(map(is_plain, calls(node))):
            continue
        yield node


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def calls(node: ast.AST) -> Iterator[ast.Call]:
    return (n for n in ast.walk(node) if isinstance(n, ast.Call))


def is_plain(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    # a class, or `main = command(…)`
    return name in PLAIN_CALLS or name[:1].isupper() or name == "command"


def imports(tree: ast.Module, module: str, modules: Mapping[str, int]) -> Iterator[Import]:
    """What of `modules` a module imports, or names in a string for something else to import."""
    top = {id(node) for node in tree.body}
    documented = {id(node.value) for node in ast.walk(tree) if is_docstring(node)}  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        how = "at import" if id(node) in top else "in a function"
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif id(node) not in documented and (name := dotted_text(node)):
            names, how = [name], "by a name in a string"
        found = {within(name, modules) for name in names} - {"", "nanochat", module}
        yield from (Import(module, target, how, node.lineno) for target in sorted(found))


def dotted_text(node: ast.AST) -> str:
    """The text of a string that is a dotted name of ours, else ""."""
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text if re.fullmatch(r"nanochat(\.[A-Za-z_]\w*){2,}", text) else ""


def within(name: str, modules: Mapping[str, int]) -> str:
    """The module that holds what a dotted name means, "" if it is none of them."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def cycles(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of nodes that reach each other: the strongly connected components of more than one
    (Tarjan 1972)."""
    after: dict[str, set[str]] = {}
    for source, target in arrows:
        after.setdefault(source, set()).add(target)
        after.setdefault(target, set())

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for target in after[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        return seen

    reach = {node: reached(node) for node in after}
    groups = {
        tuple(sorted(n for n in reach[node] if node in reach[n]))
        for node in after
        if node in reach[node]
    }
    return [list(group) for group in sorted(groups)]


def floors(contributing: Path = ROOT / "CONTRIBUTING.md") -> list[list[str]]:
    """The rooms of each floor, from the top."""
    match = re.search(rf"```\w*\n({COMMANDS}\n.*?)```", contributing.read_text(), re.S)
    assert match, f"{contributing} has no code block that begins with a line `{COMMANDS}`"
    return [re.split(r",\s*", line.strip()) for line in match[1].splitlines()]


def upward(code: Code, levels: list[list[str]]) -> list[Import]:
    """Imports of a higher floor."""
    floor = {room: number for number, rooms in enumerate(levels) for room in rooms}
    return [
        one
        for (source, target), ones in code.between_rooms().items()
        for one in ones
        if floor.get(target, -1) < floor.get(source, -1)
    ]


# ---- the table


def figures(code: Code, levels: list[list[str]]) -> dict[str, str]:
    files, lengths = sorted(code.files.values()), sorted(code.functions.values())
    between = code.between_rooms()
    return {
        "lines": f"{sum(files):,}",
        "statements": f"{code.statements:,}",
        "files": f"{len(files):,}",
        "lines of a file: median, 90th, longest": spread(code.files),
        f"files over {LONG_FILE} lines": str(sum(n > LONG_FILE for n in files)),
        "functions": f"{len(lengths):,}",
        "lines of a function: median, 90th, longest": spread(code.functions),
        f"functions over {LONG_FUNCTION} lines": str(sum(n > LONG_FUNCTION for n in lengths)),
        "module-level code that does work": str(len(code.work)),
        "rooms": str(len(code.rooms())),
        "arrows between rooms": f"{len(between)} ({sum(map(len, between.values()))} imports)",
        "imports that point up": str(len(upward(code, levels))),
        "cycles of rooms": str(len(cycles(between))),
        "cycles of files": str(len(cycles((one.source, one.target) for one in code.imports))),
    }


def spread(sizes: Mapping[str, int]) -> str:
    values = sorted(sizes.values())
    ninetieth = values[math.ceil(0.9 * len(values)) - 1]
    longest = max(sizes, key=lambda name: sizes[name]).removeprefix("nanochat.")
    return f"{statistics.median(values):g}, {ninetieth}, {values[-1]} (`{longest}`)"


def lines_of(root: Path) -> dict[str, dict[str, int]]:
    """Lines by room, of `src`, `conf` and `tests`: {"src": {"gpt": 2000, …}, …}."""
    found: dict[str, dict[str, int]] = {}
    for top, base in (
        ("src", root / "src" / "nanochat"),
        ("conf", root / "conf"),
        ("tests", root / "tests"),
    ):
        count: Counter[str] = Counter()
        for path in base.rglob("*"):
            if path.suffix in (".py", ".yaml", ".js", ".css") and path.is_file():
                inside = path.relative_to(base).parts
                count[inside[0] if len(inside) > 1 else "(top)"] += path.read_text().count("\n")
        found[top] = dict(count)
    return found


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Rows as a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def line_table(sides: list[tuple[str, dict[str, dict[str, int]]]]) -> str:
    rows = []
    for top in ("src", "conf", "tests"):
        names = sorted({room for _, found in sides for room in found[top]})
        for name in names:
            rows.append([f"{top}/{name}", *(f"{found[top].get(name, 0):,}" for _, found in sides)])
        rows.append([f"**{top}**", *(f"**{sum(found[top].values()):,}**" for _, found in sides)])
    return table(["lines", *(name for name, _ in sides)], rows)


# ---- the picture

WIDTH, MARGIN, ROW, BOX = 1180, 20, 118, 50  # pixels
LEAST, PER_LINE = 92.0, 0.07  # width of a box: pixels, and pixels for each line of its room
COLOURS = "#4e79a7 #76b7b2 #59a14f #b07aa1 #9c755f #edc948 #f28e2b #8c8c8c #4e79a7".split()
WRONG = "#d62728"


def picture(code: Code, levels: list[list[str]], title: str) -> str:
    """An SVG: a row of boxes for each floor, as wide as their rooms have lines; an arrow for each
    pair of rooms that imports."""
    lines, between = code.rooms(), code.between_rooms()
    levels = [[room for room in rooms if room in lines] for rooms in levels]
    if missing := sorted(set(lines) - {room for rooms in levels for room in rooms}):
        levels.append(missing)
    boxes: dict[str, tuple[float, float, float, int]] = {}  # x, y, width, floor
    for number, rooms in enumerate(levels):
        widths = [max(LEAST, lines[room] * PER_LINE) for room in rooms]
        gap = (WIDTH - sum(widths)) / (len(rooms) + 1)
        x = gap
        for room, width in zip(rooms, widths, strict=True):
            boxes[room] = (x, 60 + number * ROW, width, number)
            x += width + gap
    height = 60 + len(levels) * ROW
    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="sans-serif">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="28" font-size="18">{title}</text>',
        f'<text x="{MARGIN}" y="46" font-size="12" fill="#555">A box is a room, as wide as it has '
        "lines; an arrow points at "
        "what is imported, thicker for more imports; dashed: only by a name in a string; red: up, "
        "against the floors</text>",
    ]
    for number in range(len(levels)):
        y = 60 + number * ROW - 8
        out.append(f'<rect x="0" y="{y}" width="{WIDTH}" height="{BOX + 16}" fill="#f3f3f3"/>')
    for (source, target), ones in sorted(between.items(), key=lambda pair: is_up(boxes, *pair[0])):
        out.append(arrow(boxes, source, target, ones))
    for room, (x, y, width, number) in boxes.items():
        colour = COLOURS[number % len(COLOURS)]
        files = sum(code.room(m) == room for m in code.files if m != "nanochat")
        out.append(
            f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{BOX}" rx="5" fill="white" '
            f'stroke="{colour}" '
            f'stroke-width="2"/><text x="{x + width / 2:.0f}" y="{y + 21}" font-size="14" '
            f'text-anchor="middle">{room}'
            f'</text><text x="{x + width / 2:.0f}" y="{y + 39}" font-size="11" fill="#555" '
            'text-anchor="middle">'
            f"{lines[room]:,} in {files}</text>"
        )
    return "\n".join([*out, "</svg>\n"])


def is_up(boxes: Mapping[str, tuple[float, float, float, int]], source: str, target: str) -> bool:
    return boxes[target][3] < boxes[source][3]


def arrow(
    boxes: Mapping[str, tuple[float, float, float, int]],
    source: str,
    target: str,
    ones: list[Import],
) -> str:
    """From the lower edge of one box to the upper edge of another; within a floor an arc below
    it."""
    names = list(boxes)
    (x1, y1, w1, f1), (x2, y2, w2, f2) = boxes[source], boxes[target]
    shift = (
        (names.index(target) + 1) / (len(names) + 1),
        (names.index(source) + 1) / (len(names) + 1),
    )
    # so that the arrows of a box do not meet in one point
    a, b = (x1 + w1 * shift[0], x2 + w2 * shift[1])
    up = is_up(boxes, source, target)
    if f1 == f2:
        path = (
            f"M{a:.0f},{y1 + BOX} C{a:.0f},{y1 + BOX + 34} {b:.0f},{y1 + BOX + 34} "
            f"{b:.0f},{y1 + BOX + 3}"
        )
    elif up:
        path = f"M{a:.0f},{y1} C{a:.0f},{y1 - 50} {b:.0f},{y2 + BOX + 50} {b:.0f},{y2 + BOX + 3}"
    else:
        path = f"M{a:.0f},{y1 + BOX} C{a:.0f},{y1 + BOX + 50} {b:.0f},{y2 - 50} {b:.0f},{y2 - 3}"
    colour = WRONG if up else COLOURS[f1 % len(COLOURS)]
    dash = (
        ' stroke-dasharray="4 3"' if all(one.how == "by a name in a string" for one in ones) else ""
    )
    width = 2.5 if up else 0.6 + 0.5 * math.log2(len(ones) + 1)
    said = f"{source} → {target}: {len(ones)} imports"
    end = y1 + BOX if f1 == f2 else (y2 + BOX if up else y2)
    tip = (
        f"{b - 3:.0f},{end + 7} {b + 3:.0f},{end + 7}"
        if f1 == f2 or up
        else f"{b - 3:.0f},{end - 7} {b + 3:.0f},{end - 7}"
    )
    return (
        f'<g><title>{said}</title><path d="{path}" fill="none" stroke="{colour}" '
        f'stroke-width="{width:.1f}" '
        f'opacity="{1 if up else 0.55}"{dash}/><polygon points="{b:.0f},{end} {tip}" '
        f'fill="{colour}"/></g>'
    )


# ---- the command


def of_commit(commit: str, place: Path) -> Path:
    """The `src`, `conf` and `tests` of a commit, written to a folder."""
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "src", "conf", "tests"],
        check=True,
        capture_output=True,
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(place, filter="data")
    return place


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Draw the imports between rooms and print sizes, as Markdown."
    )
    parser.add_argument(
        "--against", metavar="COMMIT", help="also draw this commit, and print its figures first"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="where the pictures go"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="also name the long files and functions, and what is wrong",
    )
    given = parser.parse_args()
    levels = floors()
    with tempfile.TemporaryDirectory() as place:
        roots = {"after": ROOT}
        if given.against:
            roots = {"before": of_commit(given.against, Path(place)), **roots}
        codes = {name: read(root / "src") for name, root in roots.items()}
        sizes = [(name, lines_of(root)) for name, root in roots.items()]
    here = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=, changed"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    for name, code in codes.items():
        said = f"commit {given.against}" if name == "before" else f"commit {here}"
        (given.out / f"{name}.svg").write_text(
            picture(code, levels, f"Imports of nanochat, {said}")
        )
    found = {name: figures(code, levels) for name, code in codes.items()}
    print(table(["", *codes], [[key, *(f[key] for f in found.values())] for key in found["after"]]))
    print("\n" + line_table(sizes))
    if given.list:
        code = codes["after"]
        print(
            "\nlong files:",
            *(f"{m} {n}" for m, n in code.files.items() if n > LONG_FILE),
            sep="\n  ",
        )
        print(
            "long functions:",
            *(f"{m} {n}" for m, n in code.functions.items() if n > LONG_FUNCTION),
            sep="\n  ",
        )
        print("module-level code that does work:", *code.work, sep="\n  ")
        print(
            "imports that point up:",
            *(f"{i.source}:{i.line} → {i.target}, {i.how}" for i in upward(code, levels)),
            sep="\n  ",
        )
        print("cycles of files:", *cycles((i.source, i.target) for i in code.imports), sep="\n  ")


if __name__ == "__main__":
    main()
