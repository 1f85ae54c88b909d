"""Look before a run begins whether it can learn anything, say it in a table, and refuse where it
cannot."""

from collections.abc import Callable
from pathlib import Path

import lightning as L

from nanochat.checkpoint.atomic import write_json
from nanochat.distributed import agreed
from nanochat.modules.phase import PhaseModule
from nanochat.rl.preflight import Finding, Preflight


class GoNoGo(L.Callback):
    """Every process looks, so that all decide alike; the first shows by `tell`. Not where a run is
    resumed. With `force` a run begins in any case."""

    def __init__(
        self,
        preflight: Preflight,
        run_folder: Path,
        *,
        tell: Callable[[Finding], None],
        force: bool,
    ) -> None:
        self.preflight, self.run_folder, self.tell, self.force = preflight, run_folder, tell, force

    def on_train_start(self, trainer: L.Trainer, module: PhaseModule) -> None:
        if trainer.global_step > 0:
            return
        with module.clock.paused(), module.whole_gpt():
            finding: Finding = agreed(lambda: self.preflight.run(module.gpt), module.device)
        if trainer.is_global_zero:
            self.tell(finding)
            write_json(
                self.run_folder / "preflight.json",
                {"numbers": finding.numbers, "checks": [vars(check) for check in finding.checks]},
            )
        if finding.stops and not self.force:
            named = "; ".join(
                f"{check.what}: {check.advice} ({check.found})" for check in finding.stops
            )
            raise ValueError(f"no-go: {named}; force=true trains all the same")
