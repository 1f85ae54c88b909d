"""`python -m nanochat.chat` as a user starts it: a real process, OpenAI's client, Ctrl-C, and what
is wrong told in one line."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from tests import processes
from tiny_networks import TOKENIZER, random_gpt

from nanochat.checkpoint import folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a chat checkpoint and a base one."""
    root = tmp_path_factory.mktemp("with a space")
    for name, phase in (("talks", "sft"), ("writes", "base")):
        gpt = random_gpt(std=0.15, sequence_len=128)
        folder.save(
            root / name,
            gpt.state_dict(),
            gpt.config,
            TOKENIZER,
            lineage={"config": {"phase": phase}},
        )
    return root


def start(places, *words, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "nanochat.chat", "device=cpu", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(places), "OMP_NUM_THREADS": "1", **environment},
    )


def url_of(process) -> str:
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"page and API: (\S+)", line):
            return found[1]
    raise AssertionError(said + process.stderr.read())


@pytest.mark.slow
def test_it_serves_two_checkpoints_and_ends_with_ctrl_c(places):
    process = start(
        places, f"ckpt={places}/talks", f"ckpt={places}/writes", "port=0", "log_conversations=true"
    )
    try:
        url = url_of(process)
        assert [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"]] == [
            "talks",
            "writes",
        ]
        asked = {"model": "talks", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        assert (
            httpx.post(f"{url}/v1/chat/completions", json=asked).json()["usage"][
                "completion_tokens"
            ]
            <= 3
        )
        page = httpx.get(url)
        assert page.status_code == 200 and "gradio" in page.text
        wrong = httpx.delete(f"{url}/health")  # not the page's 404
        assert wrong.status_code == 405 and wrong.headers["allow"] == "GET"
        assert httpx.get(f"{url}/health", headers={"host": "evil.example"}).status_code == 403
        assert httpx.get(f"{url}/health", headers={"host": "localhost:1"}).status_code == 200
        large = httpx.post(f"{url}/v1/completions", json={"prompt": "x" * 300_000})
        assert large.status_code == 413
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=asked | {"stream": True, "max_tokens": 100}
        ) as answer:
            next(answer.iter_lines())
            process.send_signal(signal.SIGINT)  # an answer is under way
            begin = time.monotonic()
            assert process.wait(timeout=20) == 0
            assert time.monotonic() - begin < 10
        errors = process.stderr.read()
        # it was asked to log
        assert "Traceback" not in errors and "'hi'" not in errors and "hi" in errors
        assert (places / "chat" / "conversations.sqlite").is_file()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_with_a_key_the_page_wants_a_login_and_the_api_the_key(places):
    process = start(
        places,
        f"ckpt={places}/talks",
        "port=0",
        "host=0.0.0.0",
        "api_key=open, sesame!".replace(", ", "-"),
    )
    try:
        url = url_of(process).replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert (
            httpx.get(
                f"{url}/v1/models", headers={"Authorization": "Bearer open-sesame!"}
            ).status_code
            == 200
        )
        assert "dependencies" not in httpx.get(f"{url}/config").text
        assert httpx.get(f"{url}/gradio_api/info").status_code in (401, 404)
        wrong = httpx.post(f"{url}/login", data={"username": "me", "password": "no"})
        assert wrong.status_code == 400
        with httpx.Client(base_url=url) as client:
            assert (
                client.post(
                    "/login", data={"username": "me", "password": "open-sesame!"}
                ).status_code
                == 200
            )
            assert "dependencies" in client.get("/config").text
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["host=0.0.0.0"], "host=0.0.0.0 can be reached by others: give api_key="),
        (["api_key=a b"], "api_key must be printable ASCII without spaces"),
        (["api_key=x", "open=true"], "contradict each other"),
        (["port=70000"], "port=70000 must be a whole number from 0 to 65,535"),
        (["host=no.such.host.invalid", "open=true"], "is not the address of a machine"),
        (["port=0", "limits.queue=-1"], "limits.queue=-1"),
        (["port=0", "limits.request_bytes=3"], "limits.request_bytes=3 must be at least 1024"),
        (
            ["port=0", "limits.requests_per_minute=0"],
            "limits.requests_per_minute=0 must be a whole number from 1 up",
        ),
        (["port=0", "temperature=-1"], "temperature=-1"),
        (["port=0", "max_rows=0"], "max_rows=0 must be a whole number from 1 up"),
        (["port=0", "compare=true"], "compare=true with 1 checkpoint"),
        (["port=0", "gpus=3"], "gpus=3 but torch sees"),
        (["port=0", "temprature=1"], "temprature is not a setting; did you mean temperature"),
    ],
    ids=str,
)
@pytest.mark.slow
def test_what_cannot_work_is_one_line_and_exit_code_2(places, words, message):
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(places), "OMP_NUM_THREADS": "1"}
    done = processes.run(
        ["nanochat.chat", "device=cpu", f"ckpt={places}/talks", *words], env=environment
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert (
        message in done.stderr
        and processes.complaints(done.stderr).startswith("error: ")
        and processes.complaints(done.stderr).count("\n") == 1
    )


@pytest.mark.slow
def test_a_port_in_use_is_told_before_a_checkpoint_is_read(places):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(places, "ckpt=nothing", f"port={taken.getsockname()[1]}")
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "cannot be had" in errors and "try port=0" in errors
