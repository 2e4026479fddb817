"""The names of a run's data and models, looked at before anything is imported that takes seconds, downloaded or
trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from rlhf_utils.data.sources import is_local
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.hub import Wanted, look_up, wanted_dataset, wanted_model
from rlhf_utils.platforms.names import is_folder, local_path
from rlhf_utils.platforms.packaged import PACKAGED, check_packaged
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import EMBEDDED


def check_names(run: Run, stages: Collection[str]) -> set[str]:
    """Look up every name on the hub that making `stages` reads, all at once; returns the models among them.

    Raises InputError for the first that the hub does not have, or not for us, and where neither the hub nor the cache
    can be asked.
    """
    recipe, wanted = run.recipe, {}
    check_packaged(recipe.model_names)
    models = {"policy": recipe.policy} if "base" in stages else {}
    models |= {f"models.{stage}": run.ready_model(stage) for stage in stages}
    if any(models.values()):
        models["models.adapter_base"] = recipe.models.adapter_base
    embedder = recipe.evaluation.assistant and recipe.evaluation.assistant.embedder
    if embedder and "evaluation" in stages and importlib.util.find_spec("sentence_transformers"):
        models["evaluation.assistant.embedder"] = embedder
    models = {key: name for key, name in models.items() if name and name != EMBEDDED}
    for key, name in models.items():
        if is_folder(name) and name not in PACKAGED and not local_path(name).is_dir():
            raise InputError(f"{key}: there is no folder {name}; name a folder, or an id on the Hugging Face hub")
    models = {key: name for key, name in models.items() if not is_folder(name)}
    for key, name in models.items():
        wanted[key] = lambda name=name: wanted_model(name)
    reads_data = "data" in stages or ("base" in stages and recipe.policy == EMBEDDED)
    if reads_data and recipe.dataset != EMBEDDED and not is_local(recipe.dataset):
        wanted["dataset"] = lambda: wanted_dataset(recipe.dataset, recipe.data.revision, recipe.data.data_dir)
    if wanted:
        with ThreadPoolExecutor(len(wanted)) as threads:
            base = repeat(recipe.models.adapter_base is not None)
            for told in list(threads.map(_look_up, wanted, wanted.values(), base)):
                if told:
                    raise told
    return set(models.values())


def _look_up(key: str, wanted: Callable[[], Wanted], base_is_known: bool) -> InputError | None:
    try:
        look_up(wanted(), base_is_known)
    except InputError as error:
        return InputError(str(error) if str(error).startswith(key) else f"{key}: {error}")
    return None
