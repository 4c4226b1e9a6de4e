#!/usr/bin/env bash
# Guess: save_pretrained into a folder that held shards, which deletes these, deletes model.safetensors.index.json too, since the weights are one file.
# Seen (transformers 5.24.0): the shards go, the index stays and names files that are no more. from_pretrained prefers the single file and
# says nothing, so nobody notices; a loader of another kind that looks for the index first finds no weights.
# Output seen: 5.24.0 ['model.safetensors', 'model.safetensors.index.json'] the index names 6 files, 0 of them there
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 safetensors==0.8.0 tokenizers==0.23.3
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

transformers.utils.logging.disable_progress_bar()
folder = Path(sys.argv[1], "model")
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
config = Qwen3Config(**sizes, num_key_value_heads=1)
Qwen3ForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
second = Qwen3ForCausalLM(config)
second.save_pretrained(folder)
weights = sorted(path.name for path in folder.glob("model*"))
named = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())
there = sum((folder / name).exists() for name in named)
opened = AutoModelForCausalLM.from_pretrained(folder)
print(transformers.__version__, weights, f"the index names {len(named)} files, {there} of them there")
assert all(torch.equal(value, opened.state_dict()[name]) for name, value in second.state_dict().items())
assert weights == ["model.safetensors", "model.safetensors.index.json"] and there == 0, "what save_pretrained leaves has changed"
PYTHON
