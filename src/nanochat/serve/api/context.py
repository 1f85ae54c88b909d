"""What every route of the API needs."""

from dataclasses import dataclass

from nanochat.inference.sampling import Sampling
from nanochat.serve.api.metrics import Metrics
from nanochat.serve.service import Service


@dataclass(frozen=True)
class ApiContext:
    """`defaults` is how an answer is sampled where a request does not say."""

    service: Service
    defaults: Sampling
    metrics: Metrics
