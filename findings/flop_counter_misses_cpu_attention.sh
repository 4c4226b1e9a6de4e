#!/usr/bin/env bash
# Guess: FlopCounterMode counts scaled_dot_product_attention on a CPU as it counts the same two products written out.
# Seen (torch 2.13.0, CPU): the fused CPU kernel is not in its table, so attention counts as 0; only the CUDA kernels are known to it.
# Output seen: 2.13.0+cpu fused 0 written out 2097152
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

q = torch.randn(1, 4, 64, 32)
with FlopCounterMode(display=False) as fused:
    scaled_dot_product_attention(q, q, q)
with FlopCounterMode(display=False) as written:
    (q @ q.transpose(-1, -2)).softmax(-1) @ q
print(torch.__version__, "fused", fused.get_total_flops(), "written out", written.get_total_flops())
assert (fused.get_total_flops(), written.get_total_flops()) == (0, 2097152), "what FlopCounterMode counts has changed"
PYTHON
