"""Qwen3 and SigLIP in the exact shape of the real ones, but tiny and random: what a pretrained model's folder
looks like.

Of the vocabulary, a table of 151,936 rows is most of what such a model costs: `words` makes it smaller where
its size is not the matter.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

BASE, ADDED, ROWS = (
    151_643,
    26,
    151_936,
)  # tokens of the vocabulary, tokens added to it, rows of the model's table
WORDS = [
    "system user assistant user assistant.",
    "what is in the picture? describe the image in detail. you are a helpful assistant. a red circle and a blue square.",
    "a man on a wave. a street sign near the park number. what else? provide a brief description of the given image concisely.",
    "a man rides a wave on a surfboard; two dogs run along the beach, and a child is flying a kite in the park near a street sign.",
]
SPECIAL = [
    "endoftext",
    "im_start",
    "im_end",
    "object_ref_start",
    "object_ref_end",
    "box_start",
    "box_end",
    "quad_start",
    "quad_end",
]
SPECIAL += ["vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
FIM = ["fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep"]
NAMES = (
    [f"<|{name}|>" for name in SPECIAL] + ["<tool_call>", "</tool_call>"] + [f"<|{name}|>" for name in FIM]
)
NAMES += ["<tool_response>", "</tool_response>", "<think>", "</think>"]
REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # of Qwen2 and Qwen3
# Qwen3's, without the part for tools: a think block opens the assistant's turns after the last question.
CHAT_TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n\\n</think>\\n\\n' + message.content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def tokenizer(folder: Path, *, words: int = BASE) -> Path:
    """Qwen3's tokenizer files: 256 bytes, a few true merges, fillers up to 151,643 that no text reaches, and
    the 26 added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _tokenizer_files(words).items():
        (folder / name).write_bytes(text.encode())
    return folder


def llm(
    folder: Path,
    *,
    dtype: str = "fp32",
    tied: bool = True,
    shard: str = "5GB",
    seed: int = 5,
    words: int = BASE,
    **sizes: Any,
) -> Path:
    """A random Qwen3ForCausalLM as transformers saves it, its tokenizer beside it."""
    import torch
    import transformers

    chosen: dict[str, Any] = {
        "vocab_size": words + ROWS - BASE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,  # blocks loud enough that it does not merely repeat what it read last
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "bos_token_id": words,
        "eos_token_id": NAMES.index("<|im_end|>") + words,
        **sizes,
    }
    torch.manual_seed(seed)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**chosen))
    with torch.no_grad():  # untrained logits are so flat that rounding could decide between two ids
        model.get_output_embeddings().weight.normal_(std=0.5)
        model.get_output_embeddings().weight[:words][600:].zero_()  # fillers have no text worth reading
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]).save_pretrained(
        folder, max_shard_size=shard
    )
    return tokenizer(folder, words=words)


def eyes(folder: Path, kind: str = "siglip", *, seed: int = 3) -> Path:
    """A random SigLIP (20 pixels: 5 x 5 patches) or SigLIP 2 NaFlex (at most 30 patches) as transformers
    saves it, with its processor."""
    import torch
    import transformers
    from transformers.models.siglip import image_processing_pil_siglip as pil_siglip
    from transformers.models.siglip2 import image_processing_pil_siglip2 as pil_siglip2

    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
    }
    torch.manual_seed(seed)
    model: Any
    processor: Any
    if kind == "siglip2":
        model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**shape, num_patches=16))
        processor = pil_siglip2.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=30)
    else:
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**shape, image_size=20))
        processor = pil_siglip.SiglipImageProcessorPil(size={"height": 20, "width": 20})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def without(folder: Path, to: Path, *names: str) -> Path:
    """The tokenizer of a folder without some of its added tokens."""
    shutil.copytree(folder, to)
    content = json.loads((to / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in names]
    (to / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    return to


@functools.cache
def _tokenizer_files(words: int) -> dict[str, str]:
    """The files by name; merges as pairs in one string, as Qwen's file has them."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from tokenizers.processors import ByteLevel as Processor
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(BPE())
    made.normalizer = NFC()
    made.pre_tokenizer = Sequence(
        [Split(Regex(REGEX), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.post_processor = Processor(add_prefix_space=False, trim_offsets=False, use_regex=False)
    made.decoder = Decoder(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False, min_frequency=1
    )
    made.train_from_iterator(WORDS, trainer)
    content = json.loads(made.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"Ġfiller{number:06d}": number for number in range(len(vocabulary), words)}
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["added_tokens"] = [
        {
            "id": words + i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": i < 14,
        }
        for i, name in enumerate(NAMES)
    ]
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {k: v for k, v in token.items() if k != "id"}
            for token in content["added_tokens"]
        },
        "additional_special_tokens": NAMES[1 : len(SPECIAL)],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False, indent=2),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=4),
        "merges.txt": "#version: 0.2\n" + "\n".join(content["model"]["merges"]) + "\n",
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
    }


if __name__ == "__main__":
    print(llm(Path(tempfile.mkdtemp()) / "qwen3"))
