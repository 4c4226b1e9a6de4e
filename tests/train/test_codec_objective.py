"""Stage codec's objective: sums over real frames, warm-up, k-means start, and an exact resume."""

from __future__ import annotations

import io

import torch

from muomni.media.mel import SPEECH
from muomni.models.codec import Codec, CodecConfig
from muomni.train.objectives.codec import CodecBatch, CodecObjective


def small() -> CodecObjective:
    torch.manual_seed(0)
    config = CodecConfig(width=16, latent_width=8, blocks=1, fine_width=8, fine_blocks=1, codebook_size=8)
    return CodecObjective(Codec(config), warmup=3, ring=64)


def batch(seed: int, frames: tuple[int, ...] = (32, 40), pad: float = 0.0) -> CodecBatch:
    generator = torch.Generator().manual_seed(seed)
    mel = torch.full((len(frames), max(frames) + 8, SPEECH.num_mels), pad)
    for row, length in enumerate(frames):
        tones = torch.randn(4, SPEECH.num_mels, generator=torch.Generator().manual_seed(9))
        mel[row, :length] = tones[torch.randint(4, (length // 8,), generator=generator)].repeat_interleave(
            8, 0
        )
    return CodecBatch(["a"] * len(frames), mel, torch.tensor(frames))


def update(objective: CodecObjective, optimizer: torch.optim.Optimizer, step: int) -> float:
    micro = [batch(10 * step), batch(10 * step + 1)]
    objective.train()
    objective.begin(micro, 1)
    counts = [objective.counts(one) for one in micro]
    total = torch.zeros(())
    for one in micro:
        for name, term in objective(one).items():
            total = total + term.weight * term.total / sum(count[name] for count in counts)
    total.backward()
    optimizer.step()
    optimizer.zero_grad()
    objective.after_step(step + 1)
    return float(total.detach())


def run(objective: CodecObjective, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    return [update(objective, optimizer, step) for step in steps]


def test_the_quantiser_starts_after_the_warm_up_and_the_loss_falls() -> None:
    objective = small()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    run(objective, optimizer, range(3))
    assert not objective.codec.quantiser.started
    assert int(objective.ring_seen) > 0
    losses = run(objective, optimizer, range(3, 60))
    assert objective.codec.quantiser.started
    assert losses[-1] < 0.6 * losses[0]


def test_gradients_reach_the_encoder_through_the_quantiser() -> None:
    objective = small()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    run(objective, optimizer, range(4))
    terms = objective(batch(0))
    terms["l1"].total.backward()
    assert all(
        parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        for parameter in objective.codec.encoder.parameters()
    )


def test_terms_have_the_keys_of_counts_always() -> None:
    objective = small()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    for step in range(5):
        terms = objective(batch(step))
        counts = objective.counts(batch(step))
        assert {name: term.count for name, term in terms.items()} == counts
        update(objective, optimizer, step)


def test_what_padding_holds_changes_nothing() -> None:
    objective = small()
    run(objective, torch.optim.AdamW(objective.parameters(), lr=1e-3), range(5))
    objective.eval()
    clean, poisoned = objective(batch(1)), objective(batch(1, pad=99.0))
    for name in clean:
        torch.testing.assert_close(clean[name].total, poisoned[name].total)
    single = [
        objective(CodecBatch(["a"], part.mel_BFM[row : row + 1], part.frames_B[row : row + 1]))
        for part in [batch(1)]
        for row in (0, 1)
    ]
    for name in clean:
        torch.testing.assert_close(
            sum(one[name].total for one in single), clean[name].total, rtol=1e-4, atol=1e-4
        )


def test_resume_is_exact_at_every_phase() -> None:
    for cut in (2, 3, 6):
        through = small()
        optimizer = torch.optim.AdamW(through.parameters(), lr=1e-3)
        run(through, optimizer, range(cut))
        file = io.BytesIO()
        torch.save({"objective": through.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file)
        resumed = small()
        again = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
        resumed.load_state_dict(saved["objective"])
        again.load_state_dict(saved["optimizer"])
        assert run(through, optimizer, range(cut, 9)) == run(resumed, again, range(cut, 9))


def test_validation_changes_nothing() -> None:
    objective = small()
    run(objective, torch.optim.AdamW(objective.parameters(), lr=1e-3), range(2))
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    objective.eval()
    with torch.no_grad():
        objective(batch(5))
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.state_dict().items())
