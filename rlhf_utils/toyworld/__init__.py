"""The embedded worlds: rows in the schemas of the hub's datasets, gold judges, and text to pre-train on."""

from rlhf_utils.toyworld.gold import gold_score
from rlhf_utils.toyworld.worlds import WORLDS, World

__all__ = ["WORLDS", "World", "gold_score"]
