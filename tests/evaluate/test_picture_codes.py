"""What is measured of an image codec, on codecs whose faults are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from muomni.data.pictures import Stills
from muomni.data.sample import Sample
from muomni.data.world import picture_rows
from muomni.evaluate import picture_codes
from muomni.evaluate.samples import ROWS, StageSamples
from muomni.models.image_codec import ImageCodec, ImageCodecConfig

COUNT = 24
CPU = torch.device("cpu")


class Perfect(ImageCodec):
    """Remembers each picture: its first code is the picture's number, the others are drawn by it."""

    def __init__(self) -> None:
        super().__init__(ImageCodecConfig(width=8, fine_width=8))
        self.seen: list[Tensor] = []

    def encode(self, media: Tensor) -> Tensor:
        codes = []
        for image in media:
            number = next((n for n, each in enumerate(self.seen) if torch.equal(each, image)), len(self.seen))
            if number == len(self.seen):
                self.seen.append(image)
            rest = torch.randint(1024, (63,), generator=torch.Generator().manual_seed(number))
            codes.append(torch.cat([torch.tensor([number]), rest])[None])
        return torch.stack(codes)

    def decode(self, codes_BKF: Tensor) -> Tensor:
        return torch.stack([self.seen[int(codes[0, 0])] for codes in codes_BKF])


class Swapped(Perfect):
    """Gives red for blue."""

    def decode(self, codes_BKF: Tensor) -> Tensor:
        return super().decode(codes_BKF).flip(1)


class Mean(Perfect):
    """Knows the mean colour alone, and has one code for most of it."""

    def encode(self, media: Tensor) -> Tensor:
        codes = super().encode(media)
        codes[:, :, 1:] = 7
        return codes

    def decode(self, codes_BKF: Tensor) -> Tensor:
        image = super().decode(codes_BKF)
        return image.mean((2, 3), keepdim=True).expand_as(image)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Stills:
    """Single shapes of the toy world, half of them of a task that the checker is not asked about."""
    folder: Path = tmp_path_factory.mktemp("shapes")
    samples = []
    for number, one in enumerate(picture_rows.show(2, "probe", 12, {"valid": COUNT}, picture_rows.PROBES)):
        path = folder / f"{number}.png"
        Image.fromarray(np.array(one.picture.draw(64))).save(path)
        content: Any = [{"type": "image", "path": str(path)}]
        messages: Any = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": one.caption.text()},
        ]
        samples.append(
            Sample(
                id=f"s{number}",
                group=f"s{number}",
                task="probe" if number % 2 else "other",
                messages=messages,
            )
        )
    return Stills(samples, 64)


def measured(
    codec: ImageCodec, held_out: Stills, album: StageSamples | None = None, **how: Any
) -> dict[str, float]:
    facts = picture_codes.quality(
        codec, held_out, CPU, album or StageSamples(), **{"most": COUNT, "checked_tasks": ["probe"], **how}
    )
    return {name: fact.value for name, fact in facts.items()}


def test_a_codec_without_loss_is_told_so(held_out: Stills, tmp_path: Path) -> None:
    album = StageSamples()
    facts = measured(Perfect(), held_out, album)
    assert (facts["psnr_db"], facts["colour_kept"], facts["shape_kept"]) == (60.0, 1.0, 1.0)
    assert facts["ssim"] == pytest.approx(1.0, abs=1e-5)
    assert facts["decode_spread"] == 0.0
    assert 8 < facts["entropy_bits"] <= 10
    album.write(tmp_path / "samples")
    rows = (tmp_path / "samples" / ROWS).read_text()
    assert rows.count('"kind": "rebuilt"') + rows.count('"kind":"rebuilt"') == COUNT
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2 * COUNT


def test_each_fault_moves_its_own_fact(held_out: Stills) -> None:
    swapped, mean = (measured(codec, held_out) for codec in (Swapped(), Mean()))
    assert swapped["colour_kept"] < 0.7
    assert swapped["shape_kept"] == 1.0
    assert mean["psnr_gain"] == pytest.approx(0.0, abs=0.1)
    assert (mean["colour_kept"], mean["shape_kept"]) == (0.0, 0.0)
    assert mean["entropy_bits"] < 1


def test_the_checker_is_asked_about_named_tasks_alone(held_out: Stills) -> None:
    facts = picture_codes.quality(
        Perfect(), held_out, CPU, StageSamples(), most=COUNT, checked_tasks=["probe"]
    )
    assert facts["shape_kept"].n == COUNT // 2
    assert facts["psnr_db"].n == COUNT
    assert "shape_kept" not in measured(Perfect(), held_out, checked_tasks=[])
    assert picture_codes.quality(Perfect(), held_out, CPU, StageSamples(), most=6)["psnr_db"].n == 6


def test_what_can_not_be_read_is_left_out_and_nothing_at_all_gives_no_fact(
    held_out: Stills, tmp_path: Path
) -> None:
    content: Any = [{"type": "image", "path": str(tmp_path / "missing.png")}]
    torn = Sample.model_validate(
        {**held_out.samples[0].model_dump(), "messages": [{"role": "user", "content": content}]}
    )
    facts = picture_codes.quality(
        Perfect(), Stills([torn, *held_out.samples[1:4]], 64), CPU, StageSamples(), most=COUNT
    )
    assert facts["psnr_db"].n == 3
    assert picture_codes.quality(Perfect(), Stills([torn], 64), CPU, StageSamples(), most=COUNT) == {}
