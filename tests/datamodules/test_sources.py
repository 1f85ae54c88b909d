import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.datamodules import sources
from nanochat.datamodules.readers import cut, spans
from nanochat.datamodules.sources import LocalFiles


def parquet(path, texts, field="text", rows=None):
    pq.write_table(
        pa.table({field: texts, "number": list(range(len(texts)))}), path, row_group_size=rows or 10
    )
    return path


def read(source, split="train"):
    return list(source.documents(split))


def both(source):
    return read(source, "train") + read(source, "val")


def test_every_kind_of_file_is_read(tmp_path):
    parquet(tmp_path / "a.parquet", ["one", "two", None, " "])
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n\n"four"\n')
    (tmp_path / "c.json").write_text(json.dumps([{"text": "five"}, "six"]))
    (tmp_path / "d.json").write_text(json.dumps({"version": 1, "data": [{"text": "seven"}]}))
    (tmp_path / "e.txt").write_text("eight\n\nstill eight")
    (tmp_path / "f.md").write_bytes(b"\xef\xbb\xbfnine")
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(b'{"text": "ten"}\n'))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "h.txt").write_text("eleven")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "i.txt").write_text("not me")
    (tmp_path / "picture.png").write_bytes(b"")
    source = LocalFiles(tmp_path)
    words = {
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight\n\nstill eight",
        "nine",
        "ten",
        "eleven",
    }
    assert set(both(source)) == words
    assert source.skipped == {".png": 1, "hidden": 1}
    notes = Counter()
    for part in source.parts("train"):
        list(source.read(part, "train", notes))
    assert notes["empty_documents"] == 2


def test_a_glob_and_a_file_are_paths_too(tmp_path):
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text(name)
    assert set(both(LocalFiles(f"{tmp_path}/*.txt"))) == {"a.txt", "b.txt"}
    assert both(LocalFiles(tmp_path / "c.md")) == ["c.md"]


def test_a_text_file_by_paragraph_and_by_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n \nthree\n")
    assert sorted(both(LocalFiles(tmp_path, documents="paragraph"))) == ["one\ntwo", "three\n"]
    assert sorted(both(LocalFiles(tmp_path, documents="line"))) == ["one", "three", "two"]


def test_the_tail_is_nanogpts_split(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1_115))
    (tmp_path / "input.txt").write_text(text)
    source = LocalFiles(tmp_path / "input.txt", val_by="tail", val_fraction=0.1)
    assert read(source) == [text[: int(len(text) * 0.9)]]
    assert read(source, "val") == [text[int(len(text) * 0.9) :]]


def test_a_document_stays_on_its_side(tmp_path, texts):
    parquet(tmp_path / "a.parquet", texts(300, 1))
    before = LocalFiles(tmp_path, val_fraction=0.1)
    train, val = read(before), read(before, "val")
    assert 10 < len(val) < 60
    # under another name, and there again, and beside others
    (tmp_path / "a.parquet").rename(tmp_path / "z.parquet")
    parquet(tmp_path / "b.parquet", texts(300, 2) + val[:3] + train[:3])
    after = LocalFiles(tmp_path, val_fraction=0.1)
    assert set(val) <= set(read(after, "val"))
    assert set(train) <= set(read(after))
    assert not set(read(after)) & set(read(after, "val"))
    assert read(after, "val").count(val[0]) == 2  # an exact copy is on the same side


def test_names_do_not_matter_to_validation(tmp_path, texts):
    for name in "abc":
        parquet(tmp_path / f"{name}.parquet", texts(100, ord(name)))
    val = read(LocalFiles(tmp_path, val_fraction=0.2), "val")
    for name, other in zip("abc", "zyx", strict=True):
        (tmp_path / f"{name}.parquet").rename(tmp_path / f"{other}.parquet")
    assert read(LocalFiles(tmp_path, val_fraction=0.2), "val") == val


