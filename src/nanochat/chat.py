"""Serve checkpoints to people and programs: `python -m nanochat.chat ckpt=PATH`, a page and OpenAI's API on 127.0.0.1:8000."""

from omegaconf import DictConfig

from nanochat.runtime.app import command


def run(cfg: DictConfig) -> None:
    from nanochat.inference.sampling import Sampling
    from nanochat.serve.api import build_api
    from nanochat.serve.limits import BodyLimit, RateLimit
    from nanochat.serve.models import open_models
    from nanochat.serve.server import check_address, listen, serve
    from nanochat.serve.service import Service

    keys = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    defaults = Sampling(**{key: cfg[key] for key in keys})
    ckpts = [str(ckpt) for ckpt in cfg.ckpt] if not isinstance(cfg.ckpt, str) else [cfg.ckpt]
    check_address(cfg.host, api_key=cfg.api_key, open=cfg.open)
    socket = listen(cfg.host, cfg.port)
    models = open_models(ckpts, device=cfg.device, precision=cfg.precision, gpus=cfg.gpus, max_rows=cfg.max_rows)
    service = Service(models, max_queue=cfg.limits.queue)
    app = build_api(service, defaults=defaults, api_key=cfg.api_key)
    app.add_middleware(BodyLimit, max_bytes=cfg.limits.request_bytes)
    if cfg.limits.requests_per_minute is not None:
        app.add_middleware(RateLimit, per_minute=cfg.limits.requests_per_minute)
    if cfg.cors:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(CORSMiddleware, allow_origins=list(cfg.cors), allow_methods=["*"], allow_headers=["*"])
    serve(app, service, socket)


main = command("chat", run)

if __name__ == "__main__":
    main()
