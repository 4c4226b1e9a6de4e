"""Updates of several objectives by one process or, under torchrun's variables, by two; the weights after them
tell whether they agree."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from toy_training import Toy, fit, settings

from muomni import runtime
from muomni.data.batch import SequenceBatch
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.models.decoder import Decoder, DecoderConfig, ExpertsConfig
from muomni.models.omni import MediaBatch, Omni, Projectors, ProjectorsConfig
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.runtime import Runtime
from muomni.selftest import voices as tiny
from muomni.tokens import grid
from muomni.tokens.special_tokens import SPECIAL
from muomni.train import distributed, loop, step
from muomni.train.objective import Objective
from muomni.train.objectives.contrast import Contrast, VisionBatch
from muomni.train.objectives.language import NextToken
from muomni.train.optim import freeze

UPDATES = 3
LATER = [{"pattern": "body.*", "from_step": 3}]
SMALL = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 32}
DECODER = DecoderConfig(vocab_size=40, ctx_len=32, dropout=0.0, **SMALL)


def decoder() -> Decoder:
    return Decoder(DECODER)


def texts(number: int) -> SequenceBatch:
    """Two rows, of which ever more is labelled."""
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(15, 40, (2, 9), generator=draw)
    labels = ids.clone()
    labels[:, : 8 - 2 * (number % 4)] = -100
    return SequenceBatch([f"{number}a", f"{number}b"], ids, labels)


def next_token() -> tuple[Objective, list[Any]]:
    return NextToken(decoder()), [texts(n) for n in range(4)]


def experts() -> tuple[Objective, list[Any]]:
    """Routers that are asked, loudly, to use all experts alike: over all rows of an update, whoever has
    them."""
    config = DECODER.model_copy(
        update={"experts": ExpertsConfig(num_experts=4, experts_per_token=2, ffn_width=8, balance_weight=3.0)}
    )
    return NextToken(Decoder(config)), [texts(n) for n in range(4)]


def contrast() -> tuple[Objective, list[Any]]:
    eyes = VisionEncoder(VisionEncoderConfig(image_size=16, patch_size=8, embed_dim=8, **SMALL))
    words = TextTower(TextTowerConfig(kind="transformer", vocab_size=30, embed_dim=8, **SMALL))

    def batch(number: int) -> VisionBatch:
        draw = torch.Generator().manual_seed(number)
        rows = 2 + number % 2  # the last micro-batch of an epoch is smaller
        ids = torch.randint(1, 30, (rows, 5), generator=draw)
        pixels = torch.randint(0, 256, (rows, 16, 16, 3), generator=draw, dtype=torch.uint8)
        return VisionBatch(
            [f"{number}-{i}" for i in range(rows)],
            pixels,
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            torch.arange(rows) % 2,
        )

    return Contrast(eyes, words), [batch(n) for n in range(4)]


def omni() -> tuple[Objective, list[Any]]:
    """Rank 0 sees pictures, then text; rank 1 hears sounds, then text: each leaves a projector without
    gradients."""
    body = decoder()
    eyes = freeze(VisionEncoder(VisionEncoderConfig(image_size=16, patch_size=8, embed_dim=8, **SMALL)))
    ears = freeze(AudioEncoder(AudioEncoderConfig(channels=2, **SMALL)))
    model = Omni(body, eyes, ears, Projectors(ProjectorsConfig(width=16, vision_width=16, audio_width=16)))  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(5)
    pictures = texts(0)
    pictures.ids_BT[:, 1] = SPECIAL.image_pad
    pictures.media = {
        "image": MediaBatch(torch.randint(0, 256, (2, 3, 16, 16), generator=draw, dtype=torch.uint8))
    }
    sounds = texts(1)
    sounds.ids_BT[:, 1:3] = SPECIAL.audio_pad
    mel = torch.randn(2, 8, ears.config.mel.num_mels, generator=draw)  # type: ignore[union-attr]
    sounds.media = {"audio": MediaBatch(mel, torch.tensor([8, 8]))}
    return NextToken(body, model), [pictures, sounds, texts(2), texts(3)]


def voices() -> tuple[Objective, list[Any]]:
    """A tiny Higgs with an adapter on all groups; rank 0 also gets rows of words alone."""
    from transformers import HiggsAudioV2ForConditionalGeneration

    from muomni.models import lora
    from muomni.models.higgs import Higgs
    from muomni.models.lora import LoraSettings
    from muomni.train.objectives.voice import VoiceObjective

    with tempfile.TemporaryDirectory() as folder:
        named = tiny.tokenizer(Path(folder))
    config = tiny.config(named)
    torch.manual_seed(1)
    model = Higgs(HiggsAudioV2ForConditionalGeneration(config, use_text_head=True))
    targets = model.targets(["attn", "text_ffn", "audio_ffn"])
    lora.attach(model, LoraSettings(r=2, alpha=4, dropout=0.0, targets=targets))

    def batch(number: int) -> SequenceBatch:
        """Two rows: words, then 6 frames in their places, of which ever more is labelled."""
        draw = torch.Generator().manual_seed(number)
        ids = torch.randint(0, 250, (2, 24), generator=draw)
        codes = torch.full((2, tiny.BOOKS, 24), -1)
        labels, asked = ids.clone(), torch.full_like(codes, -100)
        labels[:, :4] = -100
        if number != 2:
            grid_BKS = grid.framed(torch.randint(0, 32, (2, tiny.BOOKS, 6), generator=draw), 32, 33)
            here = slice(8, 8 + grid_BKS.shape[2])
            ids[:, here], labels[:, here] = config.audio_token_id, -100
            codes[..., here] = grid_BKS
            asked[..., here] = grid.framed_labels(grid_BKS, 32, 33, -100)
            asked[..., 12 + number :] = -100
        real = torch.ones_like(ids, dtype=torch.bool)
        frames = torch.full((2,), 6)
        names = [f"{number}a", f"{number}b"]
        return SequenceBatch(
            names, ids, labels, real, codes_BKS=codes, code_labels_BKS=asked, frames_B=frames
        )

    return VoiceObjective(model), [batch(n) for n in range(4)]


CASES: dict[str, Callable[[], tuple[Objective, list[Any]]]] = {
    "next_token": next_token,
    "contrast": contrast,
    "omni": omni,
    "experts": experts,
    **({} if tiny.lacking() else {"voices": voices}),
}


def updates(name: str, run: Runtime) -> dict[str, Tensor]:
    """The weights after some updates on four micro-batches, shared among the ranks, and the last loss."""
    torch.manual_seed(1)
    objective, batches = CASES[name]()
    if name == "omni" and run.world > 1:
        assert batches[run.rank :: run.world][0].media
    wrapped = distributed.wrap(objective, run)
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    result = None
    for number in range(UPDATES):
        result = step.update(
            objective, wrapped, optimizer, scaler, batches[run.rank :: run.world], settings(), run
        )
        assert not result.skipped, result
        objective.after_step(number + 1)
    assert result is not None
    named = {key: value.detach().clone().contiguous() for key, value in objective.named_parameters()}
    return {**named, "loss": torch.tensor([result.loss, result.grad_norm, *result.counts.values()])}


def whole_loop(folder: Path, run: Runtime, accumulate: int, **values: Any) -> None:
    fit(folder, Toy(dropout=0.0), run=run, gradient_accumulation_steps=accumulate, max_steps=6, **values)


def unsafe_on_one_rank(run: Runtime) -> str:
    """Why both ranks skip an update of which one of them has a NaN."""
    torch.manual_seed(1)
    objective, batches = next_token()
    wrapped = distributed.wrap(objective, run)
    if run.rank == 1:
        batches[1].labels_BT[:] = -100
        wrapped.module.decoder.model.norm.weight.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return step.update(objective, wrapped, optimizer, scaler, [batches[run.rank]], settings(), run).skipped


def stopped(folder: Path, run: Runtime) -> str:
    """What both ranks do when only the second one is asked to stop, in the middle of nowhere."""

    def asked(number: int) -> None:
        if number == 2 and run.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        fit(folder, Toy(dropout=0.0, dies=asked), run=run, max_steps=6, checkpoint_freq=5)
    except loop.Interrupted as error:
        return str(error)
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """torchrun's variables, then: python ranks.py OUT"""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    run = runtime.start(precision="fp32", device="cpu", threads=1)
    for name in CASES:
        save_file(updates(name, run), given.out / f"{name}-{run.rank}.safetensors")
    whole_loop(given.out / "loop", run, 2)
    whole_loop(given.out / "phases", run, 2, param_groups=LATER)
    (given.out / f"skipped-{run.rank}").write_text(unsafe_on_one_rank(run))
    (given.out / f"stopped-{run.rank}").write_text(stopped(given.out / "stopped", run))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
