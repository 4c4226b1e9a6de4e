#!/usr/bin/env bash
# Guess: sum(dtype=float32) of a bf16 tensor widens each number as it adds it, so it needs no more memory than sum().
# Seen (torch 2.13.0, CPU): it makes a whole float32 copy first, twice the tensor's bytes; sum() without dtype copies nothing, and its
# result, rounded to bf16 at the end, is that of the wider sum. Who looks through mapped weights so doubles or triples what they take.
# Output seen: 2.13.0+cpu of 128 MiB: sum() took 0 MiB more, sum(dtype=float32) 257 MiB more
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import resource

import torch

torch.set_num_threads(1)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


numbers = torch.ones(64, 1 << 20, dtype=torch.bfloat16)
numbers.sum()
start = peak_mib()
plain = numbers.sum()
after_plain = peak_mib()
wide = numbers.sum(dtype=torch.float32)
grown, copied = after_plain - start, peak_mib() - after_plain
print(torch.__version__, f"of 128 MiB: sum() took {grown:.0f} MiB more, sum(dtype=float32) {copied:.0f} MiB more")
assert plain.item() == wide.item() == numbers.numel()
assert grown < 16 and copied > 200, "what a sum with a wider dtype takes has changed"
PYTHON
