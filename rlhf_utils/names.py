"""What a recipe calls its data and models: `embedded`, a file or folder of this machine, or an id on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlhf_utils.settings import EMBEDDED

# A hub id, with `:subfolder` for a folder inside the repository and `@revision` for a branch, tag or commit of it, or a
# folder on this machine; in each of them a model or a LoRA adapter, which is merged into its base when it is loaded.
Source = str | Path
_HUB_NAME = re.compile(r"((?:[\w.-]+/)?[\w.-]+)(?::([\w./-]+))?(?:@([\w./-]+))?", re.ASCII)


def local_path(source: Source) -> Path:
    """`source` as a path, with `~` for the home folder; a `~` that stands for nobody's stays."""
    return Path(os.path.expanduser(source))


def is_there(source: Source) -> bool:
    """Whether `source` is a file or folder that is there; False also for what is too long to be a path."""
    return source != EMBEDDED and os.path.exists(os.path.expanduser(source))


def is_folder(source: Source) -> bool:
    """Whether `source` is meant as a folder of this machine, also where there is none."""
    return os.path.exists(os.path.expanduser(source)) or str(source).startswith((".", "/", "~"))


def hub_name(source: Source) -> tuple[str, dict[str, str]]:
    """`owner/name:subfolder@revision` as the hub's id and the keywords `subfolder` and `revision`, each where it is
    given; a folder is its path, and has neither."""
    if is_folder(source):
        return str(local_path(source)), {}
    parts = _HUB_NAME.fullmatch(str(source))
    if parts is None:
        return str(source), {}
    return parts[1], {key: value for key, value in (("subfolder", parts[2]), ("revision", parts[3])) if value}
