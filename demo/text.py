"""The demo's two tasks of text alone: sums of small numbers and home-control commands.

Which examples are held out is decided by a hash of what is asked (the unordered pair of a sum; the sentence
of a command without its politeness), so training never sees a held-out example in any order or wrapping.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from demo.items import Item, Message, is_held_out

LARGEST_TERM = 99
SUM_PHRASINGS = (
    "What is {a} + {b}?",
    "{a} + {b} =",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "Compute {a} + {b}.",
)

ROOMS = (
    "kitchen",
    "bedroom",
    "living room",
    "office",
    "bathroom",
    "hallway",
    "garage",
    "dining room",
    "nursery",
    "attic",
)
DOORS = ("front door", "back door", "garage door", "cellar door", "garden gate")
MUSIC = (
    "jazz",
    "rock",
    "blues",
    "opera",
    "piano music",
    "bossa nova",
    "Chopin",
    "Björk",
    "Café Tacvba",
    "the news",
)
LABELS = ("pasta", "eggs", "cake", "tea", "laundry", "bread", "rice", "soup")
POLITENESS = ("{plain}", "{plain}.", "{plain}, please.", "Please {lower}.", "Could you {lower}?")
SYSTEM_TEXTS = (
    "You are a home assistant.",
    "You are a helpful assistant.",
    "Answer with a call or a number.",
)


@dataclass(frozen=True)
class Command:
    """A function the home understands, how people ask for it, and how its arguments are drawn.

    `draw` returns the arguments of the call and the words that a phrasing needs.
    """

    name: str
    phrasings: tuple[str, ...]
    draw: Callable[[random.Random], tuple[dict[str, str | int], dict[str, str | int]]]


def _room_and(argument: str, values: tuple[str | int, ...]) -> Callable:
    """Draws a room and one value; the phrasing uses both by name."""

    def draw(rng: random.Random) -> tuple[dict, dict]:
        arguments = {"room": rng.choice(ROOMS), argument: rng.choice(values)}
        return arguments, arguments

    return draw


def _room(rng: random.Random) -> tuple[dict, dict]:
    arguments = {"room": rng.choice(ROOMS)}
    return arguments, arguments


def _blinds(rng: random.Random) -> tuple[dict, dict]:
    room = rng.choice(ROOMS)
    verb, state = rng.choice((("Open", "open"), ("Close", "closed")))
    return {"room": room, "state": state}, {"room": room, "verb": verb, "state": state}


def _lock(rng: random.Random) -> tuple[dict, dict]:
    door = rng.choice(DOORS)
    verb, state = rng.choice((("Lock", "locked"), ("Unlock", "unlocked")))
    return {"door": door, "state": state}, {"door": door, "verb": verb, "state": state}


def _timer(rng: random.Random) -> tuple[dict, dict]:
    arguments = {"minutes": rng.randint(2, 99), "label": rng.choice(LABELS)}
    return arguments, arguments


COMMANDS = (
    Command(
        "set_light",
        (
            "Turn {state} the {room} light",
            "Turn the {room} light {state}",
            "Switch {state} the light in the {room}",
            "Switch the lights in the {room} {state}",
        ),
        _room_and("state", ("on", "off")),
    ),
    Command(
        "dim_light",
        (
            "Dim the {room} light to {percent} percent",
            "Dim the light in the {room} to {percent}%",
            "Set the {room} light to {percent} percent",
            "Set the brightness in the {room} to {percent}%",
        ),
        _room_and("percent", tuple(range(5, 100, 5))),
    ),
    Command(
        "set_thermostat",
        (
            "Set the {room} thermostat to {degrees} degrees",
            "Heat the {room} to {degrees} °C",
            "Set the temperature in the {room} to {degrees} degrees",
            "Make it {degrees} degrees in the {room}",
        ),
        _room_and("degrees", tuple(range(15, 30))),
    ),
    Command(
        "play_music",
        (
            "Play {music} in the {room}",
            "Put on {music} in the {room}",
            "Let me hear {music} in the {room}",
            "Start {music} on the {room} speaker",
        ),
        _room_and("music", MUSIC),
    ),
    Command(
        "stop_music",
        (
            "Stop the music in the {room}",
            "Turn off the {room} speaker",
            "Silence the {room} speaker",
            "Stop playing in the {room}",
        ),
        _room,
    ),
    Command(
        "set_blinds",
        (
            "{verb} the blinds in the {room}",
            "{verb} the {room} blinds",
            "Make sure the {room} blinds are {state}",
            "Keep the blinds in the {room} {state}",
        ),
        _blinds,
    ),
    Command(
        "set_lock",
        (
            "{verb} the {door}",
            "Make sure the {door} is {state}",
            "Keep the {door} {state}",
            "Leave the {door} {state}",
        ),
        _lock,
    ),
    Command(
        "set_timer",
        (
            "Set a {minutes} minute timer for the {label}",
            "Set a timer for the {label} for {minutes} minutes",
            "Start a {label} timer of {minutes} minutes",
            "Remind me in {minutes} minutes to check the {label}",
        ),
        _timer,
    ),
)


def _draw_sum(rng: random.Random) -> Item:
    a, b = rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)
    question = rng.choice(SUM_PHRASINGS).format(a=a, b=b)
    return Item("sums", ({"role": "user", "content": question},), str(a + b), f"{min(a, b)}+{max(a, b)}")


def _draw_command(rng: random.Random) -> Item:
    command = rng.choice(COMMANDS)
    arguments, words = command.draw(rng)
    plain = rng.choice(command.phrasings).format(**words)
    question = rng.choice(POLITENESS).format(plain=plain, lower=plain[0].lower() + plain[1:])
    answer = json.dumps({"name": command.name, "arguments": arguments}, ensure_ascii=False)
    return Item("commands", ({"role": "user", "content": question},), answer, plain)


TASKS: dict[str, Callable[[random.Random], Item]] = {"sums": _draw_sum, "commands": _draw_command}


def _draw(task: str, rng: random.Random, *, want_held_out: bool) -> Item:
    """Draws items of one task until one is on the wanted side of the split."""
    while True:
        item = TASKS[task](rng)
        if is_held_out(item.key) == want_held_out:
            return item


def train_examples(seed: int) -> Iterator[list[Message]]:
    """Endless training conversations, a tenth of them with a system text.

    Each is two rounds, and a round is one command or two sums: about as long, and sums need the practice.
    """
    rng = random.Random(seed)
    while True:
        messages: list[Message] = []
        if rng.random() < 0.1:
            messages.append({"role": "system", "content": rng.choice(SYSTEM_TEXTS)})
        for task in rng.choices((("commands",), ("sums", "sums")), k=2):
            for item in (_draw(name, rng, want_held_out=False) for name in task):
                messages += [*item.messages, {"role": "assistant", "content": item.answer}]
        yield messages


def held_out_items(task: str, n: int, *, seed: int = 0) -> list[Item]:
    """`n` different questions of a task ("sums" or "commands") whose keys training never sees."""
    rng = random.Random(seed)
    items: dict[str, Item] = {}
    while len(items) < n:
        item = _draw(task, rng, want_held_out=True)
        items.setdefault(item.messages[0]["content"], item)
    return list(items.values())


def is_right_call(item: Item, answer: str) -> bool:
    """Whether the answer is JSON equal to the expected call."""
    try:
        return json.loads(answer) == json.loads(item.answer)
    except json.JSONDecodeError:
        return False
