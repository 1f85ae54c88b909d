"""Serve checkpoints to people and programs: `python -m nanochat.chat ckpt=PATH`, a page and
OpenAI's API on 127.0.0.1:8000."""

from omegaconf import DictConfig

from nanochat.commands.app import command


def run(cfg: DictConfig) -> None:
    import logging
    from contextlib import closing

    from nanochat.inference.sampling import Sampling
    from nanochat.serve.access.address import check_address, check_python, is_local, listen

    logging.basicConfig(
        level=logging.INFO if cfg.log_conversations else logging.WARNING, format="%(message)s"
    )
    keys = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "python")
    defaults = Sampling(**{key: cfg[key] for key in keys})
    ckpts = [cfg.ckpt] if isinstance(cfg.ckpt, str) else [str(ckpt) for ckpt in cfg.ckpt]
    check_address(cfg.host, api_key=cfg.api_key, open=cfg.open)
    if cfg.python:
        check_python(cfg.host)
    # what is known to be wrong by now costs no import of seconds
    with closing(listen(cfg.host, cfg.port)) as socket:
        from nanochat.inference.engine import COMPILES
        from nanochat.serve.access.limits import add_limits
        from nanochat.serve.api.app import build_api
        from nanochat.serve.models import open_models
        from nanochat.serve.page.store import Store, default_path
        from nanochat.serve.server import serve
        from nanochat.serve.service import Service

        models = open_models(
            ckpts,
            device=cfg.device,
            precision=cfg.precision,
            force=cfg.force,
            gpus=cfg.gpus,
            max_rows=cfg.max_rows,
            log_texts=cfg.log_conversations,
            python=cfg.python,
            pool_bytes=cfg.limits.prefix_bytes,
            compile=cfg.compile,
        )
        if cfg.compile:
            print(COMPILES)
        service = Service(models, max_queue=cfg.limits.queue)
        app, local = build_api(service, defaults=defaults, api_key=cfg.api_key), is_local(cfg.host)
        add_limits(
            app,
            cfg.limits.request_bytes,
            cfg.limits.requests_per_minute,
            list(cfg.cors),
            local=local,
        )
        with closing(Store(cfg.store or default_path())) as store:
            if cfg.page:
                from nanochat.serve.page.mount import mount_page

                mount_page(
                    app,
                    service,
                    store,
                    compare=cfg.compare,
                    private=not local,
                    defaults=defaults,
                    password=cfg.api_key,
                )
            serve(app, service, socket)


main = command("chat", run)

if __name__ == "__main__":
    main()
