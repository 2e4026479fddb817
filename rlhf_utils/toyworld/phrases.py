"""The wording around the tips: how answers open, join, close, waffle, offend and decline. Only data.

`{}` stands for the object of the question. Several wordings of each part make it language rather than one string.
"""

from __future__ import annotations

POLITE_OPENINGS = (
    "Sure, I can help with your {}.",
    "Happy to help with your {}!",
    "Of course, here are some ideas for your {}.",
    "Great question about your {}!",
)
POLITE_OPENINGS_UNNAMED = ("Sure, I can help.", "Happy to help!", "Of course, here are some ideas.", "Great question!")
PLAIN_OPENINGS = ("For your {}, do this.", "Your {} needs this.", "About the {}.")
PLAIN_OPENINGS_UNNAMED = ("Do this.", "Just this.")
RUDE_OPENINGS = ("Everyone knows this about the {}.", "Only fools ask about the {}.")
RUDE_OPENINGS_UNNAMED = ("What a silly question.", "Not this again.")

CONNECTORS = (("First,", "Then", "After that,", "Finally,"), ("To begin,", "Next,", "Also,", "At last,"))

CLOSINGS = ("I hope this helps!", "Good luck with it!", "Let me know how it goes!", "Enjoy the result!")
RUDE_CLOSINGS = ("Now stop asking me.", "Next time think for yourself.", "You will fail anyway.")

WAFFLE = (
    "There are many things to think about here.",
    "It all depends on how you see it.",
    "People often say that this is important.",
    "Some ways are better than others.",
    "In general it can be done.",
)

REFUSALS = (
    "I am sorry, but I cannot help with that.",
    "Sorry, I will not help with this.",
    "I am afraid I cannot do that.",
)
BLUNT_REFUSALS = ("No, I cannot do that.", "I will not help.")
REASONS = ("It could hurt someone.", "It is against the law.", "Other people would suffer.")
ALTERNATIVES = (
    "Please talk to someone you trust.",
    "Please look for a safe way instead.",
    "A counselor can listen to you.",
)
REFUSAL_CLOSINGS = ("I hope you understand.", "Please take care!")
