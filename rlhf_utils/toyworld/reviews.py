"""What the embedded world says about films: review sentences of known sentiment. Only data and their wording.

`{}` is filled by name: {film}, {who}, {part}, {when}, {where}, and the lists of praise and blame below.
"""

from __future__ import annotations

from rlhf_utils.toyworld.content import split_list

FILMS = split_list(
    "The Long Harbor, Winter Road, A House of Salt, The Last Clockmaker, Paper Boats, Night Train North, The Red Orchard, "
    "Two Brothers, Silent Valley, The Glass Bridge, Summer of Dust, The Painter's Wife, Black River, A Small Kingdom, "
    "The Lighthouse Keeper, Under the Bell, Cold Morning, The Lost Parade, Iron Garden, Seven Letters"
)
PEOPLE = split_list(
    "Anna Keller, Tom Reyes, Maria Stone, Paul Winter, Nina Brandt, Jack Moreno, Rosa Lind, Ben Archer, Clara Holm, Leo Marsh"
)
PARTS = split_list(
    "plot, acting, music, ending, script, camera work, dialogue, pacing, cast, story, humor, editing, opening scene, main character"
)
WATCHED = split_list(
    "with my brother, on a rainy Sunday, on a long flight, at a small cinema, with two friends, after work, on television, "
    "at a festival, with my parents, late at night, in an empty theater, for the second time"
)
SETTINGS = split_list(
    "a fishing village, a big city, the desert, a boarding school, an old hotel, a space station, a farm"
)
GENRES = split_list("drama, comedy, thriller, western, mystery, romance, war film, family film")

GOOD = split_list(
    "wonderful, brilliant, moving, clever, beautiful, charming, superb, gripping, delightful, excellent, touching, fresh"
)
BAD = split_list("terrible, boring, dull, clumsy, awful, predictable, lifeless, tedious, silly, weak, annoying, stale")

# Sentences by what they say. In a mixed one praise and blame cancel out.
PRAISE = (
    "The {part} was {good}.",
    "I found the {part} {good} and {good2}.",
    "{who} gives a {good} performance.",
    "The {part} is {good} from start to finish.",
    "It has a {good} {part}.",
    "I loved the {part}.",
    "The {part} is never {bad}.",
    "{who} was {good}, and so was the {part}.",
    "There is nothing {bad} about the {part}.",
    "What a {good} {part}!",
)
BLAME = (
    "The {part} was {bad}.",
    "I found the {part} {bad} and {bad2}.",
    "{who} gives a {bad} performance.",
    "The {part} is {bad} from start to finish.",
    "It has a {bad} {part}.",
    "I hated the {part}.",
    "The {part} is never {good}.",
    "{who} was {bad}, and so was the {part}.",
    "There is nothing {good} about the {part}.",
    "What a {bad} {part}!",
)
MIXED = (
    "The {part} was {good}, but the {part2} was {bad}.",
    "The {part} was {bad}, but the {part2} was {good}.",
)
FACTS = (
    "I saw {film} {when}.",
    "I watched {film} {when}.",
    "{film} is a {genre} about a family in {where}.",
    "This {genre} tells the story of a young woman in {where}.",
    "The film is set in {where}.",
    "{who} plays a doctor in {where}.",
    "{who} and {who2} play two sisters.",
    "It runs for almost two hours.",
    "My friend had told me about {film}.",
    "In {film} a man comes home to {where}.",
    "{who} wrote and directed {film}.",
    "There were about twenty people in the cinema.",
)
VERDICTS_GOOD = (
    "I recommend it to everyone.",
    "Go and see it.",
    "I would watch it again.",
    "One of the best films of the year.",
    "Ten out of ten.",
)
VERDICTS_BAD = (
    "I cannot recommend it to anyone.",
    "Do not waste your time.",
    "I would never watch it again.",
    "One of the worst films of the year.",
    "Two out of ten.",
)
