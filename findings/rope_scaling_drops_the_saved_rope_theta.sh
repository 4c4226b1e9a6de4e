#!/usr/bin/env bash
# Guess: whoever adds "rope_scaling" to config.json, as model cards advise for long texts (YaRN), keeps the model's rope_theta.
# Seen (transformers 5.24.0): true of a config with `rope_theta` at its top. One that transformers 5 saved has it within `rope_parameters`; an added
# `rope_scaling` then replaces the whole of that, and rope_theta becomes the default 10000 (here 1000000 before), with which the weights were
# never trained. No warning names it. What helps: write factor and type into `rope_parameters`.
# Output seen: 5.24.0 rope_theta with rope_scaling added: at the top 1000000.0 in rope_parameters 10000.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 numpy==2.4.6 tokenizers==0.23.3
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from transformers import AutoConfig, Qwen3Config

yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
saved = Path(sys.argv[1], "saved")
Qwen3Config(rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}).save_pretrained(saved)
values = json.loads((saved / "config.json").read_text())
older = {key: value for key, value in values.items() if key != "rope_parameters"} | {"rope_theta": 1_000_000.0}
thetas = []
for config in (older, values):
    (saved / "config.json").write_text(json.dumps(config | {"rope_scaling": yarn}))
    thetas.append(AutoConfig.from_pretrained(saved).rope_parameters["rope_theta"])
print(transformers.__version__, "rope_theta with rope_scaling added: at the top", thetas[0], "in rope_parameters", thetas[1])
assert thetas == [1_000_000.0, 10_000.0], "what rope_scaling beside rope_parameters does has changed"
PYTHON
