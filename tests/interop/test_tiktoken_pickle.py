"""`tokenizer.pkl`: the same ids as tiktoken gives, and nothing in a bad one is run."""

import collections
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from original_files import TEXT, encoding

from nanochat.interop.tiktoken_pickle import read_tokenizer
from nanochat.tokenizer.training import train_bpe

CALL = "touch {mark}"


def test_ids_are_tiktokens(tmp_path: Path) -> None:
    theirs, file = encoding(300), tmp_path / "tokenizer.pkl"
    file.write_bytes(pickle.dumps(theirs, protocol=4))
    ours = read_tokenizer(file)
    text = TEXT[0] + " Ünïcode 漢字 12345  \n\n <|bos|> don't"
    assert ours.encode(text) == theirs.encode_ordinary(text)
    assert ours.specials == {name: theirs.encode_single_token(name) for name in ours.specials}
    assert ours.merges == train_bpe(TEXT, vocab_size=300, max_chars=None, doc_cap=None).merges


class _Reduce:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


def _state(**changes: Any) -> bytes:
    """A pickled encoding with other contents."""
    changed = encoding()
    for name, value in changes.items():
        setattr(changed, f"_{name}" if name != "name" else name, value)
    return pickle.dumps(changed, protocol=4)


def attacks(mark: Path) -> dict[str, bytes]:
    command = CALL.format(mark=mark)
    stack_global = (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c"
        + bytes([len(command)])
        + command.encode()
        + b"\x85R."
    )
    return {
        "os.system": pickle.dumps(_Reduce(os.system, command)),
        "subprocess": pickle.dumps(_Reduce(subprocess.check_output, command.split())),
        "eval": pickle.dumps(_Reduce(eval, f"open({str(mark)!r}, 'w')")),
        "exec": pickle.dumps(_Reduce(exec, f"open({str(mark)!r}, 'w')")),
        "getattr": pickle.dumps(_Reduce(getattr, collections.OrderedDict, "fromkeys")),
        "open": pickle.dumps(_Reduce(open, str(mark), "w")),
        "protocol 0": f"cposix\nsystem\n(S'{command}'\ntR.".encode(),
        "written by hand": stack_global,
        "old instance": f"(S'{command}'\niposix\nsystem\n.".encode(),
        "hidden in the state": _state(special_tokens=_Reduce(os.system, command)),
        "a dotted name": b"\x80\x04\x8c\x0dtiktoken.core\x8c\x0bos.path.sys\x93.",
        "another of tiktoken": pickle.dumps(__import__("tiktoken").get_encoding),
        "persistent id": b"\x80\x04\x8c\x03abcQ.",
        "memory bomb": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",
        "deep": b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b".",
        "not a pickle": b"MZ\x90\x00",
        "empty": b"",
    }


@pytest.mark.parametrize("name", list(attacks(Path("x"))))
def test_bad_pickles_are_refused_with_a_line_and_not_run(name: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "run", tmp_path / "tokenizer.pkl"
    file.write_bytes(attacks(mark)[name])
    with pytest.raises(ValueError, match=r"tokenizer\.pkl is not a nanochat tokenizer") as refused:
        read_tokenizer(file)
    assert "\n" not in str(refused.value) and not mark.exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pat_str": r"\w+"}, "another split pattern"),
        ({"special_tokens": {"<|bos|>": 256}}, "nanochat's nine"),
        ({"mergeable_ranks": {b"a": 0}}, "ranks are not|first 256"),
        ({"mergeable_ranks": [1, 2]}, "not a dictionary"),
        (
            {"mergeable_ranks": {**{bytes([b]): b for b in range(256)}, b"xyz": 256}},
            "nine|not a merge",
        ),
    ],
)
def test_other_tokenizers_are_refused(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(_state(**changes))
    with pytest.raises(ValueError, match=why):
        read_tokenizer(file)
