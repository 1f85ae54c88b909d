"""The original compared with ours, number by number: `python experiments/parity/run.py ERA=DIR …`.

DIR is a checkout of the original at a commit of that era: classic, e1 to e5, modern (`peer` is
modern). Prints one table per checkout, and with `peer=` a table of the original's own tests on our
classes (shims.py). `parts=numbers_fp64,plan` runs only these. Needs no network, GPU or compiler;
with NANOCHAT_HUB_DIR the tasks are compared on real rows, without it on made ones. Every part has a
time limit, and one that fails is a row of its table.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

HERE = Path(__file__).parent
ERAS = ("classic", "e1", "e2", "e3", "e4", "e5", "modern")
TESTS = ("engine", "tokenizer", "tasks", "execution", "optim")  # of those the original has
# part -> seconds for both sides together
PARTS = {
    "numbers_fp32": 900,
    "numbers_fp64": 900,
    "numbers_bf16": 600,
    "greedy": 600,
    "plan": 600,
    "chats": 600,
    "tasks": 600,
    "tests": 900,
}
WHOLE = ("plan", "chats", "tasks")  # compared for the two generations that a run here can be of
# whose code has a compute dtype; before March 2026 it was autocast, on CUDA alone
CAST = ("e4", "e5", "modern")


def environment(place: Path) -> dict[str, str]:
    # more than there are free cores makes tiny products a hundred times slower
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    path = os.pathsep.join((str(HERE), str(HERE.parents[1] / "src")))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": threads,
        "TORCHDYNAMO_DISABLE": "1",
        "NANOCHAT_BASE_DIR": str(place),
    }


def call(words: list[str], place: Path, seconds: float) -> tuple[str, str]:
    """(its output, why it failed or "")."""
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=place,
            env=environment(place),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return "", f"not finished after {seconds:.0f} s"
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return done.stdout, f"exit {done.returncode}: {last}" if done.returncode else ""


def compare(era: str, checkout: Path, parts: list[str]) -> None:
    print(f"## {era}\n\n| what | difference to the original | of |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        _, failed = call([str(HERE / "ours.py"), "prepare", era, name], place, 300)
        if failed:
            sys.exit(f"error: a tokenizer could not be trained: {failed}")
        for part in parts:
            if (part in WHOLE and era not in ("classic", "modern")) or (
                part == "numbers_bf16" and era not in CAST
            ):
                continue
            _, failed = call(
                [str(HERE / "theirs.py"), part, era, str(checkout), name], place, PARTS[part] / 2
            )
            found, side = "", "the original"
            if not failed:
                found, failed = call(
                    [str(HERE / "ours.py"), part, era, name], place, PARTS[part] / 2
                )
                side = "ours"
            print(found, end="")
            if failed:
                print(f"| {part} | {side}: {failed[:200].replace('|', ' ')} | |")
            sys.stdout.flush()
    print()


def their_tests(peer: Path) -> None:
    print(
        "## Its tests on our classes\n\n| test of the original | on our classes | why "
        "|\n|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        report = place / "report.xml"
        files = [path for test in TESTS if (path := peer / "tests" / f"test_{test}.py").exists()]
        words = (
            "-m pytest -p shims -p no:cacheprovider -p no:xdist --import-mode=importlib -q "
            "--tb=line"
        ).split()
        _, failed = call(
            [*words, "-c", os.devnull, f"--junitxml={report}", *map(str, files)],
            place,
            PARTS["tests"],
        )
        if not report.exists():
            print(f"| all | failed | {failed[:200]} |\n")
            return
        cases = list(xml.parse(report).getroot().iter("testcase"))
    counts = {"passed": 0, "failed": 0, "not comparable": 0}
    for case in cases:
        skipped, broken = case.find("skipped"), case.find("failure")
        broken = case.find("error") if broken is None else broken
        kind = (
            "not comparable"
            if skipped is not None
            else "failed"
            if broken is not None
            else "passed"
        )
        counts[kind] += 1
        found = skipped if skipped is not None else broken
        why = (
            ""
            if found is None
            else " ".join((found.get("message") or "").split())[:160].replace("|", "\\|")
        )
        print(f"| {case.get('name', '').replace('|', ' ')} | {kind} | {why} |")
    print(f"\n{', '.join(f'{n} {kind}' for kind, n in counts.items())}, of {len(cases)}\n")


if __name__ == "__main__":
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    parts = given.pop("parts", ",".join(PARTS)).split(",")
    if not given or set(given) - {"peer", *ERAS} or set(parts) - set(PARTS):
        sys.exit(
            "error: give ERA=DIR, a checkout of the original, for one or more of peer, "
            f"{', '.join(ERAS)}; parts= of {', '.join(PARTS)}"
        )
    for name, folder in given.items():
        if not (Path(folder) / "nanochat" / "gpt.py").is_file():
            sys.exit(
                f"error: {name}={folder} is no checkout of the original: it has no nanochat/gpt.py"
            )
    for name, folder in given.items():
        if compared := [part for part in parts if part != "tests"]:
            compare("modern" if name == "peer" else name, Path(folder).absolute(), compared)
        if "tests" in parts and name == "peer":
            their_tests(Path(folder).absolute())
