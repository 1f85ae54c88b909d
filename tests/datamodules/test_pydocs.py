import os
import subprocess
import sys

import pytest

from nanochat.datamodules.pydocs import PyDocs, docstrings

SAY = "from nanochat.datamodules.pydocs import PyDocs; print(PyDocs().manifest_hash)"


@pytest.fixture(scope="module")
def source():
    return PyDocs()


@pytest.mark.slow
def test_the_default_corpus_is_prose_and_code_and_of_a_useful_size(source):
    train, val = (list(source.documents(split)) for split in ("train", "val"))
    size = sum(map(len, train))
    assert 8e6 < size < 30e6
    assert 0.01 < sum(map(len, val)) / size < 0.12
    assert max(map(len, train + val)) <= 2000
    text = "\n".join(train + val)
    assert 'The "if" statement is used for conditional execution' in text  # the language reference
    assert "heapq.heappush" in text  # docstrings of C code
    assert "argparse.ArgumentParser" in text  # docstrings of source
    assert "def namedtuple(" in text  # source
    assert not set(train) & set(val)


@pytest.mark.slow
def test_it_is_the_same_in_another_process(source):
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    done = subprocess.run(
        [sys.executable, "-c", SAY], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == source.manifest_hash


@pytest.mark.slow
def test_packages_are_read_in_place():
    source = PyDocs(["yaml"])
    parts = [part for part in source.parts("train") if part.name.startswith("yaml")]
    assert any("class YAMLError" in text for part in parts for text in source.read(part, "train"))
    assert source.manifest_hash != PyDocs().manifest_hash
    with pytest.raises(ValueError, match="packages: no_such_thing is not an installed package"):
        PyDocs(["no_such_thing"])
    with pytest.raises(ValueError, match="val_fraction=0 is not between 0 and 1"):
        PyDocs(val_fraction=0)


def test_docstrings_under_their_names():
    code = (
        '"""Module."""\nclass A:\n    """Of A."""\n    def f(self, x=1):\n        """Of f."""\ndef '
        "g(): pass\n"
    )
    assert [line.strip() for line in docstrings("m", code).splitlines() if line.strip()] == [
        "m",
        "Module.",
        "class m.A",
        "Of A.",
        "m.A.f(self, x=1)",
        "Of f.",
    ]
    assert docstrings("m", "not python {{") == ""
