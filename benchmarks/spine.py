"""How fast the spine is, beside transformers on the same machine in the same minutes: `python -m
benchmarks.spine [--quick] [--json]`.

Ours and theirs take turns, and a ratio is the median of the turns' ratios, so that a busy machine hurts both
alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.nn import functional as F

from muomni.infer.generate import generate
from muomni.media import griffin_lim
from muomni.media.mel import SPEECH, log_mel
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.nn.head import linear_cross_entropy

BATCH, LENGTH = 8, 256
TRAINING_AIM, DECODING_AIM, MEMORY_AIM = 1.3, 5.0, 0.25


def main() -> None:
    """Measure all and print one line each, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns: a minute rather than five")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of torch (start: all cores)"
    )
    parser.add_argument("--loss-memory", choices=["none", "plain", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loss_memory:
        print(loss_memory(arguments.loss_memory))
        return
    torch.set_num_threads(arguments.threads)
    turns = 4 if arguments.quick else 12
    found: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__, "training": []}
    for vocab_size in (1000, 5000):
        for is_half in (False, True):
            found["training"].append(training(vocab_size, is_half, turns))
    found["decoding"] = decoding(3 if arguments.quick else 7)
    found["loss_memory"] = compare_loss_memory()
    found["griffin_lim"] = griffin_lim_share()
    found["start_up_s"] = start_up_s()
    found["data_wait"] = data_wait(20 if arguments.quick else 60)
    print(json.dumps(found, indent=2) if arguments.json else report(found))


def taking_turns(
    ours: Callable[[], object], theirs: Callable[[], object], turns: int
) -> tuple[float, float, float]:
    """Median seconds of each and the median of theirs / ours, after one turn to warm up."""
    times: list[tuple[float, float]] = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        times.append((middle - start, time.perf_counter() - middle))
    del times[0]
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(b / a for a, b in times),
    )


def training(vocab_size: int, is_half: bool, turns: int) -> dict[str, Any]:
    """Tokens a second of one training step, ours against transformers' Qwen3 of the same size in a plain loop
    with torch's AdamW."""
    import transformers

    torch.manual_seed(0)
    ours = Decoder(DecoderConfig(vocab_size=vocab_size, dropout=0.0)).train()
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**qwen3(ours))).train()
    our_optim = torch.optim.AdamW(ours.parameters(), lr=1e-4, fused=True)
    their_optim = torch.optim.AdamW(theirs.parameters(), lr=1e-4)
    ids = torch.randint(0, vocab_size, (BATCH, LENGTH))
    autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if is_half else nullcontext
    labels = F.pad(ids[:, 1:], (0, 1), value=-100)

    def our_step() -> None:
        with autocast():
            loss = ours.head.nats(ours.hidden(ours.embed(ids)), labels)
        torch.autograd.backward(loss.total / loss.num_labels)
        our_optim.step()
        our_optim.zero_grad()

    def their_step() -> None:
        with autocast():
            loss = theirs(input_ids=ids, labels=ids).loss
        torch.autograd.backward(loss)
        their_optim.step()
        their_optim.zero_grad()

    our_s, their_s, ratio = taking_turns(our_step, their_step, turns)
    tokens, peak = BATCH * LENGTH, matmul_flops(is_half)
    return {
        "vocab_size": vocab_size,
        "dtype": "bf16 autocast" if is_half else "fp32",
        "ours_tokens_per_s": tokens / our_s,
        "theirs_tokens_per_s": tokens / their_s,
        "ratio": ratio,
        "matmul_peak_gflops": peak / 1e9,
        "mfu": training_flops(ours.config, tokens) / our_s / peak,
    }


def training_flops(config: DecoderConfig, tokens: int) -> float:
    """Multiply-adds count as two; the backward as two forwards; attention over the mean of seen positions."""
    weights = (
        config.layers
        * config.width
        * (2 * config.dim_of_head * (config.heads + config.num_kv_heads) + 3 * config.ffn_width)
    )
    weights += config.vocab_size * config.width
    attention = config.layers * 2 * config.heads * config.dim_of_head * LENGTH / 2
    return 6.0 * tokens * (weights + attention)


def matmul_flops(is_half: bool) -> float:
    """The best floating point operations a second seen in a product of the size of this model's largest."""
    dtype = torch.bfloat16 if is_half else torch.float32
    a, b = torch.randn(BATCH * LENGTH, 256, dtype=dtype), torch.randn(256, 1024, dtype=dtype)
    out = torch.empty(BATCH * LENGTH, 1024, dtype=dtype)
    best = min(timed(lambda: torch.mm(a, b, out=out)) for _ in range(30))
    return 2 * BATCH * LENGTH * 256 * 1024 / best


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decoding(turns: int, new_tokens: int = 200) -> dict[str, Any]:
    """Greedy tokens a second of one sequence, ours against transformers' generate on the same weights."""
    import transformers

    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=5000, dropout=0.0)).eval()
    with tempfile.TemporaryDirectory() as folder:
        store.save(model, folder)
        theirs: Any = transformers.Qwen3ForCausalLM.from_pretrained(folder)  # in evaluation mode
    prompt = torch.randint(0, 5000, (1, 16))
    how = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    our_s, their_s, ratio = taking_turns(
        lambda: generate(model, prompt, max_new=new_tokens), lambda: theirs.generate(prompt, **how), turns
    )
    return {
        "ours_tokens_per_s": new_tokens / our_s,
        "theirs_tokens_per_s": new_tokens / their_s,
        "ratio": ratio,
    }


