"""How well pictures survive their codes: what the eye sees of it (PSNR, SSIM), what the codes are used for,
what is still recognised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from muomni.data.pictures import Stills
from muomni.errors import DataError
from muomni.evaluate import sample_writers, shape_checker
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import bootstrap, unigram_entropy
from muomni.evaluate.picture_metrics import psnr_B, ssim_B
from muomni.evaluate.samples import StageSamples
from muomni.models.image_codec import ImageCodec
from muomni.train.objectives.image_codec import as_image

BATCH = 32
REPEATED = 16  # pictures that are decoded again, one at a time and with another number of threads


@torch.inference_mode()
def quality(
    codec: ImageCodec,
    held_out: Stills,
    device: torch.device,
    stage_samples: StageSamples,
    *,
    most: int,
    checked_tasks: Sequence[str] = (),
) -> dict[str, Fact]:
    """Facts of the round trip on up to `most` held-out pictures, spread evenly; everything goes through
    codes.

    Takes   checked_tasks: tasks whose pictures show one object of the toy world, for the checker by rules.
    Gives   nothing where no picture can be read.
    """
    codec.eval()
    indices, pixels = _readable(held_out, most)
    if not indices:
        return {}
    pixels_NHW3 = torch.from_numpy(np.stack(pixels))
    image_N3HW = as_image(pixels_NHW3.to(device))
    codes_NKF = torch.cat([codec.encode(part) for part in torch.split(image_N3HW, BATCH)])
    rebuilt_N3HW = torch.cat([_shown(codec.decode(codes)) for codes in torch.split(codes_NKF, BATCH)])
    flat_N3HW = image_N3HW.mean((2, 3), keepdim=True).expand_as(image_N3HW)
    psnr_N, flat_psnr_N = psnr_B(rebuilt_N3HW, image_N3HW), psnr_B(flat_N3HW, image_N3HW)
    ssim_N, flat_ssim_N = ssim_B(rebuilt_N3HW, image_N3HW), ssim_B(flat_N3HW, image_N3HW)
    facts = {
        "psnr_db": _mean(psnr_N, float(flat_psnr_N.mean())),
        "psnr_gain": _mean(psnr_N - flat_psnr_N, 0.0),
        "ssim": _mean(ssim_N, float(flat_ssim_N.mean())),
        **_use(codec, codes_NKF),
        "decode_spread": _spread(codec, codes_NKF, rebuilt_N3HW),
    }
    rebuilt = (255 * rebuilt_N3HW.cpu()).round().byte().permute(0, 2, 3, 1).numpy()
    facts |= _recognised(held_out, indices, pixels, list(rebuilt), checked_tasks)
    sample_writers.pictures_rebuilt(
        stage_samples,
        held_out,
        indices,
        pixels,
        list(rebuilt),
        psnr_N.tolist(),
        codes_NKF,
        codec.codebook_size,
    )
    return facts


def clips(held_out: Stills, most: int) -> list[Tensor]:
    """Up to `most` pictures (3, H, W) in [0, 1], spread evenly over those that can be read: for an audit."""
    _, pixels = _readable(held_out, most)
    return list(as_image(torch.from_numpy(np.stack(pixels)))) if pixels else []


def _readable(held_out: Stills, most: int) -> tuple[list[int], list[np.ndarray]]:
    indices, pixels = [], []
    for index in (
        np.linspace(0, len(held_out) - 1, min(most, len(held_out))).astype(int).tolist()
        if len(held_out)
        else []
    ):
        try:
            pixels.append(held_out.pixels(index))
        except DataError:
            continue  # the loader counts and names it
        indices.append(index)
    return indices, pixels


def _shown(image_B3HW: Tensor) -> Tensor:
    """Values as a file of 8 bits holds them: what is measured is what is seen."""
    return (255 * image_B3HW).round() / 255


def _mean(values_N: Tensor, floor: float) -> Fact:
    values = values_N.double().tolist()
    return Fact(sum(values) / len(values), len(values), bootstrap(values), floor)


def _use(codec: ImageCodec, codes_NKF: Tensor) -> dict[str, Fact]:
    """Which codes are used, and bits of a token by how often each code is: the most that a model can't know
    of it alone."""
    tokens = codes_NKF.flatten().tolist()
    bits = unigram_entropy(tokens) / np.log(2)
    # Few pictures can't use all codes; each token can use one.
    possible = min(codec.codebook_size, len(tokens))
    used = len(set(tokens))
    return {
        "codes_used": Fact(
            used / possible, len(tokens), None, 1 / possible, note=f"{used} of {codec.codebook_size}"
        ),
        "entropy_bits": Fact(float(bits), len(tokens), None, 0.0),
    }


def _spread(codec: ImageCodec, codes_NKF: Tensor, rebuilt_N3HW: Tensor) -> Fact:
    """The largest difference, in steps of 8 bits, of pictures that are decoded again from the same codes, one
    at a time and with another number of threads.

    Convolutions round by batch and threads. What that does to the codes is the audit's to measure
    (evaluate.codec_audit).
    """
    threads, many = torch.get_num_threads(), min(REPEATED, len(codes_NKF))
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        rebuilt = torch.cat([_shown(codec.decode(codes_NKF[n : n + 1])) for n in range(many)])
    finally:
        torch.set_num_threads(threads)
    return Fact(float(255 * (rebuilt - rebuilt_N3HW[:many]).abs().max()), many)


def _recognised(
    held_out: Stills,
    indices: Sequence[int],
    pixels: Sequence[np.ndarray],
    rebuilt: Sequence[np.ndarray],
    tasks: Sequence[str],
) -> dict[str, Fact]:
    """Share of pictures with one object whose colour, or shape, the checker names alike before and after the
    codes."""
    chosen = [place for place, index in enumerate(indices) if held_out.samples[index].task in tasks]
    before = {place: shape_checker.only(pixels[place]) for place in chosen}
    after = {
        place: shape_checker.only(rebuilt[place]) for place, named in before.items() if named is not None
    }
    if not after:
        return {}
    kept = {
        name: sum(
            getattr(other, name, None) == getattr(before[place], name) for place, other in after.items()
        )
        for name in ("colour", "shape")
    }
    chance = {"colour": 1 / 10, "shape": 1 / 8}
    return {f"{name}_kept": share(count, len(after), floor=chance[name]) for name, count in kept.items()}
