"""What stage voice costs against the library by itself: `python -m benchmarks.voice [--quick]`.

Rows, each printed as soon as it is known, on a twin of Higgs Audio v2 with random weights (8 books of 1026, a
vocabulary of 4,096 words):

- an update of the adapter by our step, against a plain loop over the library's forward(labels=, audio_labels=) on the
  same rows: seconds of each by turns, and the median of the pairs' ratios. The plain loop clips and steps, and does
  nothing else.
- bytes that the loss holds at its most, forward and backward, from the states on, at the released vocabulary of
  128,256: ours against all scores of all positions (the library's loss on its own heads).
- sounds that the codec encodes: in the first run, in two epochs of it, and in a second run.
- greedy speech by our decode loop against the library's `generate`: seconds by turns, and whether the codes are equal.

One thread. `--quick` takes fewer turns; it ends within three minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TWIN = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "codebook_size": 1026,
    "audio_stream_bos_id": 1024,
    "audio_stream_eos_id": 1025,
}
CODES, WORDS_OF_THE_RELEASED = 1024, 128_256
FRAMES = (50, 75, 100, 60)  # of each row's speech: 2 to 4 s, behind as long a reference
TURNS = "the words of a sentence that takes about as long to say, and a few more of them"


def base(folder: Path) -> Path:
    """The twin, its tokenizer and a codec of its books in a folder."""
    from muomni.selftest import voices

    voices.saved(folder / "base", **TWIN)
    voices.codec(folder / "base" / "codec", codebook_size=CODES)
    return folder / "base"


def rows(folder: Path) -> tuple[list[Any], Any]:
    """Conversations with a reference and a target each as rows, and their tokens."""
    from muomni.data.sample import parse
    from muomni.data.voice_rows import VoiceTokens, render
    from muomni.tokens.bpe import Tokenizer

    words = Tokenizer.load(folder)
    tokens = VoiceTokens.of(words, 1024, 1025, 8)

    def codes_of(part: Any) -> Tensor:
        frames = int(Path(part.path).stem)
        return torch.randint(0, CODES, (8, frames), generator=torch.Generator().manual_seed(frames))

    made = []
    for number, frames in enumerate(FRAMES):
        turns = [
            {"role": "user", "content": TURNS[: frames // 2]},
            {"role": "assistant", "content": [{"type": "audio", "path": f"{frames + 1}.wav"}]},
            {"role": "user", "content": TURNS[: frames // 2]},
            {"role": "assistant", "content": [{"type": "audio", "path": f"{frames}.wav"}]},
        ]
        sample = parse({"id": str(number), "messages": turns, "start_index": 3})
        made.append(render(sample, words, tokens, codes_of))
    return made, tokens


def adapted(folder: Path) -> Any:
    """Our model of a folder with an adapter on all groups."""
    from muomni.models import lora
    from muomni.models.higgs import Higgs
    from muomni.models.lora import LoraSettings

    model = Higgs.open(folder)
    targets = model.targets(["attn", "text_ffn", "audio_ffn"])
    return lora.attach(model, LoraSettings(targets=targets)).train()


def library(folder: Path) -> Any:
    """The library's own model of a folder, with its text head."""
    from transformers import HiggsAudioV2ForConditionalGeneration

    from muomni.models import from_transformers

    with from_transformers.quiet():
        return HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, use_text_head=True)


def as_the_library_takes(batch: Any, model: Any) -> dict[str, Tensor]:
    """A batch's tensors under the library's names: right padded, the steps of a row's sounds one after another."""
    is_audio_BT = model.is_audio(batch.ids_BT)
    most = int(is_audio_BT.sum(1).max())
    grid = torch.full((len(is_audio_BT), most, model.books), model.end)
    labels = torch.full_like(grid, -100)
    mask = torch.zeros(grid.shape[:2], dtype=torch.bool)
    for row, here_T in enumerate(is_audio_BT):
        count = int(here_T.sum())
        grid[row, :count] = batch.codes_BKS[row, :, here_T].T
        labels[row, :count] = batch.code_labels_BKS[row, :, here_T].T
        mask[row, :count] = True
    return {
        "input_ids": batch.ids_BT,
        "attention_mask": batch.keep_BT,
        "audio_input_ids": grid,
        "audio_input_ids_mask": mask,
        "labels": batch.labels_BT,
        "audio_labels": labels,
    }


def by_the_library(network: Any, columns_BST: Tensor, steps: int) -> Tensor:
    """The codes (K, S) that `generate` adds greedily to a prompt of one row, ids in stream 0 and codes in the others."""
    ids, codes_KT = columns_BST[:, 0], columns_BST[0, 1:]
    heard = codes_KT[:, (codes_KT >= 0).all(0)].T[None]
    out: Tensor = network.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        audio_input_ids=heard,
        audio_input_ids_mask=torch.ones(heard.shape[:2], dtype=torch.bool),
        max_new_tokens=steps,
        do_sample=False,
    )
    return out[0, heard.shape[1] :].T


