"""Hops of a forward pass, recorded by hooks on its modules: the lines of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from muomni.models.audio_encoder import AudioEncoder
from muomni.models.connector import Perceiver
from muomni.models.decoder import Decoder
from muomni.models.omni import Projectors
from muomni.models.siglip import SiglipTower
from muomni.models.vision_encoder import VisionEncoder
from muomni.models.vision_tower import VisionTower


@dataclass(frozen=True)
class Hop:
    """One station: its name, the shape of what leaves it, and what that means."""

    name: str
    shape: tuple[int, ...]
    meaning: str

    def to_json(self) -> dict[str, Any]:
        """As `muomni trace --json` prints it."""
        return {**asdict(self), "shape": list(self.shape)}


@dataclass
class Watch:
    """Hops in the order in which the forward pass reaches them, a module's at its first call alone."""

    hops: list[Hop] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    def add(self, name: str, shape: tuple[int, ...] | list[int], meaning: str) -> None:
        """Tell a hop now."""
        self.hops.append(Hop(name, tuple(shape), meaning))

    def into(
        self, module: nn.Module, name: str, meaning: str, view: Callable[[Any], Tensor] = lambda x: x
    ) -> None:
        """Tell what `module` takes."""
        self._once(
            module.register_forward_pre_hook, lambda _, inputs: self.add(name, view(inputs[0]).shape, meaning)
        )

    def out_of(
        self, module: nn.Module, name: str, meaning: str, view: Callable[[Any], Tensor] = lambda x: x
    ) -> None:
        """Tell what `module` gives."""
        self._once(
            module.register_forward_hook, lambda _, __, output: self.add(name, view(output).shape, meaning)
        )

    def fixed(self, module: nn.Module, name: str, shape: tuple[int, ...], meaning: str) -> None:
        """Tell what was known before, when `module` is reached."""
        self._once(module.register_forward_pre_hook, lambda *_: self.add(name, shape, meaning))

    def named(
        self, module: nn.Module, key: str, name: str, meaning: str, view: Callable[[Tensor], tuple[int, ...]]
    ) -> None:
        """Tell what `module` takes by the name of an argument."""
        register = partial(module.register_forward_pre_hook, with_kwargs=True)
        self._once(register, lambda _, __, inputs: self.add(name, view(inputs[key]), meaning))

    def _once(
        self, register: Callable[[Callable[..., None]], RemovableHandle], tell: Callable[..., None]
    ) -> None:
        left = [tell]  # emptied by the first call

        def hook(*arguments: Any) -> None:
            if left:
                left.pop()(*arguments)

        self.handles.append(register(hook))


@contextmanager
def watching() -> Iterator[Watch]:
    """A watch whose hooks end with the block."""
    watch = Watch()
    try:
        yield watch
    finally:
        for handle in watch.handles:
            handle.remove()


def watch_vision_tower(watch: Watch, tower: VisionTower, projectors: Projectors | None) -> None:
    """From pixels to the states of patches, and to picture tokens where there are projectors."""
    size, patch = tower.image_size, tower.image_size // tower.side
    if isinstance(tower, VisionEncoder):
        watch.into(tower.stem, "pixels", "a picture, red, green and blue")
        watch.out_of(tower.stem, "patches", f"one vector for each {patch} x {patch} pixels")
        watch.into(
            tower.blocks[0], "summary and patches", "the learned summary (CLS) before them, positions added"
        )
        watch.out_of(tower.norm, "seen", f"after {tower.depth} blocks")
    elif isinstance(tower, SiglipTower):
        look: Callable[[Any], Tensor] = lambda made: made.last_hidden_state  # noqa: E731
        watch.named(
            tower.network,
            "pixel_values",
            "pixels",
            "a picture, red, green and blue",
            lambda x: (len(x), 3, size, size),
        )
        watch.out_of(
            tower.network,
            "seen",
            f"one state for each {patch} x {patch} pixels, after {tower.depth} blocks",
            look,
        )
    if projectors is None:
        return
    if isinstance(projectors.vision, Perceiver):
        watch.out_of(
            projectors.vision.resampler,
            "resampled",
            f"{projectors.vision.config.tokens} learned questions to all patches",
        )
    else:
        watch.into(
            projectors.vision,
            "summary",
            "CLS" if projectors.config.pool_grid == 0 else "CLS and pooled patches",
        )
    watch.out_of(projectors.vision, "picture tokens", "in the Thinker's width")


def watch_audio_encoder(watch: Watch, encoder: AudioEncoder, projectors: Projectors | None) -> None:
    """From log-mel to the states of the ears, and to sound tokens where there are projectors."""
    spec = encoder.config.mel
    watch.into(
        encoder.convs[0],
        "log-mel",
        f"{spec.frame_rate_hz:g} frames a second, {spec.num_mels} bands",
        lambda x: x[:, 0],
    )
    for number, conv in enumerate(encoder.convs, start=1):
        watch.out_of(conv, f"convolution {number}", "half the frames, half the bands")
    watch.out_of(encoder.proj, "states", f"{spec.frame_rate_hz / encoder.config.downsample:g} a second")
    watch.out_of(encoder.norm, "heard", f"after {len(encoder.blocks)} blocks")
    if projectors is not None and projectors.audio is not None:
        watch.out_of(projectors.audio, "sound tokens", "in the Thinker's width")


def watch_thinker(watch: Watch, decoder: Decoder) -> None:
    """Through the blocks of a language model, up to the states that logits are read from."""
    heads = decoder.config.heads
    for number, block in enumerate(decoder.blocks, start=1):
        if number == 1:
            attention: Any = block.self_attn
            if hasattr(attention.q_proj, "lora_A"):
                down = next(iter(attention.q_proj.lora_A.values()))
                watch.out_of(
                    down,
                    "LoRA",
                    "what the adapter reads of the queries' input, at its rank; every adapted product has one",
                )
            watch.out_of(attention.q_norm, "heads", f"queries of {heads} heads", lambda x: x.transpose(1, 2))
            looks = "each position's weights on itself and what stands before it; kernels make them piece by piece and keep none"
            watch.out_of(
                attention.q_norm,
                "attention",
                looks,
                lambda x: x.new_empty(len(x), heads, x.shape[1], x.shape[1], device="meta"),
            )
        watch.out_of(block, f"block {number}", "attention, then feed-forward, both added")
    watch.out_of(decoder.body.norm, "hidden", "what logits are read from")
