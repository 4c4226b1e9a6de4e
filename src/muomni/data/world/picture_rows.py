"""Rows that show pictures: captions, questions, and single shapes for linear probes."""

from __future__ import annotations

import itertools
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from PIL import Image

from muomni.data.world import render
from muomni.data.world.asking import Asker
from muomni.data.world.lexicon import COLOURS, NUMBERS, PICTURED_WORDS, grammatical, is_held_out
from muomni.data.world.scene import Caption, Claim, Scene, Thing, changes, claim, describe, sample
from muomni.data.world.vocabulary import WHOLE, Vocabulary

Row = dict[str, Any]
MOST_TRIES = 200
SEEN_SHARE = 0.2  # of the valid pictures shows seen pairs only, for comparison; marked in extra
SEEN_DRAWN = 0.5  # the same of prompts to draw, which are new sentences about seen pairs


@dataclass(frozen=True)
class Written:
    """Digits or a word in a picture; `name` is how it is said."""

    text: str
    name: str
    colour: str

    def caption(self) -> str:
        """ "the number seven in red" """
        return f"the {'number' if self.text.isdigit() else 'word'} {self.name} in {self.colour}"


@dataclass(frozen=True)
class Picture:
    """A picture to draw: its path below the world's folder, what it shows, and the key of its randomness."""

    path: str
    content: Scene | Written
    key: tuple[int, ...]
    style: render.Style = render.VARIED

    def draw(self, side: int) -> Image.Image:
        """The RGB picture (side, side)."""
        rng = np.random.default_rng(self.key)
        if isinstance(self.content, Written):
            return render.written(rng, self.content.text, self.content.colour, side)
        return render.picture(rng, self.content, side, self.style)


@dataclass(frozen=True)
class Shown:
    """A picture of a scene with its split, caption and whether it shows a held-out pair."""

    picture: Picture
    scene: Scene
    caption: Caption
    split: str
    held_out: bool

    def extra(self) -> Row:
        """What a row says about its picture: the whole scene, and which pairs it shows."""
        return {
            "scene": [list(astuple(thing)) for thing in self.scene],
            "pairs": "held_out" if self.held_out else "seen",
        }


