"""`python -m nanochat.tokenizer` and its table."""

import importlib
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

from nanochat.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_char
from nanochat.tokenizer.compression import compression_table, first_characters, reference_encodings
from nanochat.tokenizer.samples import SAMPLES


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command on a small folder of text, in this process."""
    text = tmp_path / "text"
    text.mkdir()
    for number in range(30):
        (text / f"{number}.txt").write_text(
            f"{number}: the cat sat on the mat and looked at the {number} other cats. " * 9
        )
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> None:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["tokenizer", "data=local", f"data.path={text}", *words])
        importlib.import_module("nanochat.tokenizer.__main__").main()

    return run


def test_command_trains_keeps_and_prints_the_table(command, tmp_path, capsys):
    command("vocab_size=300", "data.val_fraction=0.3", f"out={tmp_path / 'mine'}")
    printed = capsys.readouterr().out
    assert "trained in" in printed
    for word in (
        *SAMPLES,
        " train ",
        " val ",
        "bytes/token",
        "GPT-2 and GPT-4 not shown",
        str(tmp_path / "mine"),
    ):
        assert word in printed
    (kept,) = (tmp_path / "base" / "tokenizers").iterdir()
    assert load_tokenizer(kept).hash == load_tokenizer(tmp_path / "mine").hash
    assert load_tokenizer(kept).vocab_size == 300
    command("vocab_size=300", "data.val_fraction=0.3")
    assert "found, made before" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "mine", "text"]


def test_command_makes_a_character_table(command, capsys):
    command("kind=char")
    printed = capsys.readouterr().out
    assert "char tokenizer" in printed
    assert "unknown characters" in printed  # Korean


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vocab_size=100"], "vocab_size=100 is not a whole number from 265 up"),
        (["vocab_size=60000"], "set vocab_size="),
        (["kind=words"], "choose from bpe, char"),
        (["kind=char", "vocab_size=300"], "vocab_size=300 has no effect with kind=char"),
        (["doc_cap=0"], "doc_cap=0"),
        (["vocabsize=300"], "vocab_size"),
        (["data.path=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(command, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_table_compares_with_references():
    tokenizer = train_char(["abcd"], max_chars=None, doc_cap=None)
    table = compression_table(
        tokenizer, {"t": "abcdabcd", "strange": "é"}, {"half": lambda text: len(text) // 2}
    )
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    row = next(line for line in capture.get().splitlines() if " t " in line)
    for cell in ("8", "1.00", "2.00", "-100.0%"):
        assert cell in row
    assert "unknown characters" in capture.get()


def test_references_need_their_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    found, missing = reference_encodings()
    assert found == {}
    assert missing is not None
    assert "\n" not in missing
    assert "tiktoken.get_encoding('gpt2')" in missing


def test_first_characters_takes_whole_documents():
    assert first_characters(["abc", "def", "ghi"], 4) == "abc\ndef"
    assert first_characters([], 4) == ""


def test_samples_hold_no_special_token():
    assert not any(name in text for name in SPECIAL_TOKENS for text in SAMPLES.values())
