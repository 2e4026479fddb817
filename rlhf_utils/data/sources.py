"""Where rows come from: the embedded world, a file or folder on this machine, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from rlhf_utils.data.local import read_local, rows_of_splits, suffix_of
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.hub import dataset_snapshot, wanted_dataset
from rlhf_utils.platforms.names import is_hub_name, is_there, local_path
from rlhf_utils.settings.sections import EMBEDDED, DataSettings


@dataclass(frozen=True)
class Rows:
    """Rows as the dataset has them. test is None when there is no test split.

    fingerprint: sha256 of the content (embedded and local data), or id@commit (hub).
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
    """A path that is there, or a name that is no id or address of the hub, or one that ends like a file we read."""
    if dataset == EMBEDDED:
        return False
    # An address is one of the hub, also that of a single file there.
    named_like_a_file = "://" not in dataset and suffix_of(local_path(dataset)) is not None
    return is_there(dataset) or named_like_a_file or not is_hub_name(dataset)


def _embedded(settings: DataSettings, seed: int) -> Rows:
    from rlhf_utils.toyworld import WORLDS

    world = WORLDS[settings.world]
    train = world.rows("train", settings.embedded_rows, seed, settings.label_noise)
    test = world.rows("test", settings.embedded_test_rows, seed, settings.label_noise)
    content = json.dumps([train, test], sort_keys=True).encode()
    return Rows(train, test, EMBEDDED, hashlib.sha256(content).hexdigest())


def _hub(dataset: str, settings: DataSettings) -> Rows:
    import datasets

    snapshot = dataset_snapshot(wanted_dataset(dataset, settings.revision, settings.data_dir))
    where = f"hub dataset {dataset}"
    try:
        splits = datasets.load_dataset(str(snapshot.root), data_dir=snapshot.wanted.subfolder)
    except Exception as error:  # arrow, json and file errors of several libraries
        reason = next(iter(str(error).splitlines()), "")[:160]
        raise InputError(
            f"{where} cannot be read ({type(error).__name__}: {reason}); check data.data_dir and data.revision, or use "
            "--set dataset=PATH"
        ) from error
    train, test = rows_of_splits(splits, settings.split, settings.test_split, where)
    if not train:
        raise InputError(f"{where}: split {settings.split!r} is empty; choose with --set data.split=NAME")
    return Rows(train, test or None, dataset, f"{snapshot.wanted.name}@{snapshot.commit}")
