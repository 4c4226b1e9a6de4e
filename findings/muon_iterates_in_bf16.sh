#!/usr/bin/env bash
# Guess: torch.optim.Muon orthogonalises a float32 gradient in float32 where the device has no bf16 of its own.
# Seen (torch 2.13.0, CPU): all its products are in bfloat16, whatever the parameter's format and the device. On a CPU that only emulates
# bf16 (AVX2), one orthogonalisation of 256 x 1024 took 27 times as long as in float32 (docs/log.md, "A chip without bf16").
# Output seen: 2.13.0+cpu torch.float32 ['torch.bfloat16']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Products(TorchDispatchMode):
    """Notes the number format of every matrix product."""

    formats: set = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "mm" in str(func) and isinstance(out, torch.Tensor):
            self.formats.add(str(out.dtype))
        return out


weight = torch.nn.Parameter(torch.randn(64, 32))
optimizer = torch.optim.Muon([weight], lr=1e-3)
weight.grad = torch.randn(64, 32)
with Products() as products:
    optimizer.step()
print(torch.__version__, weight.dtype, sorted(products.formats))
assert sorted(products.formats) == ["torch.bfloat16"], "Muon's number format has changed"
PYTHON
