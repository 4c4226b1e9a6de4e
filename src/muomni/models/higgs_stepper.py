"""The codes' path of a Higgs Audio v2 arranged for one step of speech at a time; see `models.stepper`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muomni.models.stepper import Stepper, _gains
from muomni.nn.adapter import ingredients
from muomni.nn.head import Ranges, joined, rows_of

if TYPE_CHECKING:
    from muomni.models.higgs import Higgs

TURNS = ("default", "llama3")  # kinds of rotary positions whose angles do not depend on how much was read


class HiggsStepper(Stepper):
    """Positions that hold codes, behind a prompt that the library's body has read.

    All of them go through a layer's attention, its `audio_mlp` and the norms of codes, as in a plain decoder. The
    books' heads are one product.
    """

    def __init__(self, model: Higgs) -> None:
        body, config = model.network.model, model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = config.head_dim or config.hidden_size // config.num_attention_heads
        weight = body.embed_tokens.weight.detach()
        self.floor_D, self.floor_d = (
            weight.new_tensor(math.sqrt(size * config.rms_norm_eps))
            for size in (config.hidden_size, self.dim)
        )
        self.layers = []
        for layer in body.layers:
            qkv, out = self._attention(layer.self_attn, _gains(layer.audio_input_layernorm))
            add = self._feed_forward(layer.audio_mlp, _gains(layer.audio_post_attention_layernorm))
            self.layers.append((qkv, None, out, add))
        heads = (model.network.text_lm_head.weight, model.network.audio_lm_head.weight)
        self.words_VD, self.codes_VD = self._scoring(heads, _gains(body.norm))
        self.books = model.books
        cos, sin = body.rotary_emb(weight, torch.arange(model.ctx_len, device=weight.device)[None])
        self._turn_by(cos[0], sin[0], weight.dtype)
        self._remember(model)

    @staticmethod
    def fits(model: Higgs) -> bool:
        """Whether a model's layers are those that it knows: without biases, with SiLU, with settled positions."""
        config = model.config
        return (
            not config.attention_bias
            and not config.mlp_bias
            and config.hidden_act == "silu"
            and config.rope_parameters["rope_type"] in TURNS
        )

    @staticmethod
    def ingredients(model: Any) -> tuple[list[Tensor], list[tuple[Any, ...]]]:
        """See Stepper."""
        network = model.network
        weights = [network.text_lm_head.weight, network.audio_lm_head.weight, network.model.norm.weight]
        how = []
        for layer in network.model.layers:
            weights += [layer.audio_input_layernorm.weight, layer.audio_post_attention_layernorm.weight]
            attention, mlp = layer.self_attn, layer.audio_mlp
            for linear in (
                *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
                *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
            ):
                tensors, settings = ingredients(linear)
                weights += tensors
                how.append(settings)
        return weights, how

    def scores(self, x_BD: Tensor, legal: Sequence[Ranges | None] | None) -> list[Tensor]:
        """Of the words and of each book; see `models.causal.CausalLM.reading`."""
        of_words, *of_books = [None] * (1 + self.books) if legal is None else legal
        words = joined([torch.mm(x_BD, rows.T) for rows in rows_of((self.words_VD,), of_words)])
        books = torch.mm(x_BD, self.codes_VD.T).chunk(self.books, 1)
        return [
            words,
            *(
                scores if ids is None else joined([scores[:, each.start : each.stop] for each in ids])
                for scores, ids in zip(books, of_books, strict=True)
            ),
        ]
