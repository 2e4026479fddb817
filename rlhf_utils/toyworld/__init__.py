"""The embedded world: everyday questions, answers of all qualities, a gold judge, and text to pre-train on."""

from rlhf_utils.toyworld.corpus import corpus
from rlhf_utils.toyworld.gold import Gold, gold_score
from rlhf_utils.toyworld.instruct import instruct_rows

__all__ = ["Gold", "corpus", "gold_score", "instruct_rows"]
