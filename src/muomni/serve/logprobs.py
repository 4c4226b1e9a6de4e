"""Log-probabilities of tokens as the API has them: a token's spelling, its bytes, the likeliest ones in its
place."""

from __future__ import annotations

from functools import cache

from muomni.serve.schemas.chat import TokenLogprob, TopLogprob
from muomni.serve.work import TokenLogprob as Scored
from muomni.tokens.bpe import Tokenizer


def of(tokenizer: Tokenizer, scored: Scored) -> TokenLogprob:
    """One token of an answer."""
    spelled, content = _spelled(tokenizer, scored.token)
    top = []
    for token, logprob in scored.top:
        text, of_it = _spelled(tokenizer, token)
        top.append(TopLogprob(token=text, bytes=of_it, logprob=logprob))
    return TokenLogprob(token=spelled, bytes=content, logprob=scored.logprob, top_logprobs=top)


def _spelled(tokenizer: Tokenizer, token: int) -> tuple[str, list[int] | None]:
    """A token's text, and its bytes; None for a mark, which stands for no text."""
    stored = tokenizer.token(token)
    if token in (*tokenizer.special_tokens.stops, *tokenizer.special_tokens.pads):
        return stored, None
    table = _bytes_by_character()
    if all(character in table for character in stored):
        content = bytes(table[character] for character in stored)
    else:
        content = stored.encode()
    return content.decode("utf-8", "replace"), list(content)


@cache
def _bytes_by_character() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary.

    Source  GPT-2: printable bytes stand for themselves, the others for characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
