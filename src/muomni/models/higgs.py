"""Higgs Audio v2, transformers' class behind our protocol: one language model over words and delayed frames of
K codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muomni.errors import CheckpointError, ConfigError, InternalError
from muomni.models import finite, from_transformers, higgs_layout, stepper, store
from muomni.models.causal import CausalLM, Read
from muomni.models.higgs_stepper import HiggsStepper
from muomni.nn.cache import KVCache
from muomni.nn.head import Ranges, StretchHeads

MODEL_TYPE = "higgs_audio_v2"
CLASS = "HiggsAudioV2ForConditionalGeneration"
GROUPS = {
    "attn": "self_attn",
    "text_ffn": "mlp",
    "audio_ffn": "audio_mlp",
}  # of a layer: where LoRA may stand
TEXT = 0  # the stream of words; stream k + 1 is codebook k


def _routes(_: Any, __: Any, is_audio_BT: Tensor | None) -> Tensor | None:
    """What the library's body asks for: which positions hold codes. It would look for placeholders among
    embeddings, where none are."""
    return is_audio_BT


class Cache:
    """Keys and values of the library, and what it does not keep: which positions are real.

    capacity   positions at most, once they are read one by one
    prompt_BT  bool, which positions of what is read first hold codes; behind it all do. None: all do
    """

    def __init__(self, held: Any, capacity: int, prompt_BT: Tensor | None = None) -> None:
        self.held, self.capacity, self.prompt_BT = held, capacity, prompt_BT
        self.keep_BT: Tensor | None = None
        self._settled: KVCache | None = None

    @property
    def length(self) -> int:
        """Positions that it holds."""
        return int(self.held.get_seq_length()) if self._settled is None else self._settled.length

    def settled(self) -> KVCache:
        """The same in arrays of its capacity, made once; from then on they alone are added to."""
        if self._settled is None:
            read = [(layer.keys, layer.values) for layer in self.held.layers]
            keys_BHSd = read[0][0]
            batch, heads, length, dim = keys_BHSd.shape
            made = KVCache(
                len(read), batch, heads, max(self.capacity, length), dim, keys_BHSd.dtype, keys_BHSd.device
            )
            made.take(length, self.keep_BT)
            for number, (keys, values) in enumerate(read):
                made.layer(number).update(keys, values)
            self._settled, self.held = made, None
        return self._settled

    def begin(self, x_BTD: Tensor, keep_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Which of all positions are real (B, cached + T), and which of the new ones hold codes."""
        if self.held is None:
            raise InternalError("a cache that is read one by one holds no keys of the library's any more")
        if keep_BT is None:
            keep_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
        self.keep_BT = keep_BT if self.keep_BT is None else torch.cat([self.keep_BT, keep_BT], 1)
        routes_BT, self.prompt_BT = self.prompt_BT, None
        return self.keep_BT, routes_BT


