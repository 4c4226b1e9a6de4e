"""The image codec's objective: errors per value, a gradient to every part, and pictures that are learned
through codes."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from muomni.models.image_codec import ImageCodec, ImageCodecConfig
from muomni.nn.fsq import FiniteScalarQuantiser
from muomni.train.objectives.image_codec import ImageCodecBatch, ImageCodecObjective


def objective() -> ImageCodecObjective:
    torch.manual_seed(0)
    return ImageCodecObjective(ImageCodec(ImageCodecConfig(image_size=16, width=16, fine_width=8)))


def batch(count: int = 4) -> ImageCodecBatch:
    pixels = torch.randint(256, (count, 1, 1, 3), generator=torch.Generator().manual_seed(1)).expand(
        count, 16, 16, 3
    )
    return ImageCodecBatch([str(n) for n in range(count)], pixels.to(torch.uint8).contiguous())


def test_terms_are_sums_of_errors_in_half_the_range() -> None:
    made, rows = objective().eval(), batch()
    codec = made.codec
    with torch.no_grad():
        terms = made(rows)
        rebuilt = codec.rebuild(codec.quantiser.decode(codec.encode(rows.image_B3HW)[:, 0]))
    error = 2 * (rebuilt - rows.image_B3HW)
    assert float(terms["l1"].total) == pytest.approx(float(error.abs().sum()), rel=1e-4)
    assert float(terms["mse"].total) == pytest.approx(float(error.square().sum()), rel=1e-4)
    assert terms["l1"].count == terms["mse"].count == rows.pixels_BHW3.numel()


def reached(made: ImageCodecObjective) -> set[str]:
    made.zero_grad()
    made(batch())["l1"].total.backward()
    return {name for name, p in made.named_parameters() if p.grad is not None and bool(p.grad.any())}


def test_every_parameter_is_taught_past_the_quantiser_and_none_of_the_encoder_without_its_gradient() -> None:
    made = objective()
    every = {name for name, _ in made.named_parameters()}
    assert reached(made) == every
    true = FiniteScalarQuantiser.forward

    def cut(self: FiniteScalarQuantiser, z: torch.Tensor) -> object:
        out = true(self, z)
        return out._replace(values_BTD=out.values_BTD.detach())

    with patch.object(FiniteScalarQuantiser, "forward", cut):
        lost = every - reached(made)
    assert {name.split(".")[1] for name in lost} == {"patch", "fine_encoder", "fold", "encoder", "to_latent"}


def test_plain_colours_are_learned_through_codes() -> None:
    made, rows = objective(), batch(8)
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    for _ in range(80):
        terms = made(rows)
        sum(term.total / term.count for term in terms.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
    rebuilt = made.codec.decode(made.codec.encode(rows.image_B3HW))
    assert float((rebuilt - rows.image_B3HW).abs().mean()) < 0.08
    spread = rows.image_B3HW.mean((2, 3)).std(0).mean()
    assert float(spread) > 0.2, "or there was nothing to learn"
