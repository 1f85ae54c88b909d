"""64 clients at once against a server on this machine: `python experiments/serving/load.py URL PID
[MINUTES]`.

A third of the clients leave in the middle of an answer. Prints what came back, tokens/s beside that
of one request at a time, how long /health took (asked ten times a second by a process of its own),
and the server's memory. Speaks to 127.0.0.1 only, ends by itself.
"""

import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

CLIENTS = 64
WORDS = (
    "the river of stone and a small lamp beside an old mill where nobody had been since spring"
).split()


def question(drawn: random.Random) -> str:
    return "Tell me of " + " ".join(drawn.choices(WORDS, k=drawn.choice([3, 10, 30])))


async def ask(client: httpx.AsyncClient, drawn: random.Random, leave: bool) -> tuple[str, int]:
    """What became of one request, and how many tokens of it came."""
    body = {
        "messages": [{"role": "user", "content": question(drawn)}],
        "max_tokens": drawn.choice([8, 32, 64, 96]),
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    # the half of an answer, with 3 letters to a token
    came, letters = (0, 3 * body["max_tokens"] // 2)
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1
                    await asyncio.sleep(0.5)
                return str(answer.status_code), 0
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return "done", came
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        return "error", came
                    if event.get("usage"):
                        came = event["usage"]["completion_tokens"]
                    elif leave and event["choices"]:
                        letters -= len(event["choices"][0]["delta"].get("content", ""))
                        if letters < 0:
                            return "left", came
            return "cut off", came
    except httpx.HTTPError as error:
        return type(error).__name__, came


async def clients(url: str, number: int, seconds: float) -> Counter[str]:
    found: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def one(name: int) -> None:
        drawn = random.Random(name)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while time.monotonic() < until:
                what, _ = await ask(client, drawn, leave=number > 1 and name % 3 == 0)
                found[what] += 1

    await asyncio.gather(*(one(name) for name in range(number)))
    return found


def watch(url: str, pid: int, stop, out) -> None:
    """Milliseconds of every /health, and the server's resident memory in MiB every second."""
    times, memory = [], []
    with httpx.Client(base_url=url, timeout=10) as client:
        while not stop.is_set():
            start = time.perf_counter()
            assert client.get("/health").status_code == 200
            times.append(1000 * (time.perf_counter() - start))
            if len(times) % 10 == 0:
                status = Path(f"/proc/{pid}/status").read_text()
                memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
            stop.wait(0.1)
    out.put((times, memory))


def tokens(url: str) -> int:
    stats = httpx.get(f"{url}/stats").json()
    return sum(worker["sampled_tokens"] + worker["forced_tokens"] for worker in stats["workers"])


def phase(name: str, url: str, pid: int, number: int, seconds: float) -> float:
    stop, out = multiprocessing.Event(), multiprocessing.Queue()
    watcher = multiprocessing.Process(target=watch, args=(url, pid, stop, out))
    watcher.start()
    before, start = tokens(url), time.monotonic()
    found = asyncio.run(clients(url, number, seconds))
    rate = (tokens(url) - before) / (time.monotonic() - start)
    stop.set()
    times, memory = out.get()
    watcher.join()
    quarter = max(1, len(memory) // 4)
    slow, most = sorted(times)[int(0.99 * len(times))], max(times)
    early, late = statistics.mean(memory[:quarter]), statistics.mean(memory[-quarter:])
    print(f"{name}: {rate:,.0f} tokens/s; {dict(found)}")
    print(
        f"  /health: median {statistics.median(times):.1f} ms, 99 % {slow:.1f} ms, most {most:.1f} "
        f"ms of {len(times)}"
    )
    print(
        (
            f"  memory: {early:.0f} MiB in the first quarter, {late:.0f} in the last, most "
            f"{max(memory):.0f}"
        ),
        flush=True,
    )
    points = [memory[min(len(memory) - 1, len(memory) * tenth // 10)] for tenth in range(11)]
    print(f"  memory at each tenth: {', '.join(f'{point:.0f}' for point in points)}", flush=True)
    return rate


def main() -> None:
    url, pid = sys.argv[1].rstrip("/"), int(sys.argv[2])
    minutes = float(sys.argv[3]) if len(sys.argv) > 3 else 5
    assert httpx.URL(url).host in ("127.0.0.1", "localhost"), "only a server on this machine"
    alone = [phase("one at a time, before", url, pid, 1, 20)]
    together = phase(f"{CLIENTS} clients, {minutes:g} min", url, pid, CLIENTS, 60 * minutes)
    alone.append(phase("one at a time, after", url, pid, 1, 20))
    time.sleep(1)
    left = httpx.get(f"{url}/stats").json()
    over = [(one["live"], one["queued"], one["cache_bytes"]) for one in left["workers"]]
    print(f"together / alone: {together / statistics.mean(alone):.1f} x; left over: {over}")


if __name__ == "__main__":
    main()
