"""What a stranger without a key can cost a server of `nanochat.chat` on this machine: `python
experiments/serving/attacks.py URL PID [SECONDS]`.

Each attack runs for SECONDS (10 if not given); meanwhile a process of its own asks /health ten
times a second and reads the resident memory of PID. Speaks to 127.0.0.1 only. Prints a table of
Markdown.
"""

import contextlib
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

FILLER = b"a" * 65536
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
)


def connect(url: httpx.URL) -> socket.socket:
    return socket.create_connection((url.host, url.port), timeout=2)


def endless(url: httpx.URL, until: float, begin: bytes, filler: bytes = FILLER) -> str:
    """Send without end, from a new connection where the server closed."""
    sent = times = 0
    while time.monotonic() < until:
        times += 1
        with contextlib.suppress(OSError), connect(url) as connection:
            connection.sendall(begin)
            while time.monotonic() < until:
                connection.sendall(filler)
                sent += len(filler)
    return f"{sent / 2**20:,.0f} MiB taken of {times:,} connections"


def half_sent(url: httpx.URL, until: float, number: int = 400) -> str:
    """`number` requests that stay as they are, one half in the head, the other in the body."""
    held: list[socket.socket] = []
    for n in range(number):
        with contextlib.suppress(OSError):
            connection = connect(url)
            connection.sendall(
                b"GET /health HTTP/1.1\r\nHost: 127.0"
                if n % 2
                else POST + b"Content-Length: 90000\r\n\r\n" + b"{" * 60000
            )
            held.append(connection)
    time.sleep(max(0, until - time.monotonic()))
    still = 0
    for connection in held:
        connection.setblocking(False)
        try:
            connection.recv(1, socket.MSG_PEEK)  # a refusal, or the end
        except BlockingIOError:
            still += 1
        except OSError:
            pass
        connection.close()
    return f"{still} of {number} still open in the end"


def slow_reading(url: httpx.URL, until: float, number: int = 100) -> str:
    """Ask for what is long again and again, in one connection each, and read nothing."""
    held = []
    for _ in range(number):
        with contextlib.suppress(OSError):
            connection = connect(url)
            connection.settimeout(0.05)
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2000)
            held.append(connection)
    time.sleep(max(0, until - time.monotonic()))
    for connection in held:
        connection.close()
    return f"{len(held)} connections"


def wrong_keys(url: httpx.URL, until: float) -> str:
    found: dict[int, int] = {}
    with httpx.Client(base_url=url) as client:
        while time.monotonic() < until:
            for path in ("/v1/models", "/V1/models/", "//v1/models"):
                got = client.get(
                    httpx.URL(url, raw_path=path.encode()),
                    headers={"authorization": f"Bearer {time.monotonic()}"},
                )
                found[got.status_code] = found.get(got.status_code, 0) + 1
    return ", ".join(f"{number:,} x {status}" for status, number in sorted(found.items()))


ATTACKS: dict[str, Callable[[httpx.URL, float], str]] = {
    "nothing": lambda url, until: time.sleep(until - time.monotonic()) or "",
    "an endless header": lambda url, until: endless(
        url, until, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    ),
    "an endless address": lambda url, until: endless(url, until, b"GET /"),
    "endless headers": lambda url, until: endless(
        url, until, b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 10000
    ),
    "an endless body": lambda url, until: endless(
        url, until, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + FILLER + b"\r\n"
    ),
    "an endless body of no length": lambda url, until: endless(
        url, until, POST + b"Content-Length: 9999999999\r\n\r\n"
    ),
    "400 half-sent requests": half_sent,
    "100 that read nothing": slow_reading,
    "wrong keys": wrong_keys,
}


def watch(url: str, pid: int, stop, out) -> None:
    times, memory, failed = [], [], 0
    while not stop.is_set():
        start = time.perf_counter()
        try:
            # a connection of its own, as a newcomer
            failed += httpx.get(f"{url}/health", timeout=30).status_code != 200
        except httpx.HTTPError:
            failed += 1
        times.append(1000 * (time.perf_counter() - start))
        status = Path(f"/proc/{pid}/status").read_text()
        memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
        stop.wait(0.1)
    out.put((times, memory, failed))


def main() -> None:
    url, pid = httpx.URL(sys.argv[1].rstrip("/")), int(sys.argv[2])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 10
    assert url.host in ("127.0.0.1", "localhost"), "only a server on this machine"
    print(
        "| attack | memory before → most (MiB) | /health median, most (ms) | /health failed | what "
        "came of it |\n|---|---|---|---|---|"
    )
    for name, attack in ATTACKS.items():
        stop, out = multiprocessing.Event(), multiprocessing.Queue()
        watcher = multiprocessing.Process(target=watch, args=(str(url), pid, stop, out))
        watcher.start()
        time.sleep(1)
        said = attack(url, time.monotonic() + seconds)
        stop.set()
        times, memory, failed = out.get()
        watcher.join()
        print(
            f"| {name} | {memory[0]:.0f} → {max(memory):.0f} | {statistics.median(times):.1f}, "
            f"{max(times):.0f} "
            f"| {failed} of {len(times)} | {said} |",
            flush=True,
        )
        time.sleep(3)


if __name__ == "__main__":
    main()
