"""Health of the server, and its models."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from nanochat.serve.api.context import ApiContext
from nanochat.serve.api.errors import ERRORS
from nanochat.serve.service import ServedModel


def routes(context: ApiContext) -> APIRouter:
    router, service, metrics = APIRouter(), context.service, context.metrics

    @router.get("/health")
    async def health() -> dict[str, Any]:
        workers = service.workers
        ready = all(worker.alive for worker in workers)
        return {
            "status": "ok" if ready else "failed",
            "ready": ready,
            "num_gpus": len(workers),
            "available_workers": sum(worker.load < worker.engine.max_rows for worker in workers),
        }

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        return metrics.stats()

    @router.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        text = generate_latest(metrics.registry)
        return PlainTextResponse(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(model) for model in service.models.values()]}

    @router.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        return described(service.model(name))

    return router


def described(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "nanochat",
        "phase": model.phase,
        "context": model.context,
    }