def qwen3(model: Decoder) -> dict[str, Any]:
    """transformers' arguments for a model of the same size."""
    return {
        name: value
        for name, value in model.config.to_file().items()
        if name not in ("architectures", "model_type", "dropout", "qk_norm")
    }


def loss_memory(form: str) -> int:
    """Peak resident bytes of this process after one loss of V 32000, N 4096, D 256 and its gradients (`none`:
    before it)."""
    torch.set_num_threads(1)
    h, weight = torch.randn(4096, 256, requires_grad=True), torch.randn(32000, 256, requires_grad=True)
    labels = torch.randint(0, 32000, (4096,))
    torch.mm(weight[:512].detach(), weight[:512].detach().T)
    if form == "plain":
        torch.autograd.backward(F.cross_entropy(F.linear(h, weight), labels, reduction="sum"))
    elif form == "ours":
        torch.autograd.backward(linear_cross_entropy(h, weight, labels)[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare_loss_memory() -> dict[str, float]:
    """Extra megabytes of our loss and of plain logits, each in a process of its own."""
    peaks = {
        form: int(python("-m", "benchmarks.spine", "--loss-memory", form))
        for form in ("none", "plain", "ours")
    }
    plain, ours = (peaks[form] - peaks["none"] for form in ("plain", "ours"))
    return {"plain_mb": plain / 1e6, "ours_mb": ours / 1e6, "share": ours / plain}


def griffin_lim_share(length_s: float = 4.0) -> float:
    """Seconds that Griffin-Lim takes for a second of sound: 32 iterations, one thread, the best of three."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wave_S = 0.1 * torch.randn(round(length_s * SPEECH.rate_hz), generator=torch.Generator().manual_seed(0))
    frames_FM = log_mel(wave_S[None], SPEECH)[0]
    griffin_lim.invert(frames_FM[:20], SPEECH)
    best_s = min(timed(lambda: griffin_lim.invert(frames_FM, SPEECH)) for _ in range(3))
    torch.set_num_threads(threads)
    return best_s / length_s


def start_up_s() -> float:
    """Seconds until `muomni --help` is back: the best of three."""
    return min(timed(lambda: python("-m", "muomni", "--help")) for _ in range(3))


def data_wait(steps: int) -> float:
    """The share of its time that stage thinker waits for batches, default sizes, measured by its own loop on
    made-up words."""
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(0)
        words = [
            "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(2000)
        ]
        lines = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(4000)]
        Path(folder, "words.txt").write_text("\n".join(lines), encoding="utf-8")
        settings = {
            "data": [{"path": "words.txt"}],
            "model": {"vocab_size": 1000},
            "row_len": LENGTH,
            "batch_size": BATCH,
        }
        settings |= {
            "max_steps": steps,
            "warmup_steps": 5,
            "print_freq": steps,
            "gates": {"floor": 9.0, "held_out_gap": 9.0},
        }
        Path(folder, "recipe.yaml").write_text(
            json.dumps({"name": "wait", "thinker": settings}), encoding="utf-8"
        )
        python("-m", "muomni", "run", f"{folder}/recipe.yaml", "--out", f"{folder}/run")
        rows = [
            json.loads(line)
            for line in Path(folder, "run/thinker/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    return float(next(row["data_wait"] for row in reversed(rows) if "data_wait" in row))


def python(*arguments: str) -> str:
    """The output of a Python process."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def report(found: dict[str, Any]) -> str:
    """The findings as lines, each with what was aimed at."""
    lines = [f"torch {found['torch']}, {found['threads']} threads; ours and transformers' by turns"]
    for each in found["training"]:
        rates = f"{each['ours_tokens_per_s']:.0f} against {each['theirs_tokens_per_s']:.0f} tokens/s"
        aim = f"x {each['ratio']:.2f} (aim {TRAINING_AIM})"
        use = f"MFU {each['mfu']:.0%} of {each['matmul_peak_gflops']:.0f} Gflop/s"
        lines.append(f"training, V {each['vocab_size']}, {each['dtype']}: {rates}, {aim}, {use}")
    decode, memory = found["decoding"], found["loss_memory"]
    rates = f"{decode['ours_tokens_per_s']:.0f} against {decode['theirs_tokens_per_s']:.0f} tokens/s"
    lines.append(f"decoding, one sequence: {rates}, x {decode['ratio']:.2f} (aim {DECODING_AIM})")
    megabytes = f"{memory['ours_mb']:.0f} against {memory['plain_mb']:.0f} MB"
    lines.append(f"loss, V 32000, N 4096: {megabytes}, share {memory['share']:.2f} (aim {MEMORY_AIM})")
    lines.append(f"Griffin-Lim, one thread: {found['griffin_lim']:.3f} s a second of sound (aim 0.07)")
    lines.append(f"start-up of --help: {found['start_up_s']:.2f} s")
    lines.append(f"waiting for data in stage thinker: {found['data_wait']:.2%} of the time (aim < 1 %)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
