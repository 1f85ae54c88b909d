"""Talk to a checkpoint: `python -m nanochat.cli ckpt=PATH`, or `prompt="Why is the sky blue?"` for
one answer.

Lines are read from the terminal or a pipe; the conversation goes on from line to line until the
input ends. /help lists the commands in it.
"""

from omegaconf import DictConfig

from nanochat.commands.app import command


def run(cfg: DictConfig) -> None:
    import sys

    from omegaconf import OmegaConf

    from nanochat.checkpoint.opened import open_checkpoint
    from nanochat.inference.engine import COMPILES, Engine
    from nanochat.sandbox.execution import python_tool
    from nanochat.serve.terminal.loop import converse, once
    from nanochat.serve.terminal.screen import Screen
    from nanochat.serve.terminal.talk import SETTINGS, Talk, checked

    given = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(given, dict)
    settings = checked({name: given[name] for name in SETTINGS})
    opened = open_checkpoint(cfg.ckpt, device=cfg.device, precision=cfg.precision, force=cfg.force)
    if not opened.chats:
        instead = f"python -m nanochat.sample ckpt={cfg.ckpt} start=…"
        raise ValueError(
            f"{cfg.ckpt} is a base checkpoint, which does not chat; continue a text with {instead}"
        )
    # of one answer, stdout gets nothing else
    screen = Screen(sys.stdout, None if cfg.prompt is None else sys.stderr)
    engine = Engine(
        opened.gpt,
        opened.tokenizer,
        max_rows=1,
        run_python=python_tool if cfg.python else None,
        compile=cfg.compile,
    )
    if cfg.compile:
        screen.note(COMPILES)
    talk = Talk(engine, screen, settings, system=cfg.system, model=str(opened.path))
    converse(talk) if cfg.prompt is None else once(talk, cfg.prompt)


main = command("cli", run)

if __name__ == "__main__":
    main()
