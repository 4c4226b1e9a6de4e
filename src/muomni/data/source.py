"""Where samples come from: one entry under `sources:` of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from muomni.config import Strict

Format = Literal[
    "text",
    "samples",
    "asr_csv",
    "tts_csv",
    "ocr_csv",
    "captions",
    "images",
    "sounds",
    "llava",
    "alpaca",
    "lhotse",
    "ljspeech",
    "librispeech",
    "vctk",
    "higgs",
    "rows",
]


class Source(Strict):
    """A file or folder, how it is read, and how much it counts.

    `messages` or `text` make it a template over flat rows, e.g. {path: digits.jsonl, id: "{id}", group:
    "{speaker}", task: digit, messages: [{user: [{audio: "{audio}"}, "what digit did you hear?"]}, {assistant:
    "{text}"}]}.
    """

    path: str
    format: Format | None = None  # None: told from the name and the first row
    root: str | None = None  # folder of the media; None: the manifest's
    weight: float = Field(
        default=1.0, gt=0
    )  # how often its samples are drawn, relative to the other sources'
    tasks: list[str] | None = None  # keep these tasks only
    val_split: float | None = Field(default=None, ge=0, lt=1)  # None: the recipe's
    limit: int | None = Field(default=None, ge=1)  # the first so many samples
    held_out_groups: list[str] = []  # patterns (`*`) of groups that are validation, whatever the hash says
    paragraphs: bool = False  # .txt: documents of whole paragraphs instead of one a line
    prompt: str | None = None  # what the user says besides the medium (captions, csv, images, samples)
    ignore: list[
        str
    ] = []  # columns that are left out on purpose, and placeholders (`<image>`) that are words
    captions_as_text: bool = False  # replace each picture by its answer's words, to train a text-only model

    # The template of format `rows` (group, task, split and class_name of `llava` too); {field}, {field.inner}
    # and {item} are replaced.
    id: str | None = None
    group: str | None = None
    task: str | None = None
    split: str | None = None
    class_name: str | None = None  # the class that an answer about the picture must name
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    negatives: str | None = None  # the field that lists [{kind, text}]
    where: dict[str, Any] = {}  # keep rows whose field equals this, or one of these
    expand: str | None = None  # one sample for each element of this list, the element as {item}

    @property
    def is_template(self) -> bool:
        """Whether its rows are flat and filled into `messages` or `text`."""
        return self.messages is not None or self.text is not None


class Recognised(Source):
    """A source whose template was told from its file, not by the recipe: a column of files that it does not
    name is refused."""

    @classmethod
    def of(cls, source: Source, **more: Any) -> Recognised:
        """The source with a template; a prompt has gone into it."""
        values = {**dict(source), **more, "prompt": None}
        return cls.model_construct(_fields_set=(source.model_fields_set | more.keys()) - {"prompt"}, **values)
