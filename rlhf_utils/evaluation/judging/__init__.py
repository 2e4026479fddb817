"""Outside judges, people or a language model: blinded pairs out, verdicts in, wins with intervals."""

from rlhf_utils.evaluation.judging.pairs import read_pairs, write_pairs
from rlhf_utils.evaluation.judging.verdicts import add_verdict, outcome

__all__ = ["add_verdict", "outcome", "read_pairs", "write_pairs"]
