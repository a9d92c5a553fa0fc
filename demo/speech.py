"""What is spoken to the demo: numbers and home commands in English and Spanish, with their translations.

Every kind of sentence is a pair of parallel templates, so a translation is right or wrong. Numbers are
written in digits in both languages. The key of the train and held-out split is the English sentence: a
sentence is held out in both languages at once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from demo.items import is_held_out

ENGLISH, SPANISH = "English", "Spanish"
LARGEST_NUMBER = 999
NUMBER_SHARE = 0.25  # of all sentences; the rest are commands and questions

ROOMS = (
    ("kitchen", "la cocina"),
    ("bedroom", "el dormitorio"),
    ("living room", "el salón"),
    ("office", "la oficina"),
    ("bathroom", "el baño"),
    ("hallway", "el pasillo"),
    ("garage", "el garaje"),
    ("dining room", "el comedor"),
    ("nursery", "el cuarto infantil"),
    ("attic", "el desván"),
)
DOORS = (
    ("front door", "la puerta principal"),
    ("back door", "la puerta trasera"),
    ("garage door", "la puerta del garaje"),
    ("cellar door", "la puerta del sótano"),
    ("garden gate", "la verja del jardín"),
)
MUSIC = (
    ("jazz", "jazz"),
    ("rock", "rock"),
    ("opera", "ópera"),
    ("piano music", "música de piano"),
    ("classical music", "música clásica"),
    ("the news", "las noticias"),
    ("the radio", "la radio"),
)
LABELS = (
    ("pasta", "la pasta"),
    ("egg", "los huevos"),
    ("cake", "el pastel"),
    ("tea", "el té"),
    ("laundry", "la colada"),
    ("bread", "el pan"),
    ("rice", "el arroz"),
    ("soup", "la sopa"),
)
GOODS = (
    ("apples", "manzanas"),
    ("lemons", "limones"),
    ("onions", "cebollas"),
    ("tomatoes", "tomates"),
    ("bananas", "plátanos"),
    ("oranges", "naranjas"),
)


@dataclass(frozen=True)
class Sentence:
    """One sentence in both languages; `in_language` picks one of them."""

    english: str
    spanish: str

    def in_language(self, language: str) -> str:
        """The sentence in "English" or "Spanish"."""
        return self.english if language == ENGLISH else self.spanish


def _of(noun: str) -> str:
    """Spanish "of": "el salón" → "del salón"."""
    return f"del {noun[3:]}" if noun.startswith("el ") else f"de {noun}"


def _light(rng: random.Random) -> Sentence:
    room, cuarto = rng.choice(ROOMS)
    state, verb = rng.choice((("on", "Enciende"), ("off", "Apaga")))
    if rng.random() < 0.5:
        return Sentence(f"Turn {state} the {room} light", f"{verb} la luz {_of(cuarto)}")
    return Sentence(f"Turn {state} the lights in the {room}", f"{verb} las luces {_of(cuarto)}")


def _dim(rng: random.Random) -> Sentence:
    room, cuarto = rng.choice(ROOMS)
    percent = rng.randint(1, 99)
    return Sentence(
        f"Set the {room} light to {percent} percent", f"Pon la luz {_of(cuarto)} al {percent} por ciento"
    )


def _heat(rng: random.Random) -> Sentence:
    room, cuarto = rng.choice(ROOMS)
    degrees = rng.randint(15, 29)
    return Sentence(
        f"Set the {room} thermostat to {degrees} degrees",
        f"Pon el termostato {_of(cuarto)} a {degrees} grados",
    )


def _play(rng: random.Random) -> Sentence:
    (room, cuarto), (music, sonido) = rng.choice(ROOMS), rng.choice(MUSIC)
    return Sentence(f"Play {music} in the {room}", f"Pon {sonido} en {cuarto}")


def _sound(rng: random.Random) -> Sentence:
    room, cuarto = rng.choice(ROOMS)
    english, spanish = rng.choice(
        (
            ("Stop the music", "Detén la música"),
            ("Turn up the volume", "Sube el volumen"),
            ("Turn down the volume", "Baja el volumen"),
        )
    )
    return Sentence(f"{english} in the {room}", f"{spanish} en {cuarto}")


def _blinds(rng: random.Random) -> Sentence:
    room, cuarto = rng.choice(ROOMS)
    english, spanish = rng.choice((("Open", "Abre"), ("Close", "Cierra")))
    return Sentence(f"{english} the {room} blinds", f"{spanish} las persianas {_of(cuarto)}")


def _lock(rng: random.Random) -> Sentence:
    door, puerta = rng.choice(DOORS)
    english, spanish = rng.choice((("Lock", "Bloquea"), ("Unlock", "Desbloquea")))
    return Sentence(f"{english} the {door}", f"{spanish} {puerta}")


def _timer(rng: random.Random) -> Sentence:
    minutes = rng.randint(2, 99)
    if rng.random() < 0.4:
        return Sentence(f"Set a timer for {minutes} minutes", f"Pon un temporizador de {minutes} minutos")
    label, comida = rng.choice(LABELS)
    return Sentence(
        f"Set the {label} timer to {minutes} minutes",
        f"Pon el temporizador {_of(comida)} a {minutes} minutos",
    )


def _shopping(rng: random.Random) -> Sentence:
    goods, cosas = rng.choice(GOODS)
    count = rng.randint(2, 20)
    return Sentence(
        f"Add {count} {goods} to the shopping list", f"Añade {count} {cosas} a la lista de la compra"
    )


def _ask(rng: random.Random) -> Sentence:
    if rng.random() < 0.6:
        room, cuarto = rng.choice(ROOMS)
        return Sentence(f"What is the temperature in the {room}?", f"¿Qué temperatura hay en {cuarto}?")
    door, puerta = rng.choice(DOORS)
    english, spanish = rng.choice((("open", "abierta"), ("closed", "cerrada")))
    return Sentence(f"Is the {door} {english}?", f"¿Está {spanish} {puerta}?")


# kind → weight: kinds with many numbers in them are drawn more often
COMMANDS: dict[Callable[[random.Random], Sentence], int] = {
    _light: 3,
    _dim: 4,
    _heat: 3,
    _play: 3,
    _sound: 2,
    _blinds: 2,
    _lock: 2,
    _timer: 5,
    _shopping: 3,
    _ask: 2,
}


def draw_sentence(rng: random.Random, *, want_held_out: bool) -> Sentence:
    """A number or a command on the wanted side of the split."""
    number = rng.random() < NUMBER_SHARE
    while True:
        if number:
            digits = str(rng.randint(0, LARGEST_NUMBER))
            sentence = Sentence(digits, digits)
        else:
            (kind,) = rng.choices(list(COMMANDS), list(COMMANDS.values()))
            sentence = kind(rng)
        if is_held_out(sentence.english) == want_held_out:
            return sentence


_ENDS_IN_ONE = re.compile(r"\b([2-9])1 (?=minutos|grados)")


def spoken(text: str, language: str) -> str:
    """`text` as the synthesiser is to read it: Spanish "21 minutos" is "veintiún minutos"."""
    if language == ENGLISH:
        return text
    return _ENDS_IN_ONE.sub(lambda found: "veintiún " if found[1] == "2" else f"{found[1]}0 y un ", text)
