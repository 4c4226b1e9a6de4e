"""How much serving many at once gains: `python -m benchmarks.serve [--quick] [--json]`.

Answers of 64 tokens to prompts of 8 to 24, greedy, by a Qwen3 of 4 blocks of 256 with random weights, on one thread,
in this process: by the engine's own decoding one after the other, and by the server's scheduler to 1 and to 16
clients at once. They take turns, and a ratio is the median of the turns' ratios, so that a busy machine hurts all
alike. Each row is printed as it is known. Answers must be equal, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

CLIENTS, MOST, QUICK_MOST = 16, 64, 24
TURNS, QUICK_TURNS = 9, 3


def main() -> None:
    """Measure and print a line each, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TURNS} turns of {QUICK_MOST} tokens")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    size = (QUICK_TURNS, QUICK_MOST) if arguments.quick else (TURNS, MOST)
    found = asyncio.run(measured(*size, quiet=arguments.json))
    if arguments.json:
        print(json.dumps(found, indent=2))
    sys.exit(0 if found["equal"] else 1)


def tiny_engine() -> Any:
    """An engine of random weights, wide enough that products count, with a tokenizer that says something."""
    import torch

    from muomni.infer.engine import Engine
    from muomni.models.decoder import Decoder, DecoderConfig
    from muomni.tokens.bpe import Tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["the red circle is left of the blue square"] * 4, 280)
    model = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, dropout=0.0)).eval()
    for parameter in model.parameters():
        parameter.data *= 3  # far from flat scores
    for stop in tokenizer.special_tokens.stops:
        model.table.weight.data[stop] = 0  # no answer ends early
    parts = SimpleNamespace(
        tokenizer=tokenizer, thinker=model, device=torch.device("cpu"), omni=None, media=(None, {})
    )
    return Engine(cast(Any, parts))


async def measured(turns: int, most: int = MOST, *, quiet: bool = False) -> dict[str, Any]:
    """Tokens a second, first tokens, and the ratios that the aims are about."""
    import torch

    from muomni.infer import generate
    from muomni.infer.answer import Writer
    from muomni.infer.batch import together
    from muomni.infer.prompt import Prompt
    from muomni.serve.scheduler import Scheduler
    from muomni.serve.work import Ask

    def tell(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    engine = tiny_engine()
    tokenizer, model = engine.tokenizer, engine.parts.thinker
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(8, 25, (CLIENTS,), generator=draw).tolist()
    prompts = [
        Prompt(torch.randint(10, tokenizer.vocab_size, (size,), generator=draw).tolist(), {})
        for size in sizes
    ]
    words, stops = (range(tokenizer.vocab_size),), tokenizer.special_tokens.stops
    shares = together(model, words)
    tell(f"rows share their steps on this machine: {'yes' if shares else 'NO, one by one'}")

    def lone(prompt: Any) -> tuple[list[int], float]:
        """An answer by the engine's parts, and when its first token came."""
        start, ids, first = time.perf_counter(), [], 0.0
        writer = Writer(tokenizer)
        x, _ = engine.read([prompt])
        for token in generate.stream(model, x, max_new=most, stop_ids=stops, legal=words):
            first = first or time.perf_counter() - start
            ids.append(token)
            writer.push(token)
        return ids, first

    work = Scheduler(engine, max_batch=CLIENTS)

    async def served(prompt: Any) -> tuple[list[int], float]:
        start, ids, first = time.perf_counter(), [], 0.0
        async for piece in work.answer(Ask(prompt, max_new=most)):
            first = first or time.perf_counter() - start
            ids += piece.token_ids
        return ids, first

    def one_by_one() -> tuple[list[list[int]], float, float]:
        start = time.perf_counter()
        said = [lone(each) for each in prompts]
        took = time.perf_counter() - start
        return [ids for ids, _ in said], took, statistics.median(first for _, first in said)

    async def one_client() -> tuple[list[list[int]], float, float]:
        start = time.perf_counter()
        said = [await served(each) for each in prompts]
        took = time.perf_counter() - start
        return [ids for ids, _ in said], took, statistics.median(first for _, first in said)

    async def at_once() -> tuple[list[list[int]], float, float]:
        start = time.perf_counter()
        said = await asyncio.gather(*(served(each) for each in prompts))
        took = time.perf_counter() - start
        return [ids for ids, _ in said], took, statistics.median(first for _, first in said)

    one_by_one()
    await at_once()  # both warm
    gains, lone_gains, firsts, equal = [], [], [], True
    for turn in range(turns):
        engine_ids, engine_s, engine_first = one_by_one()
        client_ids, client_s, client_first = await one_client()
        many_ids, many_s, _ = await at_once()
        tokens = sum(map(len, engine_ids))
        equal &= engine_ids == client_ids == many_ids
        gains.append(engine_s / many_s)
        lone_gains.append(engine_s / client_s)
        firsts.append(client_first / engine_first)
        tell(
            f"turn {turn + 1}: engine {tokens / engine_s:6.0f} tokens/s   1 client {tokens / client_s:6.0f}"
            f"   {CLIENTS} clients {tokens / many_s:6.0f}   x {gains[-1]:.2f}   first token x {firsts[-1]:.2f}"
        )
    await work.close()
    found = {
        "shares_steps": shares,
        "many_to_engine": statistics.median(gains),
        "one_client_to_engine": statistics.median(lone_gains),
        "first_token_to_engine": statistics.median(firsts),
        "equal": equal,
    }
    tell(f"{CLIENTS} clients at once: x {found['many_to_engine']:.2f} the engine one after the other (aim 4)")
    tell(f"one client: x {found['one_client_to_engine']:.2f} the engine's tokens/s")
    tell(f"first token of a lone request: x {found['first_token_to_engine']:.2f} the engine's (aim 1.2)")
    tell("answers are equal" if equal else "answers DIFFER")
    return found


if __name__ == "__main__":
    main()