class Higgs(CausalLM):
    """Columns of a word and K codes -> states -> scores of the next word and of the next code of each book.

    A position holds a word, or, where its word is a placeholder, the K codes of one step of a delayed stream.
    Positions of words go through a layer's `mlp`, those of codes through its `audio_mlp`.

    Takes   network: HiggsAudioV2ForConditionalGeneration with its text head. From here on it takes embeddings: its own
            forward no longer finds placeholders among ids.
    Raises  CheckpointError where its books have no rows for the symbols that begin and end a stream.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        config: Any = network.config
        self.network: Any = network
        self.config: Any = config
        self.books: int = config.num_codebooks
        self.start: int = config.audio_stream_bos_id
        self.end: int = config.audio_stream_eos_id
        self.placeholders: tuple[int, int] = (config.audio_token_id, config.audio_delay_token_id)
        self.ctx_len: int = config.max_position_embeddings
        self.width: int = config.hidden_size
        size = config.codebook_size
        if not 0 <= self.start < size or not 0 <= self.end < size or self.start == self.end:
            raise CheckpointError(
                f"{CLASS}: start {self.start} and end {self.end} of a stream of codes have no rows of their own "
                f"in books of {size}",
                hint=f"codebook_size counts them too: {max(self.start, self.end) + 1} or more",
            )
        network.model.get_placeholder_mask = _routes
        books = [range(book * size, (book + 1) * size) for book in range(self.books)]
        text, codes = network.text_lm_head, network.audio_lm_head
        self.head = StretchHeads([(text, range(config.vocab_size)), *((codes, rows) for rows in books)])

    @classmethod
    def open(
        cls, folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Higgs:
        """The model of a folder that transformers wrote, or that lies there in its makers' layout, in evaluation
        mode; dtype None: as stored.

        Raises  CheckpointError where the folder holds another model, lacks a tensor (the text head's too),
                holds one that has no place, or is torn; ConfigError where the extra `hf` is not installed.
        """
        folder = Path(folder)
        content = store.read_config(folder)
        kind = content.get("model_type")
        if kind not in (MODEL_TYPE, higgs_layout.MODEL_TYPE):
            raise CheckpointError(
                f"{folder}: expected model_type {MODEL_TYPE} or {higgs_layout.MODEL_TYPE}, got {kind!r}"
            )
        higgs_layout.refuse_tower(store.tensor_names(folder), str(folder))
        higgs_layout.tell_whisper(content, str(folder / store.CONFIG))
        how: dict[str, Any] = {"device": device, "dtype": dtype, "is_whole": True, "use_text_head": True}
        if kind == higgs_layout.MODEL_TYPE:
            tensors = higgs_layout.to_library(store.read_tensors(folder), str(folder))
            library = from_transformers.installed(folder, "Higgs Audio v2")
            how |= {"config": higgs_layout.library_config(folder, library), "tensors": tensors}
        network = from_transformers.open_network(folder, CLASS, "Higgs Audio v2", **how)
        model = cls(network).eval()
        finite.came_from(model, folder)
        return model

    @property
    def codebook_size(self) -> int:
        """Codes of a book, without the symbols that begin and end a stream."""
        return min(self.start, self.end)

    @property
    def adapted(self) -> nn.Module:
        """The library's network."""
        network: nn.Module = self.network
        return network

    def is_audio(self, ids_BT: Tensor) -> Tensor:
        """bool, True = a position that holds codes, by its word."""
        return (ids_BT == self.placeholders[0]) | (ids_BT == self.placeholders[1])

    def embed(self, columns_BST: Tensor) -> Tensor:
        """Embeddings (B,T,D) of columns (B, 1 + K, T) int64: a word each, and the codes where it is a
        placeholder; what stands beside other words is not read."""
        ids_BT, codes_BKT = columns_BST[:, TEXT], columns_BST[:, TEXT + 1 :]
        is_audio_BT = self.is_audio(ids_BT)
        body = self.network.model
        codes_BTK = codes_BKT.masked_fill(~is_audio_BT[:, None], 0).transpose(1, 2)
        words_BTD: Tensor = body.embed_tokens(ids_BT)
        return torch.where(is_audio_BT[..., None], body.embed_audio_tokens(codes_BTK), words_BTD)

    def hidden(
        self,
        x_BTD: Tensor,
        *,
        keep_BT: Tensor | None = None,
        cache: Cache | None = None,
        is_audio_BT: Tensor | None = None,
        **how: Any,
    ) -> Tensor:
        """See CausalLM.

        Takes   keep_BT: rows padded on the right need none, since nothing looks ahead; is_audio_BT bool, which
                positions hold codes, None: what the cache says of its prompt, else all.
        """
        given: dict[str, Any] = {}
        if cache is not None:
            keep_BT, routes_BT = cache.begin(x_BTD, keep_BT)
            is_audio_BT = routes_BT if is_audio_BT is None else is_audio_BT
            given = {"cache": cache.held, "use_cache": True}
        if keep_BT is not None:
            places_BT = (keep_BT.long().cumsum(1) - 1).clamp(min=0)[:, -x_BTD.shape[1] :]
            given |= {"attention_mask": keep_BT, "position_ids": places_BT}
        out = self.network.model(inputs_embeds=x_BTD, audio_input_ids_mask=is_audio_BT, **given)
        states_BTD: Tensor = out.last_hidden_state
        return states_BTD

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """See CausalLM; all that is read into it holds codes."""
        from transformers import DynamicCache

        return Cache(DynamicCache(config=self.config), capacity)

    def beside(self, columns_BST: Tensor, steps: int | None = None) -> Cache:
        """An empty cache for a prompt of these columns and so many steps behind it; None: as many as fit."""
        most = self.ctx_len if steps is None else columns_BST.shape[2] + steps
        cache = self.new_cache(len(columns_BST), most)
        cache.prompt_BT = self.is_audio(columns_BST[:, TEXT])
        return cache

    @property
    def body(self) -> nn.Module:
        """By which its stepper is kept."""
        body: nn.Module = self.network.model
        return body

    def reading(self, legal: Sequence[Ranges | None] | None = None) -> Read:
        """The prompt by the library's body; steps of codes behind it by a stepper that is kept with the model."""
        whole = super().reading(legal)
        if not HiggsStepper.fits(self):
            return whole
        by_step = stepper.kept(self, HiggsStepper)

        def read(x_BTD: Tensor, cache: Cache, keep_BT: Tensor | None = None) -> list[Tensor]:
            if x_BTD.shape[1] > 1 or keep_BT is not None or not cache.length:
                return whole(x_BTD, cache, keep_BT)
            return by_step.read(x_BTD, cache.settled(), None, legal)

        return read

    def train(self, mode: bool = True) -> Higgs:
        """Training gives the memory of the stepper back."""
        if mode:
            stepper.release(self.body)
        return super().train(mode)

    def projections(self) -> Iterator[tuple[str, nn.Linear]]:
        """The linear layers of all GROUPS."""
        for layers in self.groups().values():
            yield from layers.items()

    def groups(self) -> dict[str, dict[str, nn.Linear]]:
        """By group the linear layers of the decoder's layers, found by type and path; the heads are in
        none."""
        found: dict[str, dict[str, nn.Linear]] = {group: {} for group in GROUPS}
        for number, layer in enumerate(self.network.model.layers):
            for group, part in GROUPS.items():
                inside = getattr(layer, part, None)
                for name, module in () if inside is None else inside.named_modules():
                    if isinstance(module, nn.Linear):
                        found[group][f"model.layers.{number}.{part}.{name}"] = module
        return found

    def targets(self, groups: list[str]) -> list[str]:
        """The full names of the layers of some groups.

        Raises  ConfigError for a group that is unknown or empty.
        """
        found = self.groups()
        for group in groups:
            if not found.get(group):
                known = ", ".join(f"{name} ({len(layers)})" for name, layers in found.items())
                raise ConfigError(
                    f"lora group {group!r} has no layers", hint=f"groups of this model: {known}"
                )
        return [name for group in groups for name in found[group]]

    @property
    def checkpointing(self) -> bool:
        """Whether the backward makes activations again, layer by layer."""
        return bool(self.network.is_activation_checkpointing)

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        if on:
            self.network.activation_checkpointing_enable({"use_reentrant": False})
        elif self.checkpointing:
            self.network.activation_checkpointing_disable()
