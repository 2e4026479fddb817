"""The trackers of `ppo.report_to`: opened and closed around a training, and given tables."""

import html
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from rlhf_utils.settings.sections import PPOConfig, flat

_PROJECT = "rlhf-gpt2-ppo"  # of all trainings, and the folder that tensorboard writes


@contextmanager
def trackers(accelerator: Accelerator, config: PPOConfig, folder: Path, name: str) -> Iterator[list[GeneralTracker]]:
    """The trackers of one training, which is known to them as `name`: what is opened again under it is added to."""
    settings = {key: str(value) for key, value in flat(config.model_dump(mode="json"), "/").items()}
    own = {"wandb": {"dir": str(folder), "id": name}, "trackio": {"name": name}}
    own = {tracker: {**how, "resume": "allow"} for tracker, how in own.items()}
    # tensorboardX names a file by its second alone, and one opened again in it would take the place of the first.
    own["tensorboard"] = {"filename_suffix": f".{time.monotonic_ns()}"}
    accelerator.init_trackers(_PROJECT, settings, own)
    try:
        yield accelerator.trackers
    finally:
        while accelerator.trackers:
            accelerator.trackers.pop().finish()


def log_table(tracker: GeneralTracker, name: str, rows: Sequence[dict]) -> None:
    """Give `rows` to a tracker as a table; tensorboard, which has none, gets one in Markdown."""
    frame = pd.DataFrame(rows).dropna(axis=1, how="all").round(3)
    if tracker.name == "tensorboard":
        # No text of a model may end its cell or become markup.
        cells = [frame.columns, ["-"] * len(frame.columns), *frame.astype(object).to_numpy()]
        lines = ["|".join(html.escape(str(cell)).replace("|", "&#124;") for cell in row) for row in cells]
        tracker.tracker.add_text(name, "\n".join(" <br> ".join(line.splitlines()) for line in lines))
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Table(dataframe=frame)})
    else:
        tracker.log_table(name, dataframe=frame)


def copy_tracked(source: Path, folder: Path) -> None:
    """Copy what trackers wrote on disk beside a training in `source`, which may be removed, into `folder`."""
    for written in (source / _PROJECT, source / "wandb"):
        if written.is_dir():
            shutil.copytree(written, folder / written.name, symlinks=True)
