"""Image codec: pictures to a grid of codes and back; the alphabet in which a language model reads and draws
pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from muomni.data.loader import Loader
from muomni.data.pictures import PictureAugment, Still, Stills
from muomni.evaluate import codec_audit, picture_codes
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import held_out_gap
from muomni.models.image_codec import ImageCodec, ImageCodecConfig
from muomni.stages import assumed
from muomni.stages.stage import BoardRow, Stage, StageSettings, Training, demand_tasks, loaders
from muomni.train.loop import Fitted
from muomni.train.objectives.image_codec import ImageCodecBatch, ImageCodecObjective


class ImageCodecSettings(StageSettings):
    """Settings of stage image_codec.

    augment        changes of the training pictures
    checked_tasks  tasks whose pictures show one object of the toy world: a checker by rules must still name
                   its colour and shape
    """

    model: ImageCodecConfig = ImageCodecConfig()
    augment: PictureAugment = PictureAugment()
    checked_tasks: list[str] = []
    unused: ClassVar[dict[str, str]] = {"len_buckets": "pictures are all of one size"}

    learns_as: ClassVar[str] = "image_codec"

    def width(self, needed: dict[str, Path], base: Path) -> int:
        """Inner size of its smallest products, which decides the number format: nine places of a 3x3
        convolution."""
        return 9 * min(self.model.fine_width, self.model.width)


def collate(items: list[Still]) -> ImageCodecBatch:
    """A batch of pictures."""
    return ImageCodecBatch(
        [item.sample_id for item in items], torch.from_numpy(np.stack([item.pixels for item in items]))
    )


class ImageCodecTraining(Training[ImageCodecSettings]):
    """Pictures through a quantised bottleneck; what survives of held-out ones at the end."""

    def vocabulary(self) -> None:
        """Nothing is learned from the data; tasks that are named must be there."""
        augment = self.settings.augment
        named = {f"augment.{name}": getattr(augment, name) for name in ("flip_tasks", "shift_only_tasks")}
        demand_tasks(self.corpus, checked_tasks=self.settings.checked_tasks, **named)

    def wire(self) -> tuple[ImageCodecObjective, dict[str, nn.Module]]:
        """A codec."""
        self.codec = self.inputs.place(ImageCodec(self.settings.model))
        return self.inputs.place(ImageCodecObjective(self.codec)), {".": self.codec}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Pictures to learn from, changed a little each time, and held-out ones as they are."""
        settings, size = self.settings, self.settings.model.image_size
        training = Stills(self.corpus.train, size, changes=settings.augment)
        self.held_out = Stills(self.corpus.valid, size)
        return loaders(training, self.held_out, collate, settings, weights=self.corpus.weights)

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """PSNR, SSIM, use of the codes, what a checker by rules still names, and the audit of the codec."""
        settings, device = self.settings, self.inputs.run.device
        how: dict[str, Any] = {"most": settings.eval_items, "checked_tasks": settings.checked_tasks}
        facts = picture_codes.quality(self.codec, self.held_out, device, stage_samples, **how)
        clips = picture_codes.clips(self.held_out, codec_audit.CLIPS)
        round_trip = {name: facts[name] for name in codec_audit.REGRESSIONS if name in facts}
        return facts | codec_audit.of_stage(self.inputs.folder, self.save, clips, device, round_trip)


def assume(settings: ImageCodecSettings, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """Noise for pictures, with a caption that nobody reads."""
    pictures = assumed.pictures(folder, settings.model.image_size)
    count = 2 * settings.batch_size * settings.gradient_accumulation_steps
    task = (settings.checked_tasks or ["image_codec"])[0]
    return [
        {**assumed.turns([assumed.part("image", pictures[number % assumed.KINDS])], words[0]), "task": task}
        for number in range(count)
    ]


STAGE = Stage(
    "image_codec",
    "pictures to codes and back",
    ImageCodecSettings,
    ImageCodecTraining,
    gates=(
        Gate(
            "round_trip",
            "psnr_gain",
            "pictures come back little better than their mean colour: train longer, wider model, more levels",
            at_least=3.0,
            by_ci=True,
            source="chosen: half the squared error of the mean colour, by the low end of 95 %",
        ),
        Gate(
            "structure",
            "ssim",
            "edges and surfaces are not where they were: train longer, wider model, smaller patch_size",
            above_floor=0.05,
            source="chosen; floor: the mean colour of each picture",
        ),
        Gate(
            "codes_used",
            "codes_used",
            "few codes do all the work: more data, longer training; fewer levels hold the same",
            at_least=0.05,
            source="chosen: toy pictures are mostly ground",
        ),
        Gate(
            "entropy",
            "entropy_bits",
            "nearly all tokens are one code: pictures do not get through the quantiser",
            at_least=2.0,
            source="chosen",
        ),
        Gate(
            "same_pictures",
            "decode_spread",
            "equal codes give other pictures alone than in a batch, or with other threads",
            at_most=1.0,
            source="chosen: a step of 8 bits, the rounding of one value at an edge",
        ),
        Gate(
            "colour_kept",
            "colour_kept",
            "a checker by rules names another colour after the codes than before: nobody could draw by them",
            at_least=0.95,
            source="issue 16: a drawn shape must be confirmed",
            when="checked_tasks",
        ),
        Gate(
            "shape_kept",
            "shape_kept",
            "a checker by rules names another shape after the codes than before: nobody could draw by them",
            at_least=0.9,
            source="issue 16: a drawn shape must be confirmed",
            when="checked_tasks",
        ),
        *codec_audit.STAGE_GATES,
        held_out_gap(0.5, "errors in half the range"),
    ),
    board=(
        BoardRow("image_codec.psnr", "psnr_db"),
        BoardRow("image_codec.ssim", "ssim"),
        BoardRow("image_codec.entropy_bits", "entropy_bits"),
        BoardRow("image_codec.colour_kept", "colour_kept", 0.95),
        BoardRow("image_codec.shape_kept", "shape_kept", 0.9),
    ),
    assume=assume,
    anatomy="muomni.report.anatomy:image_codec",
)
