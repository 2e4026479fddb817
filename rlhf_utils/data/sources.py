"""Where rows come from: the embedded world, a file or folder on this machine, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rlhf_utils.data.local import read_local, rows_of_splits, suffix_of
from rlhf_utils.errors import InputError
from rlhf_utils.names import is_there, local_path
from rlhf_utils.settings import EMBEDDED, DataSettings

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Rows:
    """Rows as the dataset has them. test is None when there is no test split.

    fingerprint: sha256 of the content (embedded and local data), or id@revision (hub).
    """

    train: list[dict]
    test: list[dict] | None
    name: str
    fingerprint: str


def load_rows(dataset: str, settings: DataSettings, seed: int) -> Rows:
    """Rows of `dataset`: "embedded", a path, or a hub id. `seed` only matters to the embedded world.

    Raises `InputError` when the data cannot be found or read.
    """
    dataset = dataset.strip()
    if dataset == EMBEDDED:
        return _embedded(settings, seed)
    if not dataset:
        raise InputError("dataset is empty; give a file, a folder, a hub id, or embedded")
    path = local_path(dataset)
    if is_local(dataset):
        folder = path / settings.data_dir if settings.data_dir and path.is_dir() else path
        train, test, fingerprint = read_local(folder, settings.split, settings.test_split)
        return Rows(train, test, str(path), fingerprint)
    return _hub(dataset, settings)


def is_local(dataset: str) -> bool:
    """An existing path, or a name that cannot be a hub id, or one that ends like a file we read."""
    if dataset == EMBEDDED:
        return False
    return is_there(dataset) or suffix_of(local_path(dataset)) is not None or not _HUB_ID.fullmatch(dataset)


def _embedded(settings: DataSettings, seed: int) -> Rows:
    from rlhf_utils.toyworld import WORLDS

    world = WORLDS[settings.world]
    train = world.rows("train", settings.embedded_rows, seed, settings.label_noise)
    test = world.rows("test", settings.embedded_test_rows, seed, settings.label_noise)
    content = json.dumps([train, test], sort_keys=True).encode()
    return Rows(train, test, EMBEDDED, hashlib.sha256(content).hexdigest())


def _hub(dataset: str, settings: DataSettings) -> Rows:
    import datasets

    try:
        with _offline_when_unreachable(dataset):
            splits = datasets.load_dataset(dataset, data_dir=settings.data_dir, revision=settings.revision)
    except Exception as error:  # network, hub and file errors of several libraries
        raise InputError(_hub_failure(dataset, error)) from error
    where = f"hub dataset {dataset}"
    train, test = rows_of_splits(splits, settings.split, settings.test_split, where)
    if not train:
        raise InputError(f"{where}: split {settings.split!r} is empty; choose with --set data.split=NAME")
    return Rows(train, test or None, dataset, f"{dataset}@{settings.revision or 'main'}")


@contextmanager
def _offline_when_unreachable(dataset: str) -> Iterator[None]:
    """Let `datasets` look into its cache at once when the hub does not answer.

    Left alone it repeats the request for half a minute and prints every attempt.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    before = datasets.config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(dataset, timeout=10)
    except HfHubHTTPError:
        reached = True  # an answer, if only "not found"; load_dataset says what it means
    except Exception:  # the HTTP library under huggingface_hub has changed, and its error classes with it
        reached = False
    else:
        reached = True
    try:
        datasets.config.HF_HUB_OFFLINE = before or not reached
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _hub_failure(dataset: str, error: Exception) -> str:
    """One line for the ways in which a dataset does not come: no network, no such name or no right to it,
    other.
    """
    import datasets

    ways_out = "or use --set dataset=PATH, or --scale tiny, which needs no network"
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return (
            f"hub dataset {dataset}: there is no file and no hub dataset of this name that you may read; "
            f"check the name (gated or private data needs HF_TOKEN), {ways_out}"
        )
    if isinstance(error, ConnectionError):
        return (
            f"hub dataset {dataset}: the hub could not be reached, it is not in the local cache, and "
            f"there is no file of this name; check the network, {ways_out}"
        )
    reason = next(iter(str(error).splitlines()), "")[:160]
    return f"hub dataset {dataset} cannot be loaded ({type(error).__name__}: {reason}); check data.*, {ways_out}"
