"""The original beside ours, number by number: `python experiments/parity/run.py peer=DIR [classic=DIR]`, DIR a checkout of the original.

`peer` is a commit of the modern generation, `classic` one of the classic generation (tried: 92d63d4, 10231df).
Runs its tests on our classes (shims.py), then compares the classic generation's logits and eight optimizer steps in fp32.
Needs no network, card or compiler.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

HERE = Path(__file__).parent
FILES = ("engine", "tokenizer", "tasks", "execution", "optim")


def their_tests(peer: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "shims", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull,
             "--import-mode=importlib", "-q", "--tb=line", f"--junitxml={report}",
             *(str(peer / "tests" / f"test_{name}.py") for name in FILES if (peer / "tests" / f"test_{name}.py").exists())],
            cwd=place, env={**os.environ, "PYTHONPATH": str(HERE), "NANOCHAT_BASE_DIR": place}, capture_output=True, text=True,
        )  # fmt: skip
        if not report.exists():
            sys.exit(done.stdout + done.stderr)
        cases = xml.parse(report).getroot().iter("testcase")
    print("| test of the original | on our classes | why |\n|---|---|---|")
    counts = {"passed": 0, "failed": 0, "not comparable": 0}
    for case in cases:
        skipped, failed = case.find("skipped"), case.find("failure")
        failed = case.find("error") if failed is None else failed
        kind = "not comparable" if skipped is not None else "failed" if failed is not None else "passed"
        counts[kind] += 1
        found = skipped if skipped is not None else failed
        why = "" if found is None else " ".join((found.get("message") or "").split())[:160].replace("|", "\\|")
        print(f"| {case.get('name').replace('|', ' ')} | {kind} | {why} |")
    print(f"\n{', '.join(f'{n} {kind}' for kind, n in counts.items())}, of {sum(counts.values())}\n")


def in_numbers(peer: Path, era: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        for script, path in (("theirs.py", str(peer)), ("ours.py", "")):
            # the original's modules have the name of ours, so each has a process of its own
            done = subprocess.run(
                [sys.executable, str(HERE / script), era, place],
                env={**os.environ, "PYTHONPATH": path, "TORCHDYNAMO_DISABLE": "1", "NANOCHAT_DTYPE": "float32"},
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"{script} {era} ended with {done.returncode}")


if __name__ == "__main__":
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if "peer" not in given or set(given) - {"peer", "classic"}:
        sys.exit("error: give peer=DIR, a checkout of the original, and classic=DIR where you have one of 2025")
    for name, folder in given.items():
        if not (Path(folder) / "nanochat" / "gpt.py").is_file():
            sys.exit(f"error: {name}={folder} is no checkout of the original: it has no nanochat/gpt.py")
    their_tests(Path(given["peer"]).absolute())
    if "classic" in given:
        in_numbers(Path(given["classic"]).absolute(), "classic")
