"""The wheel holds everything: installed in an environment of its own, it composes and trains from
an empty folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.train.conftest import TINY, make_corpus

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_folder(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path / "dist"),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"nanochat/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    assert "nanochat/tasks/identity.yaml" in names
    assert "nanochat/report/templates/report.html" in names
    # an environment with the wheel alone; the packages it needs are those of this environment, but
    # not this checkout
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install = [
        environment / "bin/python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    library = next(environment.glob("lib/python*/site-packages"))
    (library / "zz_dependencies.pth").write_text(
        f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n"
    )
    empty = tmp_path / "empty folder"
    empty.mkdir()
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "base"), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    where = subprocess.run(
        [environment / "bin/python", "-c", "import nanochat; print(nanochat.__file__)"],
        cwd=empty,
        env=env,
        capture_output=True,
        text=True,
    )
    assert str(library) in where.stdout, where.stdout + where.stderr
    done = subprocess.run(
        [
            environment / "bin/python",
            "-m",
            "nanochat.train",
            *TINY,
            "max_steps=2",
            "data=local",
            f"data.path={make_corpus(tmp_path / 'corpus')}",
        ],
        cwd=empty,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "checkpoint: " in done.stdout and not list(empty.iterdir()), (
        "nothing is written outside the base folder"
    )