def message(role: str, *parts: Row | str) -> Row:
    """A message; a lone string is its whole content, strings among parts are text parts."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": role, "content": parts[0]}
    return {
        "role": role,
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
    }


@dataclass(frozen=True)
class Mix:
    """How many objects the training scenes show, by turns, and which share of them has colours without a
    name."""

    objects: tuple[int, ...]
    unnamed: float


# Shape is learned last, and fastest from one object in any colour; to look one up among others takes others,
# and words for them.
SCENES = Mix((1, 2, 1, 3), 0.5)
QUESTIONS = Mix((2, 3, 2, 3, 1), 0.2)
PROBES = Mix((1,), 0.0)


def show(
    seed: int, name: str, number: int, counts: dict[str, int], training: Mix, vocabulary: Vocabulary = WHOLE
) -> list[Shown]:
    """Scenes to train on and of held-out pairs; in the valid split no caption twice (texts of retrieval must
    differ)."""
    most = max(training.objects)
    shown = []
    shown_texts: set[str] = set()
    for split, number_of in counts.items():
        rng = np.random.default_rng((seed, number, split == "valid"))
        many = training.objects if split == "train" else range(1, most + 1)
        for index in range(number_of):
            held_out = split == "valid" and rng.random() >= SEEN_SHARE
            unnamed = split == "train" and rng.random() < training.unnamed
            for tried in itertools.count():
                # Single shapes have few captions: after 30 tries take one object more, or let a probe repeat
                # itself.
                count = min(most, many[index % len(many)] + tried // 30)
                scene = sample(rng, count, held_out=held_out, unnamed=unnamed, vocabulary=vocabulary)
                caption = describe(rng, scene, vocabulary)
                text = caption.text()
                if is_held_out(text) == (split == "valid") and not (split == "valid" and text in shown_texts):
                    break
                if tried >= 30 and most == 1:
                    break
            shown_texts.add(text)
            picture = Picture(
                f"images/{name}-{split}-{index:05d}.png", scene, (seed, number, split == "valid", index, 7)
            )
            shown.append(Shown(picture, scene, caption, split, held_out))
    return shown


@dataclass(frozen=True)
class Drawing:
    """A picture of one object, and the words that ask for it."""

    shown: Shown
    prompt: str


# How a drawing is asked for, without a place and with one; N is a noun like "red circle", H its shape, C its
# colour, L a place.
ASKED_ALONE = ("a N", "it is a N", "there is one N", "the H is C")
ASKED_PLACED = ("a N at the L", "the N is at the L", "there is a N at the L")


def show_alone(
    seed: int, name: str, number: int, counts: dict[str, int], vocabulary: Vocabulary = WHOLE
) -> list[Drawing]:
    """Pictures of one object each, with a prompt that says its colour and shape, and its size and place half
    of the time.

    Training knows seen pairs only, and no sentence that is held out. Of the valid prompts no two are alike; there
    may be fewer than asked.
    """
    drawings: list[Drawing] = []
    said: set[str] = set()
    for split, number_of in counts.items():
        is_training = split == "train"
        rng = np.random.default_rng((seed, number, not is_training))
        for index in range(number_of):
            held_out = not is_training and rng.random() >= SEEN_DRAWN
            for _ in range(MOST_TRIES):
                scene = sample(rng, 1, held_out=held_out, vocabulary=vocabulary)
                text = _asked(rng, scene[0], vocabulary)
                if is_held_out(text) != is_training and (is_training or text not in said):
                    break
            else:
                continue  # all prompts of this kind are there
            said.add(text)
            picture = Picture(
                f"images/{name}-{split}-{index:05d}.png",
                scene,
                (seed, number, not is_training, index, 7),
                render.PLAIN,
            )
            drawings.append(
                Drawing(Shown(picture, scene, Caption((claim(scene[0], vocabulary),)), split, held_out), text)
            )
    return drawings


def _asked(rng: np.random.Generator, thing: Thing, vocabulary: Vocabulary) -> str:
    """ "a red circle at the top" in one of its forms."""
    size = thing.size if vocabulary.says_sizes and rng.random() < 0.5 else None
    noun = Claim(size, thing.colour, thing.shape).noun()
    forms = ASKED_PLACED if rng.random() < 0.5 else ASKED_ALONE
    form = forms[rng.integers(len(forms))]
    words = {"N": noun, "H": thing.shape, "C": thing.colour, "L": thing.place}
    return grammatical(" ".join(words.get(word, word) for word in form.split()))


def draw_rows(drawings: list[Drawing]) -> list[Row]:
    """The user asks for a picture, the assistant gives it."""
    return [
        {
            "id": f"draw-{one.shown.split}-{index:05d}",
            "group": one.shown.picture.path,
            "task": "draw",
            "split": one.shown.split,
            "messages": [
                message("user", one.prompt),
                message("assistant", {"type": "image", "path": one.shown.picture.path}),
            ],
            "extra": {**one.shown.extra(), **vars(one.shown.scene[0])},
        }
        for index, one in enumerate(drawings)
    ]


def negatives(
    rng: np.random.Generator,
    caption: Caption,
    scene: Scene,
    *,
    training: bool,
    vocabulary: Vocabulary = WHOLE,
) -> list[Row]:
    """False captions with one attribute changed: one of each kind that the caption mentions, two of shape
    (learned last)."""
    options = list(changes(caption, vocabulary))
    rows: list[Row] = []
    missing = {kind: 2 if kind == "shape" else 1 for kind, _ in options}
    for index in rng.permutation(len(options)):
        kind, changed = options[index]
        if missing[kind] and not changed.holds(scene) and not (training and is_held_out(changed.text())):
            missing[kind] -= 1
            rows.append({"kind": kind, "text": changed.text()})
    return rows


def caption_rows(seed: int, shown: list[Shown], vocabulary: Vocabulary = WHOLE) -> list[Row]:
    """One row a picture: no words from the user, the caption from the assistant."""
    rng = np.random.default_rng((seed, 20))
    return [
        {
            "id": f"caption-{one.split}-{index:05d}",
            "group": one.picture.path,
            "task": "caption",
            "split": one.split,
            "messages": [
                message("user", {"type": "image", "path": one.picture.path}),
                message("assistant", one.caption.text()),
            ],
            "negatives": negatives(
                rng, one.caption, one.scene, training=one.split == "train", vocabulary=vocabulary
            ),
            "extra": one.extra(),
        }
        for index, one in enumerate(shown)
    ]


def question_rows(seed: int, shown: list[Shown], vocabulary: Vocabulary = WHOLE) -> list[Row]:
    """One conversation of 8 to 12 questions a picture, the picture in the first turn: many questions cost few
    tokens beside it."""
    rng = np.random.default_rng((seed, 21))
    askers = {
        split: Asker(rng, training=split == "train", vocabulary=vocabulary) for split in ("train", "valid")
    }
    rows: list[Row] = []
    for index, one in enumerate(shown):
        questions = askers[one.split].ask(one.scene, int(rng.integers(8, 13)))
        rows.append(
            {
                "id": f"question-{one.split}-{index:05d}",
                "group": one.picture.path,
                "task": "question",
                "split": one.split,
                "messages": conversation(
                    one.picture.path, [(question, answer) for _, question, answer in questions]
                ),
                "extra": one.extra() | {"kinds": [kind for kind, _, _ in questions]},
            }
        )
    return rows


def conversation(path: str, turns: list[tuple[str, str]]) -> list[Row]:
    """User and assistant in turns; the picture precedes the first question."""
    messages = []
    for index, (question, answer) in enumerate(turns):
        messages.append(
            message("user", {"type": "image", "path": path}, question)
            if index == 0
            else message("user", question)
        )
        messages.append(message("assistant", answer))
    return messages


def probe_rows(shown: list[Shown]) -> list[Row]:
    """Single shapes with their four attributes in extra."""
    return [
        {
            "id": f"probe-{one.split}-{index:05d}",
            "group": one.picture.path,
            "task": "probe",
            "split": one.split,
            "messages": [
                message("user", {"type": "image", "path": one.picture.path}),
                message("assistant", one.caption.text()),
            ],
            "extra": {**one.extra(), **vars(one.scene[0])},
        }
        for index, one in enumerate(shown)
    ]


def reading_rows(seed: int, counts: dict[str, int]) -> tuple[list[Picture], list[Row], list[Row]]:
    """Pictures of digits and words: (pictures, captions of the training ones, questions of both splits)."""
    pictures, captions, asked = [], [], []
    names = [(str(value), name) for value, name in enumerate(NUMBERS)] + [
        (word, word) for word in PICTURED_WORDS
    ]
    for split, count in counts.items():
        training = split == "train"
        rng = np.random.default_rng((seed, 22, split == "valid"))
        pool = [Written(*name, colour) for name in names for colour in COLOURS]
        pool = [one for one in pool if is_held_out(one.caption()) != training]
        for index in range(count):
            inked = [one for one in pool if (one.text, one.name) == names[index % len(names)]] or pool
            one = inked[rng.integers(len(inked))]
            path = f"images/reading-{split}-{index:05d}.png"
            pictures.append(Picture(path, one, (seed, 22, split == "valid", index, 7)))
            extra = {"written": one.text, "word": one.name, "colour": one.colour}
            row: Row = {"group": path, "split": split, "extra": extra}
            read = ("what number is it?" if one.text.isdigit() else "what does it say?", one.name)
            messages = conversation(path, [read, ("what colour is it?", one.colour)])
            kinds = {"kinds": ["read", "colour"]}
            asked.append(
                {
                    "id": f"reading-{split}-{index:05d}",
                    "task": "question",
                    **row,
                    "messages": messages,
                    "extra": {**extra, **kinds},
                }
            )
            if training:
                wrong = [other for other in pool if other.colour == one.colour and other.name != one.name]
                inks = [other for other in pool if other.text == one.text and other.colour != one.colour]
                changed = [
                    {"kind": kind, "text": choices[rng.integers(len(choices))].caption()}
                    for kind, choices in (("read", wrong), ("colour", inks))
                    if choices
                ]
                messages = [
                    message("user", {"type": "image", "path": path}),
                    message("assistant", one.caption()),
                ]
                captions.append(
                    {
                        "id": f"reading-caption-{index:05d}",
                        "task": "caption",
                        **row,
                        "messages": messages,
                        "negatives": changed,
                    }
                )
    return pictures, captions, asked
