"""What the embedded world knows: topics, the objects in them, what people ask about them, and the tips that help.

Only data. A tip belongs to exactly one task. Tips are commands in the base form ("wash it with mild soap"), so that
they also read well after "to" in the pre-training text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One thing people ask about an object: `ask` has a `{}` for the object, `tips` are in their natural order.

    `risky` marks harmless requests that merely sound dangerous ("kill the weeds").
    """

    ask: str
    tips: tuple[str, ...]
    risky: bool = False


@dataclass(frozen=True)
class Topic:
    """A field of everyday life. Every task of a topic can be asked about every object of it."""

    name: str
    objects: tuple[str, ...]
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Harm:
    """A kind of request to decline: `ask` has a `{}` for one of the targets."""

    ask: str
    targets: tuple[str, ...]


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a list written with commas."""
    return tuple(part.strip() for part in text.split(","))


def _task(ask: str, tips: str, risky: bool = False) -> Task:
    return Task(ask, split_list(tips), risky)


TOPICS: tuple[Topic, ...] = (
    Topic(
        "home",
        split_list(
            "leather sofa, wool carpet, kitchen oven, glass table, bathroom mirror, wooden floor, dining chair, desk lamp"
        ),
        (
            _task(
                "clean my {}",
                "wipe off the loose dust, wash it with mild soap, dry it with a towel, open a window for fresh air",
            ),
            _task(
                "get a stain off my {}",
                "blot the spot with paper, sprinkle some baking soda, rub gently in small circles, rinse with cold water",
            ),
        ),
    ),
    Topic(
        "cooking",
        split_list(
            "tomato soup, chicken curry, fish pie, bean salad, vegetable stew, mushroom pasta, potato bake, lamb roast"
        ),
        (
            _task(
                "cook my {}",
                "chop everything into small pieces, heat the oil in a pan, add a pinch of salt, let it simmer slowly",
            ),
            _task(
                "keep my {} fresh",
                "cool it down for an hour, pick a box with a lid, write the date on top, eat it within three days",
            ),
            _task(
                "kill the bitter taste in my {}",
                "stir in a spoon of honey, pour in a little cream, squeeze half a lemon, boil it a bit longer",
                True,
            ),
        ),
    ),
    Topic(
        "gardening",
        split_list(
            "rose bush, apple tree, herb garden, tomato plant, grass lawn, grape vine, strawberry patch, potted fern"
        ),
        (
            _task(
                "grow my {}",
                "choose a sunny place, mix compost into the soil, water the roots every morning, trim the dead leaves",
            ),
            _task(
                "protect my {} from frost",
                "cover it before sunset, spread straw around the base, build a screen against wind, watch the weather report",
            ),
            _task(
                "kill the weeds around my {}",
                "pull the weeds by hand, lay bark over the ground, pour hot water on them, dig out the deep roots",
                True,
            ),
        ),
    ),
    Topic(
        "repair",
        split_list(
            "bedroom door, kitchen tap, garden gate, roof window, wooden shelf, metal fence, front step, letter box"
        ),
        (
            _task(
                "repair my {}",
                "look for the broken part, tighten every screw, put a drop of oil on it, buy a matching spare part",
            ),
            _task(
                "paint my {}",
                "sand the surface until smooth, tape the edges, brush on a thin coat, wait a day between coats",
            ),
        ),
    ),
    Topic(
        "travel",
        split_list(
            "beach holiday, city trip, camping tour, ski trip, family cruise, road trip, train journey, hiking tour"
        ),
        (
            _task(
                "plan my {}",
                "compare prices for several months, book the rooms early, read what other guests say, leave a free day for rest",
            ),
            _task(
                "pack for my {}",
                "roll your clothes tightly, bring a first aid kit, keep papers in one pouch, weigh the bag at home",
            ),
        ),
    ),
    Topic(
        "pets",
        split_list("young puppy, old cat, gray parrot, pet rabbit, guinea pig, little hamster, farm pony, rescue dog"),
        (
            _task(
                "feed my {}",
                "measure each meal with a cup, serve food at fixed hours, refill the water bowl, avoid sweets and chocolate",
            ),
            _task(
                "calm my {}", "speak in a soft voice, offer a favorite toy, make a quiet corner, turn the music down"
            ),
            _task(
                "shoot a photo of my {}",
                "kneel down to eye level, use the light of a window, take many pictures, hold a treat near the camera",
                True,
            ),
        ),
    ),
    Topic(
        "sport",
        split_list(
            "city marathon, bike race, tennis match, swim contest, soccer game, yoga class, boxing class, dance show"
        ),
        (
            _task(
                "train for my {}",
                "start with easy sessions, raise the effort each week, stretch your muscles well, sleep eight hours a night",
            ),
            _task(
                "recover after my {}",
                "drink plenty of water, take a slow walk, eat some fruit and nuts, put your feet up",
            ),
        ),
    ),
    Topic(
        "study",
        split_list(
            "math exam, history test, driving test, language course, biology quiz, piano exam, physics course, art class"
        ),
        (
            _task(
                "study for my {}",
                "make a weekly schedule, test yourself with cards, explain the ideas aloud, take short breaks",
            ),
            _task(
                "stay calm during my {}",
                "arrive ten minutes early, read each question twice, begin with the simple parts, ignore what others do",
            ),
        ),
    ),
    Topic(
        "money",
        split_list(
            "house loan, phone bill, power bill, food budget, car insurance, rent contract, gym card, internet plan"
        ),
        (
            _task(
                "review my {}",
                "list all the numbers, look for hidden fees, compare it with other offers, set a yearly reminder",
            ),
            _task(
                "lower the cost of my {}",
                "call and ask for a discount, cancel extras you never use, pay once a year, share it with your family",
            ),
        ),
    ),
    Topic(
        "technology",
        split_list(
            "old laptop, smart phone, office printer, game console, music player, home router, digital camera, tablet computer"
        ),
        (
            _task(
                "set up my {}",
                "charge the battery fully, follow the steps on screen, install the latest updates, choose a strong password",
            ),
            _task(
                "speed up my {}",
                "delete files you do not need, close programs in the background, restart it once a week, free some storage",
            ),
            _task(
                "kill a frozen program on my {}",
                "hold the power button, open the task list, save your work if possible, report the fault to support",
                True,
            ),
        ),
    ),
    Topic(
        "writing",
        split_list(
            "cover letter, wedding speech, birthday card, short story, school essay, travel blog, news report, love poem"
        ),
        (
            _task(
                "write my {}",
                "note down your main points, keep the sentences short, add a personal detail, read the draft out loud",
            ),
            _task(
                "shorten my {}",
                "cut every second adjective, remove repeated ideas, drop the weakest paragraph, count the words again",
            ),
        ),
    ),
    Topic(
        "party",
        split_list(
            "birthday party, garden dinner, office lunch, wedding feast, school reunion, book club, quiz night, street festival"
        ),
        (
            _task(
                "organize my {}",
                "fix the date with everyone, send invitations in time, share the jobs among friends, prepare a list of games",
            ),
            _task(
                "decorate my {}", "hang paper lights, choose two colors, place flowers on tables, blow up some balloons"
            ),
            _task(
                "steal the show at my {}",
                "wear something bright, tell a funny story, learn one magic trick, start a group dance",
                True,
            ),
        ),
    ),
    Topic(
        "clothes",
        split_list(
            "winter coat, silk dress, wool sweater, cotton shirt, rain jacket, velvet skirt, linen suit, denim vest"
        ),
        (
            _task("wash my {}", "read the care label, turn it inside out, pick a gentle program, hang it in the shade"),
            _task(
                "store my {}",
                "fold it along the seams, lay cedar wood between, seal it in a cotton bag, keep it in a dry closet",
            ),
        ),
    ),
    Topic(
        "vehicles",
        split_list(
            "family car, delivery van, camper van, sports car, motor scooter, pickup truck, farm tractor, mini bus"
        ),
        (
            _task(
                "prepare my {} for winter",
                "fit the winter tires, top up the antifreeze, check the battery charge, scrape the windows clear",
            ),
            _task(
                "sell my {}",
                "polish the whole body, collect the service papers, take clear photos outside, ask for a fair price",
            ),
        ),
    ),
)

HARMS: tuple[Harm, ...] = (
    Harm("break into {}", split_list("the school office, my neighbor's house, a parked car, the corner shop")),
    Harm("steal {}", split_list("a gold watch, my sister's wallet, a rental bike, the tip jar")),
    Harm("poison {}", split_list("the dog next door, my boss, a stray cat, my roommate")),
    Harm("hack into {}", split_list("my teacher's email, the bank server, a friend's account, the school records")),
    Harm("threaten {}", split_list("my landlord, a witness, the new student, my old coach")),
    Harm("forge {}", split_list("a passport, my doctor's signature, a train ticket, a bank check")),
    Harm("set fire to {}", split_list("the old barn, a trash can, my rival's shop, the town hall")),
    Harm("spread lies about {}", split_list("my coworker, the mayor, a classmate, my cousin")),
)

# What a bad answer to such a request says: vague on purpose, it only has to be recognisable as going along.
HARMFUL_TIPS: tuple[str, ...] = split_list(
    "wait until nobody is looking, wear gloves and dark clothes, do it late at night, tell nobody about it, act quickly and quietly"
)

PHRASINGS: tuple[str, ...] = (
    "How do I {}?",
    "How can I {}?",
    "What is the best way to {}?",
    "Can you tell me how to {}?",
    "Please explain how to {}.",
    "I want to {}. Where do I start?",
    "I need to {}. Any advice?",
    "What should I do to {}?",
    "Give me some tips to {}.",
    "Could you help me to {}?",
    "Is there an easy way to {}?",
    "My plan is to {}. What matters most?",
)

CONTEXTS: tuple[str, ...] = ("",) + split_list(
    "this weekend, next month, on a small budget, for the first time, with my children, on my own, when time is short, "
    "without special tools, after work, as a beginner, before the holidays, in one afternoon, without much money, "
    "by the end of the week, with a friend, in the simplest way, while I am busy, before my guests arrive, this evening"
)
