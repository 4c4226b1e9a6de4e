"""A Higgs Audio v2 of sizes that a recipe names, with random weights, and how one is written as transformers opens
it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import save as to_safetensors

from muomni import files
from muomni.models import from_transformers, store
from muomni.models.higgs import CLASS, Higgs
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec


class HiggsConfig(BaseModel):
    """Sizes of a new one; how many codes a book has is its codec's.

    vocab_size  ids at most, marks too: so many are learned from the words of the data
    books       of the codec's, the first so many; a codec of stage codec is taken whole
    ffn_width   of each of the two paths, that of words and that of codes
    ctx_len     positions of the longest row that it will ever read
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    vocab_size: int = Field(512, ge=256)
    books: int = Field(8, gt=0)
    width: int = Field(256, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    kv_heads: int = Field(4, gt=0)
    ffn_width: int = Field(512, gt=0)
    ctx_len: int = Field(1024, ge=16)
    rope_theta: float = Field(10_000.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="of attention: the one place where the class has it")

    @model_validator(mode="after")
    def _divides(self) -> HiggsConfig:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be {self.heads} heads of an even width")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


def make(sizes: HiggsConfig, tokenizer: Tokenizer, codec: Codec) -> Higgs:
    """A model with random weights, drawn as the library draws them, for these words and codes.

    Raises  ConfigError where the extra `hf` is not installed.
    """
    library = from_transformers.installed(Path(CLASS), "Higgs Audio v2")
    mark = tokenizer.special
    config: Any = library.HiggsAudioV2Config(
        architectures=[CLASS],
        dtype="float32",
        vocab_size=tokenizer.num_ids,
        hidden_size=sizes.width,
        intermediate_size=sizes.ffn_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.width // sizes.heads,
        max_position_embeddings=sizes.ctx_len,
        attention_dropout=sizes.dropout,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        num_codebooks=codec.codebooks,
        codebook_size=codec.codebook_size + 2,  # rows for the symbols that begin and end a stream
        audio_stream_bos_id=codec.codebook_size,
        audio_stream_eos_id=codec.codebook_size + 1,
        audio_token_id=mark("<|AUDIO_OUT|>"),
        audio_bos_token_id=mark("<|audio_out_bos|>"),
        audio_delay_token_id=mark("<|reserved_special_token_6|>"),
        pad_token_id=mark("<|end_of_text|>"),
        bos_token_id=mark("<|begin_of_text|>"),
        eos_token_id=mark("<|eot_id|>"),
    )
    with from_transformers.quiet():
        return Higgs(getattr(library, CLASS)(config, use_text_head=True))


def save(model: Higgs, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, weights and tokenizer as a folder that transformers and `Higgs.open` open; the layout is the
    library's, whatever the model was read from. The model has no adapter."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    largest = max(state.values(), key=lambda tensor: tensor.numel())
    content = {**model.config.to_dict(), "architectures": [CLASS]}
    content["dtype"] = str(largest.dtype).removeprefix("torch.")
    files.write_bytes(folder / store.WEIGHTS, to_safetensors(state, metadata={"format": "pt"}))
    files.write_json(folder / store.CONFIG, content)
    tokenizer.save(folder)
