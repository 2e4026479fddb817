"""What a recipe calls its data and models: `embedded`, a model that comes in a package, a file or folder of this
machine, or an id on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlhf_utils.packaged import PACKAGED, packaged_folder
from rlhf_utils.settings import EMBEDDED

# A hub id, with `:subfolder` for a folder inside the repository and `@revision` for a branch, tag or commit of it, or a
# folder on this machine; in each of them a model or a LoRA adapter, which is merged into its base when it is loaded.
Source = str | Path
_HUB_NAME = re.compile(r"((?:[\w.-]+/)?[\w.-]+)(?::([\w./-]+))?(?:@([\w./-]+))?", re.ASCII)


def local_path(source: Source) -> Path:
    """`source` as a path, with `~` for the home folder; a `~` that stands for nobody's stays. Of a packaged model the
    folder it lies in, which is made the first time."""
    if source in PACKAGED:
        return packaged_folder(source)
    return Path(os.path.expanduser(source))


def is_there(source: Source) -> bool:
    """Whether `source` is a file or folder that is there; False also for what is too long to be a path."""
    return source != EMBEDDED and source not in PACKAGED and os.path.exists(os.path.expanduser(source))


def is_folder(source: Source) -> bool:
    """Whether `source` is meant as a folder of this machine, also where there is none. A packaged model is one."""
    return source in PACKAGED or os.path.exists(os.path.expanduser(source)) or str(source).startswith((".", "/", "~"))


def hub_name(source: Source) -> tuple[str, dict[str, str]]:
    """`owner/name:subfolder@revision` as the hub's id and the keywords `subfolder` and `revision`, each where it is
    given; a folder is its path, and has neither."""
    if is_folder(source):
        return str(local_path(source)), {}
    parts = _HUB_NAME.fullmatch(str(source))
    if parts is None:
        return str(source), {}
    return parts[1], {key: value for key, value in (("subfolder", parts[2]), ("revision", parts[3])) if value}


def known_as(source: Source) -> str:
    """The name by which `source` is known elsewhere: a hub model's without subfolder and revision, a packaged one's on
    the hub; a folder's is its path."""
    return PACKAGED[source].hub if source in PACKAGED else hub_name(source)[0]