def by_turns(ours: Callable[[], Any], theirs: Callable[[], Any], turns: int) -> tuple[float, float, float]:
    """Seconds of the processor of each, medians, and the median of theirs / ours of the pairs; who is first changes."""

    def seconds(work: Callable[[], Any]) -> float:
        begin = time.process_time()
        work()
        return time.process_time() - begin

    ours(), theirs()
    pairs = []
    for turn in range(turns):
        if turn % 2:
            late = seconds(theirs)
            pairs.append((seconds(ours), late))
        else:
            pairs.append((seconds(ours), seconds(theirs)))
    first, second = (statistics.median(each) for each in zip(*pairs, strict=True))
    return first, second, statistics.median(b / a for a, b in pairs)


# 1. Updates


def updates(folder: Path, turns: int) -> str:
    """An update of four rows."""
    import peft

    from muomni.runtime import Runtime
    from muomni.train import optim, step
    from muomni.train.objectives.voice import VoiceObjective, collate
    from muomni.train.settings import TrainSettings

    made, tokens = rows(folder)
    batch = collate(made, tokens.pad)
    model = adapted(folder)
    objective = VoiceObjective(model, audio_weight=model.books).train()  # the library sums over its books
    settings = TrainSettings(lr=2e-4, max_steps=1000)
    optimizer = optim.make_optimizer(objective, optim.select(objective, settings), settings)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    run = Runtime(torch.device("cpu"), torch.float32)

    plain = library(folder)
    where = r".*layers\.\d+\.(self_attn|mlp|audio_mlp)\.\w+_proj"
    config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=where)
    plain = peft.get_peft_model(plain, config).train()
    trained = [p for p in plain.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(
        p.numel() for p in objective.parameters() if p.requires_grad
    )
    theirs = torch.optim.AdamW(trained, lr=2e-4)
    given = as_the_library_takes(batch, model)
    losses = []

    def our_update() -> None:
        result = step.update(objective, objective, optimizer, scaler, [batch], settings, run)
        losses.append(result.loss)

    def their_update() -> None:
        theirs.zero_grad(set_to_none=True)
        loss = plain(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        theirs.step()
        losses.append(float(loss.detach()))

    our_s, their_s, ratio = by_turns(our_update, their_update, turns)
    assert abs(losses[0] - losses[1]) < 0.05 * losses[0], losses[:2]  # dropout differs, nothing else
    return (
        f"update of 4 rows, {batch.ids_BT.numel()} positions: ours {our_s:.3f} s, plain loop {their_s:.3f} s, "
        f"ratio {ratio:.2f} (median of {turns} pairs; bar 1.0); first losses {losses[0]:.3f} and {losses[1]:.3f}"
    )


# 2. Memory of the loss


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it and live, and the most of them at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in before:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def gone(self, place: int, size: int) -> None:
        """A tensor's memory was given back."""
        self.known.discard(place)
        self.now -= size


def loss_memory(folder: Path) -> str:
    """States of four rows to losses and back to the gradient of the states."""
    from muomni.models.higgs import Higgs
    from muomni.selftest import voices
    from muomni.train.objectives.voice import VoiceObjective, collate

    voices.saved(folder / "wide", **{**TWIN, "vocab_size": WORDS_OF_THE_RELEASED, "num_hidden_layers": 1})
    made, tokens = rows(folder / "wide")
    batch = collate(made[:2], tokens.pad)
    model = Higgs.open(folder / "wide")
    network, config = model.network, model.config
    for weight in model.parameters():
        weight.requires_grad_(False)
    objective = VoiceObjective(model, audio_weight=model.books)
    given = as_the_library_takes(batch, model)
    states = torch.randn(*batch.ids_BT.shape, config.hidden_size, generator=torch.Generator().manual_seed(0))

    def ours(h_BTD: Tensor) -> Tensor:
        terms = objective.weighed(objective.scored(h_BTD[:, :-1], batch))
        return sum((term.weight * term.total / term.count for term in terms.values()), torch.zeros(()))

    class Body(torch.nn.Module):
        """The library's forward on states that are there already."""

        get_placeholder_mask = staticmethod(lambda ids, *_: model.is_audio(ids))

        def forward(self, **_: Any) -> Any:
            from transformers.modeling_outputs import BaseModelOutputWithPast

            return BaseModelOutputWithPast(last_hidden_state=self.states)

    body = Body()

    def plain(h_BTD: Tensor) -> Tensor:
        body.states = h_BTD
        whole, network.model = network.model, body
        try:
            return network(**given).loss
        finally:
            network.model = whole
            del body.states

    found = {}
    for name, work in (("ours", ours), ("plain", plain)):
        h_BTD = states.clone().requires_grad_(True)
        with Held() as held:
            loss = work(h_BTD)
            loss.backward()
        value, gradient = float(loss.detach()), h_BTD.grad
        assert gradient is not None
        found[name] = (held.most, value, gradient)
        del loss
    (our_bytes, our_loss, our_gradient), (their_bytes, their_loss, their_gradient) = (
        found["ours"],
        found["plain"],
    )
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-6)
    words = int((batch.labels_BT != -100).sum())
    return (
        f"loss of {batch.ids_BT.numel()} positions, {words} words and {int((batch.code_labels_BKS != -100).sum())} codes "
        f"learned: ours holds {our_bytes / 1e6:.1f} MB at most, plain heads {their_bytes / 1e6:.1f} MB: "
        f"{our_bytes / their_bytes:.3f} (bar 0.25); losses and gradients equal"
    )


# 3. Codes


def codes(folder: Path) -> str:
    """Sounds that go through the codec."""
    from transformers import DacModel

    from muomni.execution import recipe as recipes
    from muomni.runtime import Runtime
    from muomni.selftest import voices
    from muomni.stages import stage

    voices.write(folder / "data")
    sounds = len(list((folder / "data").glob("*.wav")))
    text = f"voice: {{data: [{{path: {folder}/data/manifest.json}}], base: {folder}/base, codec: {folder}/base/codec, batch_size: 2}}"
    recipe = folder / "voice.yaml"
    recipe.write_text(text)
    count, true = [0], DacModel.encode

    def encode(self: Any, input_values: Tensor, *args: Any, **more: Any) -> Any:
        count[0] += len(input_values)
        return true(self, input_values, *args, **more)

    def built(name: str) -> Any:
        entry = recipes.read(str(recipe), out=folder / name).stages["voice"]
        machine = Runtime(torch.device("cpu"), torch.float32)
        return stage.build(entry.stage, entry.settings, folder / name / "voice", {}, folder, machine)

    DacModel.encode = encode
    try:
        training = built("run")
        first, count[0] = count[0], 0
        for _ in range(2):
            drawn = sum(1 for _ in training.train.numbers(range(2 * training.train.order.batches_per_epoch)))
        epochs, count[0] = count[0], 0
        built("run")
        second = count[0]
    finally:
        DacModel.encode = true
    return (
        f"{sounds} sounds: {first} encoded as the run begins, {epochs} in two epochs of {drawn // 2} batches, "
        f"{second} in a second run"
    )


# 4. Speech


def speech(folder: Path, steps: int, turns: int) -> str:
    """Greedy steps behind four prompts with a reference, one after another."""
    from muomni.infer.decode import decode
    from muomni.infer.voice import GREEDY, DelayedBooks
    from muomni.models.higgs import Higgs

    model, network = Higgs.open(folder), library(folder).eval()
    made, _ = rows(folder)
    prompts = []
    for row in made:
        end = row.sounds[1].start  # what stands before the target is the prompt
        prompts.append(torch.cat([torch.tensor(row.ids[:end])[None], row.codes_KT[:, :end]])[None])
    said: dict[str, list[Tensor]] = {}

    def ours() -> None:
        said["ours"] = []
        for columns_BST in prompts:
            books = DelayedBooks(model, 1, steps, GREEDY, torch.device("cpu"))
            with torch.inference_mode():
                x_BTD = model.embed(columns_BST)
            for _ in decode(model, x_BTD, books, cache=model.beside(columns_BST, steps)):
                pass
            said["ours"].append(books.grid()[0])

    def theirs() -> None:
        said["theirs"] = [by_the_library(network, columns_BST, steps) for columns_BST in prompts]

    our_s, their_s, ratio = by_turns(ours, theirs, turns)
    same = sum(
        a.shape == b.shape and bool((a == b).all()) for a, b in zip(said["ours"], said["theirs"], strict=True)
    )
    count = sum(grid_KS.shape[1] for grid_KS in said["ours"])
    return (
        f"{count} steps of speech behind {len(prompts)} prompts of {min(p.shape[2] for p in prompts)} to "
        f"{max(p.shape[2] for p in prompts)} positions: ours {1e3 * our_s / count:.2f} ms a step, generate "
        f"{1e3 * their_s / count:.2f}, ratio {ratio:.2f} (median of {turns} pairs; bar 2.0); "
        f"codes equal in {same} of {len(prompts)}"
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = base(folder)
        print(updates(made, 5 if quick else 15), flush=True)
        print(loss_memory(folder), flush=True)
        print(codes(folder), flush=True)
        print(speech(made, 60 if quick else 150, 3 if quick else 9), flush=True)


if __name__ == "__main__":
    main()
