#!/usr/bin/env bash
# Guess: from_pretrained on a folder that has model.safetensors loads that; an adapter in the same folder waits for PeftModel or load_adapter (that
# a folder with an adapter alone is opened with its base is documented).
# Seen (transformers 5.24.0, peft 0.21.2): the adapter is put on top without a word, by the model's own class as well as by AutoModelForCausalLM:
# the logits are the adapted model's. What prevents it is not to have both in one folder.
# Output seen: 5.24.0 0.21.2 {'AutoModelForCausalLM': 'with adapter', 'Qwen3ForCausalLM': 'with adapter'}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 peft==0.21.2 accelerate==1.15.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import peft
import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_key_value_heads=1)).eval()
ids_BT = torch.arange(8)[None]
plain = model(ids_BT).logits
folder = sys.argv[1] + "/model"
model.save_pretrained(folder)
adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
with_adapter = adapted(ids_BT).logits
adapted.save_pretrained(folder)
found = {}
for kind in (AutoModelForCausalLM, Qwen3ForCausalLM):
    logits = kind.from_pretrained(folder).eval()(ids_BT).logits
    found[kind.__name__] = "plain" if torch.allclose(logits, plain) else "with adapter" if torch.allclose(logits, with_adapter) else "neither"
print(transformers.__version__, peft.__version__, found)
assert set(found.values()) == {"with adapter"}, "what from_pretrained does with an adapter beside full weights has changed"
PYTHON
