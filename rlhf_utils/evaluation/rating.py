"""How good any reward model is on any preference set, as in RewardBench (Lambert et al. 2024, arXiv:2403.13787)."""

from collections import Counter

import pandas as pd

from rlhf_utils.data.prepared import cluster_key
from rlhf_utils.data.sources import load_rows, read_rows
from rlhf_utils.data.tokens import words_of
from rlhf_utils.evaluation.statistics import accuracy_of
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import detect_device, quiet_libraries
from rlhf_utils.rewards.reward_model import load_reward
from rlhf_utils.settings.sections import DataSettings


def rate(model: str, data: str) -> dict:
    """The accuracy of the reward model in the folder or hub repository `model` on the pairs of `data` (of its test
    split where there is one): on all, on those whose lengths in words differ by at most a tenth, for each value of a
    column `subset`. Ties count half; `length_accuracy` is that of preferring the longer one. InputError without any."""
    quiet_libraries()
    rows, parts, dropped, found = load_rows(data, DataSettings(), seed=0), {}, Counter(), []
    for row in rows.test or rows.train:
        subset = row.get("subset")  # of JSON anything, such as a list of tags; of CSV "" where there is none
        parts.setdefault(None if subset in (None, "") else str(subset), []).append(row)
    for subset, part in parts.items():
        kind, pairs, unread = read_rows(part, rows.name)
        if kind != "pairs":
            raise InputError(f"{rows.name} holds {kind} rows; give pairs: prompt, chosen and rejected")
        dropped.update(unread)
        found += [(pair.prompt, pair.chosen, pair.rejected, subset) for pair in pairs]
    frame = pd.DataFrame(found, columns=["prompt", "chosen", "rejected", "subset"])
    if frame.empty:
        raise InputError(f"{rows.name} holds no pair that can be read ({dict(dropped)})")
    frame["margin"] = load_reward(model, detect_device()).margins(frame).numpy()
    frame["cluster"] = frame["prompt"].map(cluster_key)
    words = frame[["chosen", "rejected"]].map(lambda text: len(words_of(text)))
    frame["longer"] = words["chosen"] - words["rejected"]
    views = {"all": frame, "alike in length": frame[frame["longer"].abs() <= 0.1 * words.max(axis=1)]}
    views |= {f"subset {name}": part for name, part in frame.groupby("subset")}
    rated = [
        {"pairs": name, "count": len(part),
         **accuracy_of(part["margin"], clusters=list(part["cluster"])).named("accuracy"),
         "ties": int((part["margin"] == 0).sum()), "length_accuracy": accuracy_of(part["longer"]).mean}
        for name, part in views.items() if len(part)
    ]  # fmt: skip
    return {"model": model, "data": rows.name, "dropped": dict(dropped), "rated": rated}
