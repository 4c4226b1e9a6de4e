"""The Thinker: a causal transformer with Qwen3's maths, tensor names and config file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from muomni.errors import CheckpointError, ConfigError, ContextError
from muomni.models import stepper
from muomni.models.causal import CausalLM, Read
from muomni.nn import masks, recompute, rope
from muomni.nn.block import Block
from muomni.nn.cache import STEADY, KVCache
from muomni.nn.grown import GrownEmbedding, GrownHead
from muomni.nn.head import OwnHead, Ranges, TableHead, TiedHead
from muomni.nn.moe import MoE, Routing
from muomni.nn.norm import RMSNorm

PART = 256  # positions


class ExpertsConfig(BaseModel):
    """Feed-forward networks of many experts, in the layers that are not dense; keys of Qwen3-MoE's config
    file in brackets.

    balance_weight  weight of the loss that asks the routers to use all experts alike (router_aux_loss_coef);
                    0: not asked
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_experts: int = Field(gt=0, description="experts of a layer (num_experts)")
    experts_per_token: int = Field(2, gt=0, description="of these, used by each token (num_experts_per_tok)")
    ffn_width: int = Field(256, gt=0, description="width inside of an expert (moe_intermediate_size)")
    normalise_weights: bool = Field(True, description="a token's weights sum to 1 (norm_topk_prob)")
    every_n_layers: int = Field(
        1,
        gt=0,
        description="layers n, 2 x n, ... have experts, the first being layer 1 (decoder_sparse_step)",
    )
    dense_layers: tuple[NonNegativeInt, ...] = Field(
        (), description="layers, from 0, that have none all the same (mlp_only_layers)"
    )
    balance_weight: float = Field(0.001, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token {self.experts_per_token} must be at most num_experts {self.num_experts}"
            )
        return self

    def are_in(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        return layer not in self.dense_layers and (layer + 1) % self.every_n_layers == 0


class DecoderConfig(BaseModel):
    """Sizes of a decoder; the start is the stage `thinker` of the smallest recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(gt=0)
    width: int = Field(256, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    kv_heads: int | None = Field(None, gt=0, description="key heads; None: as many as heads")
    head_dim: int | None = Field(None, gt=0, description="None: width / heads")
    ffn_width: int = Field(1024, gt=0, description="width inside of the feed-forward network")
    rope_theta: float = Field(1e4, gt=0, description="base of the rotary frequencies")
    ctx_len: int = Field(512, gt=0, description="longest sequence, in positions")
    dropout: float = Field(0.1, ge=0, lt=1)
    tied: bool = Field(True, description="the output projection is the embedding table")
    qk_norm: bool = Field(
        True, description="False leaves Qwen3's maths; transformers can't open such a folder"
    )
    eps: float = Field(1e-6, gt=0)
    experts: ExpertsConfig | None = Field(
        None, description="of Qwen3-MoE; None: each token goes through the whole network"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.experts is not None and not any(self.experts.are_in(layer) for layer in range(self.layers)):
            said = f"every_n_layers {self.experts.every_n_layers}, dense_layers {list(self.experts.dense_layers)}"
            raise ValueError(f"experts: no layer of {self.layers} has any ({said})")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.num_kv_heads}")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"width {self.width} must be a multiple of heads {self.heads}, or head_dim be given"
            )
        return self

    @property
    def num_kv_heads(self) -> int:
        """Key heads as they are."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def dim_of_head(self) -> int:
        """Head width as it is."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    def to_file(self) -> dict[str, Any]:
        """The content of config.json, as transformers 5 writes it for Qwen3; what is only ours stands at its
        end."""
        qwen3 = {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.ffn_width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.dim_of_head,
            "hidden_act": "silu",
            "max_position_embeddings": self.ctx_len,
            "rms_norm_eps": self.eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "tie_word_embeddings": self.tied,
        }
        ours = {"dropout": self.dropout, "qk_norm": self.qk_norm}
        if self.experts is None:
            return {**qwen3, **ours}
        moe = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": self.experts.num_experts,
            "num_experts_per_tok": self.experts.experts_per_token,
            "moe_intermediate_size": self.experts.ffn_width,
            "norm_topk_prob": self.experts.normalise_weights,
            "decoder_sparse_step": self.experts.every_n_layers,
            "mlp_only_layers": list(self.experts.dense_layers),
            "router_aux_loss_coef": self.experts.balance_weight,
        }
        return {**qwen3, **moe, **ours}

    @classmethod
    def from_file(cls, content: dict[str, Any]) -> DecoderConfig:
        """A Qwen3 or Qwen3-MoE config.json, by us or by transformers 4 or 5, as ours.

        What a file leaves out is what transformers takes for it, which differs by class; a file with both
        spellings of the rotary settings means the old one (`rope_scaling`), as there.
        Raises  CheckpointError where the file asks for maths that this decoder does not have.
        """
        positions = content.get("rope_scaling") or content.get("rope_parameters") or {}
        wants = {
            "hidden_act": content.get("hidden_act", "silu") != "silu",
            "attention_bias": bool(content.get("attention_bias")),
            "use_sliding_window": bool(content.get("use_sliding_window")),
            "layer_types": any(kind != "full_attention" for kind in content.get("layer_types") or ()),
            "rope type": positions.get("rope_type", positions.get("type", "default")) != "default",
            "rope settings by kind of layer": any(isinstance(value, dict) for value in positions.values()),
            "quantization_config": bool(content.get("quantization_config")),
        }
        if beyond := [name for name, is_beyond in wants.items() if is_beyond]:
            raise CheckpointError(
                f"config.json asks for what this decoder does not have: {', '.join(beyond)}"
            )
        is_moe = content.get("model_type") == "qwen3_moe"
        try:
            return cls(
                vocab_size=content["vocab_size"],
                width=content["hidden_size"],
                layers=content["num_hidden_layers"],
                heads=content["num_attention_heads"],
                kv_heads=content.get("num_key_value_heads", 4 if is_moe else 32),
                head_dim=content.get("head_dim", None if is_moe else 128),
                ffn_width=content["intermediate_size"],
                rope_theta=positions.get("rope_theta", content.get("rope_theta", 1e4)),
                ctx_len=content.get("max_position_embeddings", 32768),
                dropout=content.get("dropout", 0.0),
                tied=content.get("tie_word_embeddings", False),
                qk_norm=content.get("qk_norm", True),
                eps=content.get("rms_norm_eps", 1e-6),
                experts=_experts(content),
            )
        except KeyError as error:
            raise CheckpointError(f"config.json lacks {error}, which a qwen3 model needs") from error


def _experts(content: dict[str, Any]) -> ExpertsConfig | None:
    """What a config.json says of experts; transformers 5 calls their number num_local_experts."""
    number, other = content.get("num_experts"), content.get("num_local_experts")
    if number and other and number != other:
        raise CheckpointError(
            f"config.json says {number} experts (num_experts) and {other} (num_local_experts)"
        )
    number = number or other
    if not number:
        return None
    return ExpertsConfig(
        num_experts=number,
        experts_per_token=content["num_experts_per_tok"],
        ffn_width=content["moe_intermediate_size"],
        normalise_weights=content.get("norm_topk_prob", False),
        every_n_layers=content.get("decoder_sparse_step", 1),
        dense_layers=tuple(content.get("mlp_only_layers") or ()),
        balance_weight=content.get("router_aux_loss_coef", 0.001),
    )


class Body(nn.Module):
    """Embeddings, blocks and last norm: what stands under `model.` in a Qwen3 checkpoint. Its call is
    `Decoder.hidden`.

    checkpointing   see Decoder
    """

    checkpointing: bool = False

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.ffn_width,
                kv_heads=config.kv_heads,
                head_dim=config.head_dim,
                mlp=self._mlp(config, layer),
                qk_norm=config.qk_norm,
                dropout=config.dropout,
                eps=config.eps,
            )
            for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.width, config.eps)

    @staticmethod
    def _mlp(config: DecoderConfig, layer: int) -> MoE | Literal["swiglu"]:
        experts = config.experts
        if experts is None or not experts.are_in(layer):
            return "swiglu"
        return MoE(
            config.width,
            experts.ffn_width,
            experts.num_experts,
            experts.experts_per_token,
            normalise=experts.normalise_weights,
        )

    def forward(
        self,
        x_BTD: Tensor,
        *,
        keep_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """States from which logits are read.

        Takes   x_BTD embeddings; keep_BT bool, True = a real position (padding may stand anywhere);
                documents_BT ids of packed documents; positions_BT in place of the sequential ones, which skip
                padding and restart with every document; cache: x_BTD goes on after its positions, keep_BT
                then speaks of the new ones; routing: is told which experts each token chose, layer by layer;
                layer k: the states after k blocks, before the last norm, for whoever reads mid-way (0 =
                x_BTD).
        Gives   (B,T,D).
        Raises  ContextError beyond ctx_len positions; ConfigError if `layer` is not among 0..layers, or comes
                with a cache.
        """
        config = self.config
        length = x_BTD.shape[1]
        if layer is not None and (cache is not None or not 0 <= layer <= config.layers):
            raise ConfigError(f"layer must be within 0..{config.layers} and without a cache, got {layer}")
        seen = length if cache is None else cache.length + length
        if seen > config.ctx_len and documents_BT is None:
            raise ContextError(f"{seen} positions do not fit ctx_len {config.ctx_len}")
        if cache is None and torch.is_grad_enabled():
            stepper.release(self)  # what trains has better use for the memory
        if cache is None:
            mask = masks.build(length, keep_BT=keep_BT, documents_BT=documents_BT, causal=True)
            positions = masks.positions(
                length, keep_BT=keep_BT, documents_BT=documents_BT, device=x_BTD.device
            )
        else:
            mask, positions = None, cache.begin(length, keep_BT)
        tables = rope.angles(
            positions if positions_BT is None else positions_BT, config.dim_of_head, config.rope_theta
        )
        blocks = list(self.layers)[:layer]
        how: dict[str, Any] = {"rope": tables, "mask": mask, "causal": mask is None, "routing": routing}
        if self.checkpointing and cache is None and self._is_taught(x_BTD):
            for block in blocks:
                x_BTD = checkpoint(block, x_BTD, **how, use_reentrant=False, context_fn=recompute.contexts)
        else:
            for index, block in enumerate(blocks):
                x_BTD = block(x_BTD, **how, cache=None if cache is None else cache.layer(index))
        if layer is not None:
            return x_BTD
        out: Tensor = self.norm(x_BTD)
        return out

    def _is_taught(self, x_BTD: Tensor) -> bool:
        """Whether a backward will come through the blocks: to their weights, or past frozen ones to whoever
        made x_BTD."""
        return torch.is_grad_enabled() and (
            x_BTD.requires_grad or any(p.requires_grad for p in self.layers.parameters())
        )


class Decoder(CausalLM):
    """ids or embeddings -> hidden states -> logits.

    checkpointing   each block's activations are made again in the backward instead of kept: a third more
                    arithmetic, memory of one block
    is_steady       a lone row is computed as it would be among others, so that its answer has the same bits
                    (`infer.batch`): a fifth slower, so only where many are answered (`steady`)
    """

    model_type: ClassVar[str] = "qwen3"
    trained_by: ClassVar[str] = "thinker"
    is_steady = False

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = None if config.tied else OwnHead(config.width, config.vocab_size)
        self._tied_head = TiedHead(self.model.embed_tokens) if config.tied else None
        self.grown_embed: GrownEmbedding | None = None
        self.grown_head: GrownHead | None = None
        self._start()

    @classmethod
    def open(cls, folder: Path | str, device: torch.device | str = "cpu") -> Decoder:
        """A decoder saved by us or by transformers (Qwen3, one file or sharded).

        Raises  CheckpointError where the folder holds another model or a torn one.
        """
        from muomni.models import store

        model = store.load(folder, device)
        if not isinstance(model, cls):
            raise CheckpointError(f"{folder} holds a {type(model).__name__}, not a decoder")
        return model

    @torch.no_grad()
    def _start(self) -> None:
        """Random weights at scales at which words are heard.

        Embeddings of std 0.02 drown beside what blocks add (SPEC 7). They start sqrt(width) wider, and the
        gain of the last norm takes the same factor off again, so that tied logits stay small (first loss near
        ln V) and the maths stays Qwen3's. Products in blocks start at 0.5 / sqrt(width), those that write
        into the stream 1 / sqrt(2 layers) lower, as in GPT-2; values and outputs of attention four times
        louder: what one token tells another would else drown too, and nothing learns to look anything up
        (colour of a named shape among three tokens, 16 rows a step: exact after 100 steps; with quiet ones
        after 300, docs/log.md). Measured before values and outputs were louder (200 steps, width 128, 1,000
        words of real text, one seed, nats held out): both as here 4.47, products at 0.02 4.59, embeddings at
        0.02 4.58, both at 0.02 4.69.
        """
        config = self.config
        for name, weight in self.model.layers.named_parameters():
            if weight.dim() == 2:
                is_writing = name.endswith(("o_proj.weight", "down_proj.weight"))
                gain = 2.0 if name.endswith(("v_proj.weight", "o_proj.weight")) else 0.5
                nn.init.normal_(
                    weight,
                    std=gain / math.sqrt(config.width) / (math.sqrt(2 * config.layers) if is_writing else 1),
                )
        nn.init.normal_(self.model.embed_tokens.weight, std=0.02 * math.sqrt(config.width))
        if self.lm_head is None:
            self.model.norm.weight.fill_(1 / math.sqrt(config.width))
        else:
            nn.init.normal_(self.lm_head.weight, std=0.02)

    @property
    def num_active(self) -> int:
        """Parameters that compute one token: of the experts those that it chooses."""
        count = sum(parameter.numel() for parameter in self.parameters())
        for part in self.modules():
            if isinstance(part, MoE):
                count -= (
                    sum(p.numel() for p in part.experts.parameters())
                    * (len(part.experts) - part.per_token)
                    // len(part.experts)
                )
        return count

    @property
    def ctx_len(self) -> int:  # type: ignore[override]
        """Longest sequence, in positions."""
        return self.config.ctx_len

    @property
    def head(self) -> TableHead:  # type: ignore[override]
        """What turns hidden states into logits, or into the nats of labels."""
        head = self.grown_head or self.lm_head or self._tied_head
        assert head is not None
        return head

    def grow(self, rows: int, first: int | None = None, streams: int = 1) -> None:
        """Add `rows` ids from `first` on, with rows of their own in input and output (`nn.grown`).

        The scores of the ids before them keep all their bits.

        Takes   first: None = behind those of the config; streams: ids at one place.
        Raises  ConfigError where it has grown already; ShapeError where ids before `first` have no rows.
        """
        if self.grown_head is not None:
            raise ConfigError("this decoder has new rows already: open its base again")
        self.grown_head = GrownHead(self.head, rows, first, streams)
        self.grown_embed = GrownEmbedding(self.table, rows, first)

    @property
    def table(self) -> nn.Embedding:
        """The module whose call is `embed`."""
        return self.model.embed_tokens

    @property
    def body(self) -> Body:
        """The module whose call is `hidden`."""
        return self.model

    @property
    def blocks(self) -> Sequence[Block]:
        """Its blocks in order, for adapters, hooks and the stepper; under `model.layers` in names of
        parameters."""
        return cast("Sequence[Block]", self.model.layers)

    def projections(self) -> Iterator[tuple[str, nn.Linear]]:
        """The linear layers of its blocks with their full names: where adapters may stand (the output table
        is read past any)."""
        for name, layer in self.model.layers.named_modules(prefix="model.layers"):
            if isinstance(layer, nn.Linear):
                yield name, layer

    @property
    def checkpointing(self) -> bool:
        """Whether the backward makes activations again."""
        return self.model.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.model.checkpointing = on

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the token embeddings: the loudness at which projectors of other modalities
        should speak."""
        return float(self.model.embed_tokens.weight.detach().float().square().mean().sqrt())

    def steady(self) -> None:
        """From now on a lone row is computed as it would be among others, and a long prompt in parts, between
        which others take a step."""
        self.is_steady, self.part = True, self.part or PART

    def embed(self, ids_BT: Tensor) -> Tensor:
        """int64 (B,T) -> (B,T,D)."""
        out: Tensor = (self.grown_embed or self.model.embed_tokens)(ids_BT)
        return out

    def hidden(self, x_BTD: Tensor, **how: Any) -> Tensor:
        """States from which logits are read, (B,T,D); takes and raises what `Body.forward` does."""
        out: Tensor = self.model(x_BTD, **how)
        return out

    def reading(self, legal: Sequence[Ranges | None] | None = None) -> Read:
        """By its stepper, which is kept with it."""
        return partial(stepper.kept(self).read, legal=None if legal is None else legal[0])

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` positions, in the weights' dtype and place."""
        config, weight = self.config, self.model.embed_tokens.weight
        return KVCache(
            config.layers,
            batch,
            config.num_kv_heads,
            capacity,
            config.dim_of_head,
            weight.dtype,
            weight.device,
            block=STEADY if self.is_steady and weight.device.type == "cpu" else 1,
        )
