"""The figures of a training, sent to TensorBoard or Weights & Biases as well, when `report_to` says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from accelerate.tracking import TensorBoardTracker, WandBTracker

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.sections import PPOConfig, flat

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


class Trackers:
    """A context in which `log` sends each update's figures on; without `report_to` it does nothing at all."""

    def __init__(self, config: PPOConfig, folder: Path):
        for name in config.report_to:
            if not any(map(importlib.util.find_spec, _PACKAGES[name])):
                raise InputError(f"ppo.report_to names {name}, which is not installed; `pip install {name}`")
        self.config, self.folder, self._trackers = config, folder, []

    def __enter__(self) -> Trackers:
        for name in self.config.report_to if processes.is_main() else ():
            if name == "tensorboard":
                tracker = TensorBoardTracker("ppo", logging_dir=str(self.folder / "tensorboard"))
            else:
                tracker = WandBTracker("rlhf-gpt2-ppo", dir=str(self.folder))
            tracker.start()
            settings = flat(self.config.model_dump(mode="json"), "/")
            tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
            self._trackers.append(tracker)
        return self

    def log(self, line: dict) -> None:
        """Send every number of a line of metrics, nested ones under `a/b`."""
        figures = {name: value for name, value in flat(line, "/").items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(figures, step=line["update"])

    def __exit__(self, *_) -> None:
        for tracker in self._trackers:
            tracker.finish()
