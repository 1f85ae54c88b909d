"""Text as users have it: line ends, packed files, columns of all types, one long file, and what is
said about it."""

import gzip
import json
import logging
import re
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.datamodules.byte_tokenizer import ByteTokenizer

from nanochat.datamodules import text
from nanochat.datamodules.readers import read_rows, split_text
from nanochat.datamodules.sources import LocalFiles, find_files
from nanochat.runtime.files import text_lines
from nanochat.tokenizer import train_bpe, train_or_load

NO_LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_line_ends_only(end):
    lines = [f"{i}{NO_LINE_ENDS}{i}" for i in range(100)]
    for last in ("", end):
        assert (
            list(split_text(end.join(lines) + last, "line"))
            == text_lines(end.join(lines) + last)
            == lines
        )
    paragraphs = [f"  {line}{end}\u3000x" for line in lines]
    assert list(split_text(f"{end} {end}".join(paragraphs), "paragraph")) == paragraphs, (
        "the indentation belongs to it"
    )


def test_what_is_passed_over_is_counted_by_ending(tmp_path):
    for name in (
        "a.txt",
        "b.TXT",
        "c.csv",
        "d.csv",
        "e.html",
        "f.jsonl.lz4",
        "README",
        ".hidden.txt",
        ".git/x.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found, passed = find_files(tmp_path)
    assert len(found) == 2 and passed == {
        ".csv": 2,
        ".html": 1,
        ".jsonl.lz4": 1,
        "readme": 1,
        "hidden": 2,
    }
    assert LocalFiles(tmp_path).notes() == [
        "passed over: 2 .csv, 1 .html, 1 .jsonl.lz4, 2 hidden, 1 readme"
    ]


def packed(path, raw: bytes) -> None:
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(raw)
    else:
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_packed_files_hold_the_same_documents(tmp_path, ending):
    texts = [f"document {i} " + "y" * i for i in range(2000)]
    packed(
        tmp_path / f"a.jsonl{ending}", "\n".join(json.dumps({"text": t}) for t in texts).encode()
    )
    packed(tmp_path / f"b.json{ending}", json.dumps(texts).encode())
    packed(tmp_path / f"c.txt{ending}", "\n".join(texts).encode())
    for name in ("a.jsonl", "b.json"):
        assert list(read_rows(tmp_path / (name + ending), "text", None, Counter())) == texts
    source = LocalFiles(tmp_path / f"c.txt{ending}", documents="line", val_fraction=0.2)
    assert sorted([*source.documents("train"), *source.documents("val")]) == sorted(texts)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "txt"])
def test_a_damaged_packed_file_is_named(tmp_path, ending, kind):
    whole, path = tmp_path / f"whole.{kind}{ending}", tmp_path / f"cut.{kind}{ending}"
    noise = np.random.default_rng(0).integers(0, 2**62, 4000)
    packed(whole, "\n".join(json.dumps({"text": str(n)}) for n in noise).encode())
    path.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(
        ValueError,
        match=(
            rf"cut\.{kind}{ending} is damaged( after line [\d,]+)? \(.*download or write it "
            r"again"
        ),
    ):
        list(LocalFiles(path, val_by="hash").documents("train"))


STRINGS = ["one", "zwei ä", None, "three"]
TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.struct([("text", pa.string())]),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_columns_of_text_however_they_are_stored(tmp_path, kind):
    inside = pa.types.is_struct(kind)
    values = [{"text": s} if s else None for s in STRINGS] if inside else STRINGS
    plain = pa.array(values, kind if inside else pa.string())
    column = (
        plain
        if inside
        else plain.dictionary_encode()
        if pa.types.is_dictionary(kind)
        else plain.cast(kind)
    )
    pq.write_table(pa.table({"doc": column, "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    field = "doc.text" if inside else "doc"
    assert list(read_rows(tmp_path / "a.parquet", field, None, Counter())) == [
        s for s in STRINGS if s
    ]
    with pytest.raises(
        ValueError,
        match=f"text_field=n is of type int64, not text, in .*; its text columns are: {field}; set",
    ):
        list(read_rows(tmp_path / "a.parquet", "n", None, Counter()))


def test_bytes_that_are_no_text_and_nested_json(tmp_path):
    pq.write_table(pa.table({"text": [b"ok", b"\xff\xfe"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: the bytes of row 1 are not UTF-8 at byte 0"):
        list(read_rows(tmp_path / "a.parquet", "text", None, Counter()))
    (tmp_path / "a.jsonl").write_text('{"doc": {"text": "x"}, "a.b": "y"}')
    assert [
        list(read_rows(tmp_path / "a.jsonl", f, None, Counter())) for f in ("doc.text", "a.b")
    ] == [["x"], ["y"]]


LONG = "".join(
    f"Line {i} of a play, said by somebody to somebody else.\n" + "\n" * (i % 7 == 0)
    for i in range(3000)
)


def local(path, **options):
    auto = {"document_chars": "auto", "val_by": "auto", "val_fraction": "auto"}
    return text.local(
        str(path), **{**auto, "sequence_len": 64, "num_workers": 0, "prepare_workers": 0, **options}
    )


def test_one_txt_simply_works_and_says_how_it_was_split(tmp_path):
    (tmp_path / "input.txt").write_text(LONG)
    data = local(tmp_path / "input.txt")
    train, val = ("".join(data.source.documents(split)) for split in ("train", "val"))
    assert train + val == LONG and len(val) == len(LONG) - int(len(LONG) * 0.9)
    assert max(map(len, data.source.documents("train"))) <= 96, (
        "1.5 characters for a token of a row"
    )
    first, second = data.source.notes()
    assert first == (
        "for validation: the last 10% of each file (data.val_by=tail data.val_fraction=0.1 "
        "data.documents=file)"
    )
    assert "pieces of up to 96 characters" in second
    data.attach(ByteTokenizer(), batch_tokens=256)
    data.prepare_data()
    data.setup()
    by_lines = local(tmp_path / "input.txt", documents="line").source
    assert (
        by_lines.val_by == "hash"
        and by_lines.document_chars is None
        and "10% of the documents" in by_lines.notes()[0]
    )


def test_the_tokenizer_does_not_depend_on_the_length_of_a_row(tmp_path):
    (tmp_path / "input.txt").write_text(LONG)
    heads = [local(tmp_path / "input.txt", sequence_len=T).source.head(None) for T in (64, 512)]
    assert heads[0].manifest() == heads[1].manifest()
    assert max(map(len, heads[0].documents("train"))) > 5_000
    assert "".join(heads[0].documents("train")) == LONG[: int(len(LONG) * 0.9)]


def test_auto_leaves_rows_of_data_sets_as_they_were(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{i} " + "w " * 500}) for i in range(300))
    )
    assert local(tmp_path).source.manifest() == LocalFiles(tmp_path).manifest()
    assert local(tmp_path, packing="stream").source.manifest() == LocalFiles(tmp_path).manifest()


def test_a_single_document_is_told_what_can_help(tmp_path):
    (tmp_path / "input.txt").write_text(LONG)
    data = local(tmp_path / "input.txt", val_by="hash", val_fraction=0.01)
    data.attach(ByteTokenizer(), batch_tokens=256)
    data.prepare_data()
    with pytest.raises(ValueError, match="val split has 0 tokens") as error:
        data.setup()
    assert "set data.val_by=tail or data.documents=paragraph or data.val_path=FILE" in str(
        error.value
    )
    assert "raise data.val_fraction" not in str(error.value)


def test_a_plan_that_crops_much_says_so_first_and_how_much(tmp_path):
    (tmp_path / "input.txt").write_text(LONG * 3)
    tokenizer = train_bpe([LONG], 300, max_chars=None, doc_cap=None)  # 2.5 characters a token
    for options in ({}, {"packing": "stream"}):
        assert not any(
            "crop" in note for note in local(tmp_path / "input.txt", **options).notes(tokenizer)
        )
    (tmp_path / "a.jsonl").write_text(
        "\n".join(
            json.dumps({"text": f"{i} " + LONG[i * 9 : i * 9 + 40 + i % 300]}) for i in range(3000)
        )
    )
    data = local(tmp_path / "a.jsonl", val_fraction=0.1)
    (note,) = data.notes(ByteTokenizer())
    data.attach(ByteTokenizer(), batch_tokens=256)
    data.prepare_all()
    tally = data.rows("train").epoch_tally()
    said = int(
        re.search(
            (
                r"about (\d+)% of the tokens.*data.packing=stream crops none, "
                r"data.document_chars=25 few"
            ),
            note,
        )[1]
    )
    # the order of the documents is another
    assert abs(said - 100 * tally.tokens_cropped / tally.tokens_read) < 3


def test_a_vocabulary_nobody_typed_adapts_to_the_text(tmp_path, caplog):
    (tmp_path / "input.txt").write_text(LONG[:20_000])
    source = local(tmp_path / "input.txt").source
    for _ in range(2):  # made, and found again
        caplog.clear()
        with caplog.at_level(logging.INFO, "nanochat.data"):
            small = train_or_load(source, auto_vocab_size=8192)
        assert 265 < small.vocab_size < 8192
        assert (
            f"vocabulary: {small.vocab_size:,}, all that this text can fill "
            "(tokenizer.vocab_size=auto would be 8,192)"
        ) in caplog.messages
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match=(
                r"vocab_size=8,192 is more than this text can fill: .* set "
                rf"vocab_size={small.vocab_size} or less"
            ),
        ):
            train_or_load(source, vocab_size=8192)
    assert train_or_load(source, auto_vocab_size=300).vocab_size == 300
    small.save(tmp_path / "tok")
    assert train_or_load(source, path=tmp_path / "tok", auto_vocab_size=8192).hash == small.hash


def test_a_token_outside_the_vocabulary_is_one_line_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_CHECK_HASHES", "false")  # else it is made again from its text
    (tmp_path / "input.txt").write_text(LONG)
    data = local(tmp_path / "input.txt")
    data.attach(ByteTokenizer(), batch_tokens=256)
    data.prepare_all()
    (file,) = data.folder.folder.glob("train-*.bin")
    tokens = np.fromfile(file, np.uint16)
    tokens[::7] = 40_000
    shutil.move(file, tmp_path / "old")
    tokens.tofile(file)
    with pytest.raises(
        ValueError,
        match=(
            rf"the token shard {re.escape(str(file))} holds the token 40,000, and the vocabulary "
            r"has 265"
        ),
    ):
        data.batch(0)
