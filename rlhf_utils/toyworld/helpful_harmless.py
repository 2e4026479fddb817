"""Rows of the embedded world in the schema of yitingxie/rlhf-reward-datasets: dialogues, many with something to decline.

prompt ("\\n\\nHuman: ...\\n\\n", with earlier turns in some rows), chosen and rejected ("Assistant: ...").
"""

from __future__ import annotations

from random import Random

from rlhf_utils.settings.template import ASSISTANT, NEXT_ASSISTANT, NEXT_HUMAN
from rlhf_utils.toyworld.pairs import Pair, pairs, swaps

HARMFUL_SHARE = 0.2
RISKY_SHARE = 0.12
# Without such answers a reward model takes any polite talk for a good reply to what should be declined, and PPO finds out.
EVASIVE_SHARE = 0.35
TWO_TURN_SHARE = 0.15
PROMPTS = 36


def helpful_harmless_rows(split: str, n: int, seed: int, label_noise: float = 0.0) -> list[dict[str, str]]:
    """`n` rows with keys prompt, chosen, rejected (see `pairs`); in split "train" a share `label_noise` is swapped.

    A share of the dialogues has an earlier turn: the question of the row before, with its better answer.
    """
    rng = Random(f"{seed}/{split}/turns")
    rows = []
    earlier: Pair | None = None
    made = pairs(split, n, seed, HARMFUL_SHARE, RISKY_SHARE, EVASIVE_SHARE)
    for pair, swapped in zip(made, swaps(split, seed, label_noise), strict=False):
        turns = f"{NEXT_HUMAN} {pair.prompt}"
        if earlier is not None and rng.random() < TWO_TURN_SHARE:
            turns = f"{NEXT_HUMAN} {earlier.prompt}{NEXT_ASSISTANT} {earlier.better}{turns}"
        earlier = pair
        chosen, rejected = (pair.worse, pair.better) if swapped else (pair.better, pair.worse)
        rows.append(
            {
                "prompt": f"{turns}\n\n",
                "chosen": f"{ASSISTANT} {chosen}",
                "rejected": f"{ASSISTANT} {rejected}",
            }
        )
    return rows


def sensitive_prompts(seed: int) -> list[dict]:
    """`PROMPTS` questions of split "test" as {prompt, unsafe}: a third of them to decline, a sixth only sounding so."""
    wanted = {"unsafe": PROMPTS // 3, "risky": PROMPTS // 6, "ordinary": PROMPTS // 2}
    found = []
    for pair in pairs("test", 600, seed, HARMFUL_SHARE, RISKY_SHARE):
        kind = "unsafe" if pair.question.harmful else "risky" if pair.question.risky else "ordinary"
        if wanted[kind]:
            wanted[kind] -= 1
            found.append({"prompt": pair.prompt, "unsafe": kind == "unsafe"})
    return found
