"""Counters and state of the server, as JSON and for Prometheus."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nanochat.serve.service import Service
from nanochat.serve.worker import Reply

# upper bounds of the histogram's buckets
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# of each engine: key in `stats`, kind, help
ENGINE_METRICS = (
    ("prompt_tokens", CounterMetricFamily, "Tokens read of prompts."),
    ("reused_tokens", CounterMetricFamily, "Tokens of prompts taken from an earlier turn."),
    ("sampled_tokens", CounterMetricFamily, "Tokens sampled."),
    ("forced_tokens", CounterMetricFamily, "Tokens that tools forced."),
    ("live", GaugeMetricFamily, "Texts being generated."),
    ("queued", GaugeMetricFamily, "Texts waiting for a row."),
    ("cache_bytes", GaugeMetricFamily, "Bytes of keys and values, of live and finished texts."),
)
# metrics that are not named like the key
NAMES = {"live": "live_texts", "queued": "queued_texts"}


class Metrics(Collector):
    """Counts replies; the engines count tokens. `registry` collects both for Prometheus."""

    def __init__(self, service: Service) -> None:
        self.service, self.since = service, time.time()
        self.answers: Counter[str] = Counter()  # by model
        self.cancellations: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()  # by HTTP status
        self.models = {worker: m.name for m in service.models.values() for worker in m.workers}
        self.registry = CollectorRegistry()
        disable_created_metrics()  # no extra series with the creation time of each counter
        self.first_token = Histogram(
            "nanochat_first_token_seconds",
            "From a request to its first token.",
            buckets=FIRST_TOKEN_SECONDS,
            registry=self.registry,
        )
        self.registry.register(self)

    def finished(self, reply: Reply) -> None:
        self.answers[self.models[reply.worker]] += 1
        self.first_token.observe(reply.first - reply.asked)

    def cancelled(self, reply: Reply) -> None:
        self.cancellations[self.models[reply.worker]] += 1

    def stats(self) -> dict[str, Any]:
        """The original's fields (facts sheet 7.5), where a worker is an engine, and what each one
        is doing."""
        workers: list[dict[str, Any]] = []
        for number, (worker, name) in enumerate(self.models.items()):
            engine, done = worker.engine, worker.engine.stats
            workers.append(
                {
                    "gpu_id": number,
                    "device": str(engine.gpt.device),
                    "model": name,
                    "live": len(engine.live),
                    "queued": engine.queued,
                    "max_rows": engine.max_rows,
                    "cache_bytes": engine.cache.nbytes() + engine.pool.bytes,
                    "prompt_tokens": done.read_tokens,
                    "reused_tokens": done.reused_tokens,
                    "sampled_tokens": done.sampled_tokens,
                    "forced_tokens": done.forced_tokens,
                }
            )
        busy = sum(worker["live"] + worker["queued"] >= worker["max_rows"] for worker in workers)
        return {
            "total_workers": len(workers),
            "available_workers": len(workers) - busy,
            "busy_workers": busy,
            "workers": workers,
            "uptime_seconds": round(time.time() - self.since),
            "answers": sum(self.answers.values()),
            "cancelled": sum(self.cancellations.values()),
        }

    def collect(self) -> Iterator[Metric]:
        """Everything for Prometheus except the histogram."""
        by_model = (
            ("nanochat_answers", "Requests answered to the end.", self.answers),
            ("nanochat_cancelled", "Requests whose client left.", self.cancellations),
        )
        for name, text, counts in by_model:
            family = CounterMetricFamily(name, text, labels=["model"])
            for model in self.service.models:
                family.add_metric([model], counts[model])
            yield family
        refused = CounterMetricFamily(
            "nanochat_refused", "Requests refused, by HTTP status.", labels=["status"]
        )
        for status, count in sorted(self.refused.items()):
            refused.add_metric([str(status)], count)
        yield refused
        workers = self.stats()["workers"]
        for key, kind, text in ENGINE_METRICS:
            engines = kind(f"nanochat_{NAMES.get(key, key)}", text, labels=["model", "engine"])
            for worker in workers:
                engines.add_metric([worker["model"], str(worker["gpu_id"])], worker[key])
            yield engines
