"""F3: what a run tells: progress bar, metrics.jsonl, config.json and TensorBoard.

Metrics are read here and nowhere else, so here a run that gave a non-finite number is
stopped.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from diffup_jax.files import read_text, write_whole
from diffup_jax.types import DiffUpError


class Log:
    """Progress bar, WORKDIR/metrics.jsonl and TensorBoard; only on the first host.

    config: JSON values, written to WORKDIR/config.json. start: the step continued
    after; later lines of an earlier try are dropped. steps: of the whole run.
    batch_size: episodes a step, for the rate. log_every: steps between two lines.
    """

    def __init__(
        self,
        workdir: str,
        *,
        config: dict[str, Any],
        start: int,
        steps: int,
        batch_size: int,
        log_every: int,
    ):
        self._lead = jax.process_index() == 0
        self._folder = Path(workdir)
        self._val: float | None = None
        self._start, self._steps = start, steps
        self._batch, self._every = batch_size, log_every
        self._clock = (time.monotonic(), start)
        if not self._lead:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / "config.json", json.dumps(config, indent=2) + "\n")
        # Lines of steps that will be run again would stand there twice.
        path = self._folder / "metrics.jsonl"
        if path.exists():
            text = read_text(path, fix="Remove it, or name another --workdir.")
            lines = [line for line in text.splitlines() if line]
            kept = [line for line in lines if _step_of(line) <= start]
            write_whole(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=start + 1
        )

    def say(self, text: str) -> None:
        """One line or more on the terminal."""
        if self._lead:
            print(text, flush=True)

    def progress(self) -> tqdm:
        """The bar of the whole run, standing at the step continued after."""
        return tqdm(
            total=self._steps,
            initial=self._start,
            unit="step",
            disable=not self._lead,
            dynamic_ncols=True,
            mininterval=1.0,
        )

    def metrics(self, step: int, metrics: Any, bar: tqdm) -> None:
        """Reads one step's metrics.

        Raises:
          DiffUpError: if one is not finite.
        """
        values = {name: float(value) for name, value in metrics.items()}
        bar.update(1)
        if not all(math.isfinite(value) for value in values.values()):
            shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise DiffUpError(
                f"Training step {step} gave a non-finite number ({shown}). Stopped; "
                "the last good checkpoint is untouched. Lower "
                "config.train.learning_rate or config.train.clip_norm and continue in "
                "another --workdir."
            )
        if step % self._every == 0 or step == self._steps:
            now = time.monotonic()
            seconds = max(now - self._clock[0], 1e-9)
            rate = (step - self._clock[1]) * self._batch / seconds
            self._clock = (now, step)
            values["episodes_per_s"] = rate
            self._record(step, values)
            facts = {"loss": f"{values['loss']:.4f}", "episodes/s": f"{rate:.1f}"}
            if self._val is not None:
                facts["val mIoU"] = f"{self._val:.1f}"
            bar.set_postfix(facts, refresh=False)

    def validation(
        self,
        step: int,
        score: dict[str, float],
        bar: tqdm,
        *,
        classes: str = "base classes",
        over: str = "",
    ) -> None:
        """Records "val_miou" of a step, and "val_prior_miou" where there is a prior.

        classes: whose they are, in words. over: the further backbone they are of, which
        is part of their names then.
        """
        if over:
            named = {f"{name}_{over}": value for name, value in score.items()}
        else:
            named, self._val = score, score["val_miou"]
        self._record(step, named)
        if self._lead:
            where = f", over {over}" if over else ""
            prior = ""
            if "val_prior_miou" in score:
                prior = f", prior at best threshold {score['val_prior_miou']:.1f}"
            bar.write(
                f"step {step}: validation on {classes}, held-out images{where}: "
                f"mIoU {score['val_miou']:.1f}{prior}"
            )

    def close(self) -> None:
        """Ends the files."""
        if self._lead:
            self._file.close()
            self._board.close()

    def _record(self, step: int, values: dict[str, float]) -> None:
        if not self._lead:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


def _step_of(line: str) -> int | float:
    """Step of a metrics line; a line cut short by a kill is dropped."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf
