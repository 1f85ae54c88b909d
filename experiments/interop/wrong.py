"""What malicious pickles and wrong folders give when they are opened:
`python experiments/interop/wrong.py` prints the tables of README.md.

The files are those of the tests (`tests/interop`). Each is opened as `ckpt=` opens it. A pickle
that runs leaves a file behind, which is looked for; so is a converted model.
"""

import contextlib
import io
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "interop"))
import gpt2_files
import original_files
import test_gpt2
import test_original_folders
import test_tiktoken_pickle

from nanochat.checkpoint.runs import resolve

MODEL = "model_000010.pt"


def opened(text: str, place: Path) -> str:
    """The line that opening it gives, without the folder's name; with what it
    did if it did anything."""
    os.environ["NANOCHAT_BASE_DIR"] = str(place / "base")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            line = f"OPENED: {resolve(text, place / 'base' / 'runs')} {said.getvalue()}"
        except ValueError as error:
            line = str(error)
        except Exception as error:
            line = f"TRACEBACK: {type(error).__name__}: {error}"
    left = [path.name for path in (place / "mark", place / "base" / "imported") if path.exists()]
    done = f" **left behind: {', '.join(left)}**" if left else ""
    return (
        line.replace(f"{place}/", "")
        .replace(f"{place.parent}/", "")
        .replace("|", "\\|")
        .replace("\n", " ⏎ ")[:300]
        + done
    )


def pickles(place: Path) -> None:
    print("| pickle | as | said |\n|---|---|---|")
    attacks = test_tiktoken_pickle.attacks(place / "mark")
    source = original_files.write(place)
    file, model = place / "tokenizer" / "tokenizer.pkl", (source / MODEL).read_bytes()
    for name, content in attacks.items():
        file.write_bytes(content)
        print(f"| {name} | `tokenizer.pkl` | {opened(str(source), place)} |")
    original_files.write(place)
    bad = test_tiktoken_pickle._Reduce(os.system, f"touch {place / 'mark'}")
    for name, content in {
        "os.system": attacks["os.system"],
        "hidden among the weights": None,
    }.items():
        if content is None:
            weights = torch.load(io.BytesIO(model), weights_only=True)
            torch.save({**weights, "extra": bad}, source / MODEL)
        else:
            (source / MODEL).write_bytes(content)
        print(f"| {name} | `{MODEL}` | {opened(str(source), place)} |")


def folders(place: Path) -> None:
    print("\n| folder of the original | said |\n|---|---|")
    for number, (name, (spoil, _)) in enumerate(test_original_folders.WRONG.items()):
        here = place / str(number)
        source = original_files.write(here)
        spoil(source)
        print(f"| {name} | {opened(str(source), here)} |")
    here = place / "steps"
    source = original_files.write(here, step=10)
    original_files.write(here, step=20)
    original_files.write(here, tag="d6")
    for name, text in {
        "two steps": source,
        "a step that is not there": f"{source}:30",
        "two models": here,
        "no folder at all": here / "d99",
    }.items():
        print(f"| {name} | {opened(str(text), here)} |")
    print("\n| GPT-2 of the hub | said |\n|---|---|")
    for number, (name, (spoil, _)) in enumerate(test_gpt2.WRONG.items()):
        here = place / f"hub{number}"
        source = gpt2_files.write_gpt2(here / "gpt2")
        spoil(source)
        print(f"| {name} | {opened(f'hf:{source}', here)} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.pop("NANOCHAT_HUB_DIR", None)
    with tempfile.TemporaryDirectory() as name:
        pickles(Path(name) / "pickles")
        folders(Path(name))
