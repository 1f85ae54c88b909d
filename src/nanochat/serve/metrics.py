"""What the server has done and is doing, as JSON and for Prometheus."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nanochat.serve.service import Service
from nanochat.serve.worker import Reply

FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # upper bounds of the histogram's buckets


class Metrics:
    """Counts replies; tokens are counted by the engines."""

    def __init__(self, service: Service) -> None:
        self.service, self.since = service, time.time()
        self.answers: Counter[str] = Counter()  # by model
        self.cancellations: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()  # by HTTP status
        self.buckets = [0] * (len(FIRST_TOKEN_SECONDS) + 1)
        self.first_token_sum = 0.0
        self._names = {worker: model.name for model in service.models.values() for worker in model.workers}

    def finished(self, reply: Reply) -> None:
        self.answers[self._names[reply.worker]] += 1
        seconds = reply.first - reply.asked
        self.first_token_sum += seconds
        self.buckets[next((i for i, bound in enumerate(FIRST_TOKEN_SECONDS) if seconds <= bound), -1)] += 1

    def cancelled(self, reply: Reply) -> None:
        self.cancellations[self._names[reply.worker]] += 1

    def stats(self) -> dict[str, Any]:
        """The original's fields (facts sheet 7.5), where a worker is an engine, and what each one is doing."""
        workers: list[dict[str, Any]] = []
        for number, (worker, name) in enumerate(self._names.items()):
            engine, done = worker.engine, worker.engine.stats
            workers.append(
                {
                    "gpu_id": number, "device": str(engine.gpt.device), "model": name,
                    "live": len(engine.live), "queued": engine.queued, "max_rows": engine.max_rows,
                    "cache_bytes": engine.cache.nbytes() + engine.pool.bytes,
                    "prompt_tokens": done.read_tokens, "reused_tokens": done.reused_tokens,
                    "sampled_tokens": done.sampled_tokens, "forced_tokens": done.forced_tokens,
                }
            )  # fmt: skip
        busy = sum(worker["live"] + worker["queued"] >= worker["max_rows"] for worker in workers)
        return {
            "total_workers": len(workers), "available_workers": len(workers) - busy, "busy_workers": busy, "workers": workers,
            "uptime_seconds": round(time.time() - self.since), "answers": sum(self.answers.values()),
            "cancelled": sum(self.cancellations.values()),
        }  # fmt: skip

    def prometheus(self) -> str:
        """The text format of Prometheus, version 0.0.4."""
        lines: list[str] = []

        def family(name: str, kind: str, text: str, rows: Sequence[tuple[str, float]]) -> None:
            lines.extend([f"# HELP nanochat_{name} {text}", f"# TYPE nanochat_{name} {kind}"])
            lines.extend(f"nanochat_{name}{suffix} {value}" for suffix, value in rows)

        def by_model(counts: Counter[str]) -> list[tuple[str, int]]:
            return [(f"{{model={_quoted(model)}}}", counts[model]) for model in self.service.models]

        workers = self.stats()["workers"]

        def by_worker(key: str) -> list[tuple[str, float]]:
            return [(f"{{model={_quoted(w['model'])},engine={_quoted(w['gpu_id'])}}}", w[key]) for w in workers]

        family("answers_total", "counter", "Requests answered to the end.", by_model(self.answers))
        family("cancelled_total", "counter", "Requests whose client left.", by_model(self.cancellations))
        refused = [(f"{{status={_quoted(status)}}}", count) for status, count in sorted(self.refused.items())]
        family("refused_total", "counter", "Requests refused, by HTTP status.", refused)
        for key, text in (("prompt_tokens", "read of prompts"), ("reused_tokens", "of prompts taken from an earlier turn"),
                          ("sampled_tokens", "sampled"), ("forced_tokens", "that tools forced")):  # fmt: skip
            family(f"{key}_total", "counter", f"Tokens {text}.", by_worker(key))
        family("live_texts", "gauge", "Texts being written.", by_worker("live"))
        family("queued_texts", "gauge", "Texts waiting for a row.", by_worker("queued"))
        family("cache_bytes", "gauge", "Keys and values, of live and finished texts.", by_worker("cache_bytes"))
        rows: list[tuple[str, float]] = []
        so_far = 0
        for bound, count in zip((*FIRST_TOKEN_SECONDS, "+Inf"), self.buckets, strict=True):
            so_far += count
            rows.append((f"_bucket{{le={_quoted(bound)}}}", so_far))
        rows += [("_sum", self.first_token_sum), ("_count", so_far)]
        family("first_token_seconds", "histogram", "From a request to its first token.", rows)
        return "\n".join(lines) + "\n"


def _quoted(value: object) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
