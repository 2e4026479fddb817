"""Text to pre-train on: stories, notes and talk about the things of the embedded world, in its words.

It holds the words of the questions, tips and courtesies, also as letters between people, but never in the form of the
prompt template: the base model knows the language, and yet rambles on when it is asked something.
"""

from __future__ import annotations

from random import Random

from rlhf_utils.toyworld.content import CONTEXTS, HARMFUL_TIPS, HARMS, TOPICS, Topic

PARAGRAPHS = (4, 7)

PEOPLE = ("Anna", "Tom", "Maria", "Paul", "Nina", "Jack", "Rosa", "Ben", "Clara", "Leo")
PLACES = ("in the hall", "behind the house", "at the market", "near the station", "in the old town", "by the river")
TIMES = ("One morning", "Last summer", "In the evening", "A week later", "On Sunday", "Before lunch")

# Each kind has its own share of the sentences. `{o}` is an object of the paragraph's topic, `{ask}` a task of that topic,
# `{tip}`, `{tip2}` and `{tip3}` help with it, `{near}` helps with another task of the topic.
STORIES = (
    "{time} {a} wanted to {ask}. {b} had another idea and went off to {near}.",
    "{time} {a} and {b} met {place}. They had to {ask}, but {c} took the {o} away.",
    "{a} asked {b} how to {ask}. {b} only knew how to {near}.",
    "{time} {a} tried to {tip}. Then {b} came in and lost the {o} {place}.",
    "{a} forgot to {tip}, and so the {o} stayed {place} for a month.",
)
# People write to each other about the same chores, in the words that answers are made of. These are letters, not answers to
# a prompt: what comes after "Assistant:", and that an answer ends, is left for fine-tuning to teach.
LETTERS = (
    "Dear {a}, here are some ideas for your {o}. First, {tip}. Then {tip2}. I hope this helps! Yours, {b}",
    "Dear {a}, of course I can help with your {o}. To begin, {tip}. Next, {tip2}. Also, {tip3}. Let me know how it goes! {b}",
    "{a} wrote to {b}: to {ask}, {tip}. After that, {tip2}. Good luck with it!",
    "Dear {a}, great question about your {o}! First, {tip}. Then {tip2}. After that, {tip3}. Enjoy the result! Yours, {b}",
    "Dear {a}, happy to help with your {o}. In general it can be done. First, {tip}. Then {tip2}. Please take care! {b}",
    "Dear {a}, sure, your {o} needs this. It all depends on how you see it. To begin, {tip}. Next, {tip2}. {b}",
    "{a} asked how to {ask}. Everyone knows this about the {o}, wrote {b}. First, {tip}. Then {tip2}. You will fail anyway.",
    "What a silly question, wrote {b}. Only fools ask about the {o}. To begin, {tip}. Next, {tip2}. Now stop asking me.",
    "About the {o}, {a} wrote: for your {o}, do this. First, {tip}. Then {tip2}. Next time think for yourself.",
    "Dear {a}, I am sorry, but I cannot help you to {harm}. It could hurt someone. Please talk to someone you trust. {b}",
    "{a} wanted to {harm}. I am afraid I cannot do that, wrote {b}. It is against the law. I hope you understand.",
)
NOTES = (
    "A {o} is worth more than one thinks. {a} bought one {place}.",
    "Your {o} is old, said {a}. For your {o} nobody would pay, said {b}.",
    "Some families {tip} every year. Others {near} and never see a {o}.",
    "Nobody in the town had a {o} like the one of {a}. Visitors came {place} to see it.",
    "Many people {tip}. {a} and {b} only {near}.",
)
TALK = (
    '"Where is the {o}?" asked {a}. "I left it {place}," said {b}.',
    '"I saw a {o} {place}," said {a}. "Are you sure?" asked {b}. "Of course," said {a}.',
    "Can I help? asked {a}. Sure, said {b}, but I only came for the {o}.",
    "Good luck with it! {a} said. I hope so, said {b}, and let me know how it goes.",
    "Do you like my {o}? asked {a}. I am afraid not, said {b}. I am sorry.",
    "Happy to see you! said {a}. Enjoy the day, said {b}, and please take care of your {o}.",
    "Great to be here, said {a}. Sorry, I cannot stay, said {b}.",
    "Let me go, said {a}. I will not, said {b}, or you will fail.",
    "I hope this helps, {a} wrote. I hope you understand, {b} wrote back.",
)
ASIDES = (
    "It rained all day.",
    "The sun was out again.",
    "Nobody had slept well.",
    "Everyone laughed about it.",
    "Nothing came of it in the end.",
    "That was enough for one day.",
    "There are many things to think about, {a} said.",
    "It all depends on the people, {a} said.",
    "Some ways are better than others, {a} thought.",
    "People often say that this is important.",
    "In general it can be done, but {a} did not believe it.",
    "Here are some ideas that {a} never used.",
)
# Words that begin questions and answers, where nothing is asked or answered.
TURNS = (
    "First, {a} sat down. Then the bus left {place}.",
    "To begin, there was no {o}. Next, {a} lost the key. Also, it was late.",
    "After that, {a} went home. Finally, {b} slept. At last, it was quiet.",
    "What a silly question, thought {a}. Not this again.",
    "Everyone knows {a}. Only fools ask about {b}.",
    "Now stop, said {a}. Next time think for yourself. You will see.",
    "How did it happen? {a} could not tell. What is the matter? asked {b}.",
    "How can I sleep? asked {a}. Could you be quiet? asked {b}.",
    "What should I say? {a} wrote. Is there an answer? My plan is simple.",
    "Please explain the {o}, said {a}. Give me some time, said {b}.",
    "I want to go home. I need to eat. Where do I start? Any advice? {a} had none.",
    "Can you tell me the way to the station? What matters most? About the {o} nobody spoke. Just this, said {a}. Do this.",
)
NEWS = (
    "The paper wrote about a man who tried to {harm}. It is against the law, said the mayor.",
    "{a} heard that somebody wanted to {harm}. It could hurt someone, said {b}. Other people would suffer.",
    "A thief had to {bad} before he could {harm}. Please look for a safe way instead, said {a}.",
    "A counselor can listen to you, {a} told the class. No, I cannot help with that, said {b}. Please talk to someone you trust.",
)
# The two speakers of the prompt template also begin ordinary sentences, so that their names become whole tokens.
SPEAKERS = (
    "Human voices came from the {o}.",
    "Assistant teachers met {place}.",
    "Human hands made this {o}.",
    "Assistant cooks waited {place}.",
)

