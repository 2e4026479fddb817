"""Data: rows of any known form, one normal form, one prompt template, splits that share no prompt."""

from rlhf_utils.data.filters import FilterReport, FilterStep, prompt_key
from rlhf_utils.data.prepare import check_enough, check_rows, prepare
from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.data.schemas import Example, recognise
from rlhf_utils.data.sources import Rows, is_local, load_rows
from rlhf_utils.data.texts import beginnings, pretraining_texts
from rlhf_utils.settings.template import TEMPLATE, Template, check_template

__all__ = [
    "TEMPLATE",
    "Example",
    "FilterReport",
    "FilterStep",
    "PreparedData",
    "Rows",
    "Template",
    "beginnings",
    "check_enough",
    "check_rows",
    "check_template",
    "is_local",
    "load_rows",
    "prepare",
    "pretraining_texts",
    "prompt_key",
    "recognise",
]