def test_validation_files_by_name(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    source = LocalFiles(tmp_path, val_path=tmp_path / "c.txt")
    assert (read(source), read(source, "val")) == (["a.txt", "b.txt"], ["c.txt"])


def test_small_files_are_read_together_and_large_ones_in_pieces(tmp_path, texts, monkeypatch):
    many = texts(500)
    for i in range(40):
        (tmp_path / f"{i:02d}.txt").write_text(many[i])
    (tmp_path / "large.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in many[40:300])
    )
    parquet(tmp_path / "large.parquet", many[300:], rows=16)
    whole = both(LocalFiles(tmp_path))
    assert sorted(whole) == sorted(many)
    monkeypatch.setattr(LocalFiles, "group_bytes", 2_000)
    monkeypatch.setattr(LocalFiles, "part_bytes", 5_000)
    source = LocalFiles(tmp_path)
    names = [part.name for part in source.parts("train")]
    assert any("+" in name for name in names)
    assert sum(name.startswith("large.jsonl~") for name in names) > 2
    assert sum(name.startswith("large.parquet~") for name in names) > 2
    assert read(source) == read(LocalFiles(tmp_path))
    assert sorted(both(source)) == sorted(many)


@pytest.mark.parametrize("part_bytes", [1, 7, 50, 1000])
def test_pieces_of_json_lines_hold_every_line_once(tmp_path, part_bytes):
    lines = [json.dumps("é" * (i % 9) + str(i)) for i in range(30)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    source = LocalFiles(tmp_path)
    pieces = spans(path, part_bytes)
    found = [t for span in pieces for t in sources.read_rows(path, "text", span, Counter())]
    assert found == [json.loads(line) for line in lines]
    assert sorted(both(source)) == sorted(found)


def test_long_documents_are_cut_at_ends_and_nothing_is_lost(tmp_path):
    text = "\n\n".join("word " * n for n in (30, 5, 80, 1, 200)) + "x" * 500
    pieces = list(cut(text, 100))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 100
    assert pieces[0].endswith(" ")
    (tmp_path / "a.txt").write_text(text)
    assert both(LocalFiles(tmp_path, document_chars=100)) == pieces


def test_lone_surrogates_become_the_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    notes = Counter()
    source = LocalFiles(tmp_path, val_fraction=1e-9)
    assert list(source.read(source.parts("train")[0], "train", notes)) == ["a\ufffdb 😀"]
    assert notes["replaced_characters"] == 1


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 and more")
    with pytest.raises(
        ValueError, match=r"a.txt is not UTF-8 at byte 3; convert it, or set data.bad_utf8=replace"
    ):
        both(LocalFiles(tmp_path))
    notes = Counter()
    source = LocalFiles(tmp_path, bad_utf8="replace", val_fraction=1e-9)
    assert list(source.read(source.parts("train")[0], "train", notes)) == ["caf\ufffd and more"]
    assert notes["replaced_characters"] == 1


def test_the_manifest_is_of_content_and_settings(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    first = LocalFiles(tmp_path).manifest_hash
    assert LocalFiles(tmp_path).manifest_hash == first
    assert LocalFiles(tmp_path, document_chars=7).manifest_hash != first
    (tmp_path / "a.txt").write_text("two and more")
    assert LocalFiles(tmp_path).manifest_hash != first


@pytest.mark.parametrize("path", ["texts", "texts/*.txt", "texts/a.txt"])
def test_a_relative_path_is_of_the_folder_it_was_given_in(tmp_path, monkeypatch, path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one")
    monkeypatch.chdir(tmp_path)
    source = LocalFiles(path, val_fraction=1e-9)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert list(source.documents("train")) == ["one"]
    assert source.origin() == {"path": str(tmp_path / path), "val_path": None}
    again = LocalFiles(**source.origin(), val_fraction=1e-9)
    assert again.manifest_hash == source.manifest_hash


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda d: None, {}, "has no text file .*; it is empty"),
        (lambda d: (d / "a.csv").write_text("x"), {}, "has no text file .*; it holds .csv"),
        (
            lambda d: (d / "a.parquet").write_bytes(b"PAR1 no"),
            {},
            r"a.parquet is not a readable parquet file \(",
        ),
        (
            lambda d: parquet(d / "a.parquet", ["x"], "content"),
            {},
            "text_field=text is not a column.*columns are: content",
        ),
        (
            lambda d: parquet(d / "a.parquet", ["x"]),
            {"text_field": "number"},
            "number is of type int64, not text, in.*are: text",
        ),
        (
            lambda d: (d / "a.jsonl").write_text('{"text": "x"}\n{oops'),
            {},
            "a.jsonl line 2 is not JSON",
        ),
        (
            lambda d: (d / "a.jsonl").write_text('{"body": "x"}'),
            {},
            "line 1 has no field text; it has: body; set data.t",
        ),
        (lambda d: (d / "a.jsonl").write_text('{"text": 5}'), {}, "field text is a int, not text"),
        (lambda d: (d / "a.jsonl").write_text("5"), {}, "line 1 is a int; it should be an object"),
        (lambda d: (d / "a.json").write_text("[1"), {}, "a.json is not JSON"),
        (
            lambda d: (d / "a.txt").write_text("x"),
            {"documents": "word"},
            "documents=word is not known; choose data.doc",
        ),
        (
            lambda d: (d / "a.json").write_text("[]"),
            {"documents": "line"},
            "documents=line is for .txt and .md files",
        ),
        (
            lambda d: (d / "a.txt").write_text("x"),
            {"text_field": "body"},
            "text_field=body is for parquet and JSON",
        ),
        (
            lambda d: (d / "a.json").write_text("[]"),
            {"val_by": "tail"},
            "val_by=tail is for .txt and .md files, not .json",
        ),
        (lambda d: (d / "a.txt").write_text("x"), {"val_by": "luck"}, "val_by=luck is not known"),
        (
            lambda d: (d / "a.txt").write_text("x"),
            {"val_fraction": 1.5},
            "val_fraction=1.5 is not between 0 and 1",
        ),
        (
            lambda d: (d / "a.txt").write_text("x"),
            {"bad_utf8": "skip"},
            "bad_utf8=skip is not known",
        ),
        (
            lambda d: (d / "a.txt").write_text("x"),
            {"document_chars": 0},
            "document_chars=0 is below 1",
        ),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, make, options, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        both(LocalFiles(tmp_path, **options))
    assert "\n" not in str(caught.value)


def test_bad_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"matches no file; set data\.path"):
        LocalFiles(tmp_path / "none")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"a\.csv has no known suffix; text files are \.parquet"):
        LocalFiles(tmp_path / "a.csv")


def test_what_can_be_checked_early_is(tmp_path):
    parquet(tmp_path / "a.parquet", ["x"], "content")
    with pytest.raises(ValueError, match="is not a column"):
        LocalFiles(tmp_path).check()
    with pytest.raises(ValueError, match="is damaged"):
        damaged(tmp_path / "b.parquet")


def damaged(path):
    pq.write_table(
        pa.table({"text": [f"{i} {'x' * 50}" for i in range(5000)]}), path, compression="zstd"
    )
    raw = bytearray(path.read_bytes())
    raw[40:3000] = bytes(2960)
    path.write_bytes(raw)
    list(sources.read_rows(path, "text", None, Counter()))