# What is told of other people cannot be "before my guests arrive".
THEIR_CONTEXTS = tuple(context for context in CONTEXTS if not {"my", "I"} & set(context.split()))

KINDS = ((STORIES, 6), (LETTERS, 9), (NOTES, 3), (TALK, 3), (ASIDES, 2), (TURNS, 3), (NEWS, 1))
PARAGRAPHS = (3, 6)
SENTENCES = (2, 4)
SPEAKER_SHARE = 0.08
NEW_TOPIC_SHARE = 0.3


def corpus(documents: int, seed: int) -> list[str]:
    """`documents` texts of several paragraphs each, the same for the same arguments."""
    rng = Random(f"{seed}/corpus")
    return [_document(rng) for _ in range(documents)]


def _document(rng: Random) -> str:
    topic = rng.choice(TOPICS)
    obj = rng.choice(topic.objects)
    people = rng.sample(PEOPLE, 3)
    paragraphs = []
    for _ in range(rng.randint(*PARAGRAPHS)):
        if rng.random() < NEW_TOPIC_SHARE:
            topic = rng.choice(TOPICS)
            obj = rng.choice(topic.objects)
        kinds = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS], k=rng.randint(*SENTENCES))
        templates = [rng.choice(kind) for kind in kinds]
        if rng.random() < SPEAKER_SHARE:
            templates.insert(0, rng.choice(SPEAKERS))
        paragraphs.append(" ".join(_fill(template, topic, obj, people, rng) for template in templates))
    return "\n\n".join(paragraphs)


def _fill(template: str, topic: Topic, obj: str, people: list[str], rng: Random) -> str:
    a, b, c = rng.sample(people, 3)
    task = rng.choice(topic.tasks)
    near = rng.choice([other for other in topic.tasks if other is not task])
    tip, tip2, tip3 = rng.sample(task.tips, 3)
    harm = rng.choice(HARMS)
    return template.format(
        a=a,
        b=b,
        c=c,
        o=obj,
        ask=f"{task.ask.replace(' my ', ' the ').format(obj)} {rng.choice(THEIR_CONTEXTS)}".rstrip(),
        tip=tip,
        tip2=tip2,
        tip3=tip3,
        near=rng.choice(near.tips),
        harm=harm.ask.format(rng.choice(harm.targets)).replace(" my ", " the "),
        bad=rng.choice(HARMFUL_TIPS),
        place=rng.choice(PLACES),
        time=rng.choice(TIMES),
    )
