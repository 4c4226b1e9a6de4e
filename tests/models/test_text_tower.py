"""Captions as unit vectors."""

from pathlib import Path

import pytest
import torch

from muomni.errors import ShapeError, TokenRangeError
from muomni.models import store
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig


def tower(kind: str) -> TextTower:
    torch.manual_seed(0)
    return TextTower(
        TextTowerConfig(
            kind=kind, vocab_size=50, width=32, heads=2, ffn_width=64, source_width=24, embed_dim=16
        )
    )


def captions(kind: str) -> torch.Tensor:
    return torch.randn(3, 7, 24) if kind == "thinker" else torch.randint(1, 50, (3, 7))


@pytest.mark.parametrize("kind", ["bow", "transformer", "thinker"])
def test_units_that_padding_does_not_move(kind: str) -> None:
    text, model = captions(kind), tower(kind)
    keep = torch.arange(7) < torch.tensor([[7], [4], [1]])
    units = model.embed(text, keep)
    assert units.shape == (3, 16)
    torch.testing.assert_close(units.norm(dim=1), torch.ones(3))
    poisoned = text.clone()
    poisoned[1, 4:] = 49
    torch.testing.assert_close(model.embed(poisoned, keep), units)
    torch.testing.assert_close(model.embed(text[1:2, :4], keep[1:2, :4]), units[1:2], atol=1e-5, rtol=0)


def test_only_the_transformer_reads_the_order() -> None:
    text, keep = torch.randint(1, 50, (1, 7)), torch.ones(1, 7, dtype=torch.bool)
    moved = {
        kind: (tower(kind).embed(text, keep) - tower(kind).embed(text.flip(1), keep)).abs().max()
        for kind in ("bow", "transformer")
    }
    assert moved["bow"] < 1e-6
    assert moved["transformer"] > 1e-3


@pytest.mark.parametrize("kind", ["bow", "transformer", "thinker"])
def test_every_parameter_learns(kind: str) -> None:
    model = tower(kind)
    model.embed(captions(kind), torch.ones(3, 7, dtype=torch.bool))[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_wrong_captions_are_refused() -> None:
    keep = torch.ones(3, 7, dtype=torch.bool)
    with pytest.raises(TokenRangeError):
        tower("bow").embed(torch.full((3, 7), 50), keep)
    with pytest.raises(ShapeError, match="no token"):
        tower("bow").embed(
            torch.ones(3, 7, dtype=torch.int64), torch.tensor([[True], [False], [True]]) & keep
        )
    with pytest.raises(ShapeError):
        tower("thinker").embed(torch.ones(3, 7, dtype=torch.int64), keep)
    with pytest.raises(ShapeError):
        tower("transformer").embed(torch.randn(3, 7, 24), keep)


def test_towers_and_encoders_are_kept_whole(tmp_path: Path) -> None:
    networks = [
        tower("transformer"),
        VisionEncoder(
            VisionEncoderConfig(
                image_size=32, patch_size=8, width=16, layers=1, heads=2, ffn_width=32, stem="conv"
            )
        ),
        AudioEncoder(AudioEncoderConfig(width=32, layers=1, heads=2, ffn_width=64, channels=8)),
    ]
    for number, network in enumerate(networks):
        store.save(network, tmp_path / str(number))
        again = store.load(tmp_path / str(number))
        assert type(again) is type(network)
        assert again.config == network.config
        assert store.digest(again) == store.digest(network)
