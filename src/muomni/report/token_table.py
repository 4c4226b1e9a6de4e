"""Token sequences as tables: one column a position, one row a property; and the attention mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.report import charts
from muomni.report.html import Html, h, number
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.special_tokens import OWN, PAD, SpecialTokens

LINE_CHARACTERS = 118  # of a line of lanes, with a space after each position
MASK_EDGE = 320  # positions of a drawn mask; longer rows show their beginning
FULL_NATS = 6.0  # drawn as the deepest colour


@dataclass(frozen=True)
class Cell:
    """One property of one position."""

    text: str
    look: str = ""
    share: float | None = None  # of the deepest colour
    tip: str = ""


@dataclass(frozen=True)
class Cost:
    """Loss of one token under a checkpoint: nats, its rank among all, and the likeliest three."""

    nats: float
    rank: int
    best: list[tuple[str, float]]

    def cell(self, piece: str) -> Cell:
        """As a lane shows it."""
        guesses = "\n".join(f"  {share:.1%}  {guess!r}" for guess, share in self.best)
        tip = f"{piece!r}: {number(self.nats, 3)} nats, number {self.rank}\nlikeliest\n{guesses}"
        return Cell(f"{self.nats:.1f}", "heat-cell", min(1.0, self.nats / FULL_NATS), tip)


def table(lanes: Sequence[tuple[str, Sequence[Cell]]]) -> Html:
    """Lanes of equal length, broken into pieces of about LINE_CHARACTERS below each other."""
    lines_html = []
    for first, stop in _lines(
        [max(2, *(len(cells[t].text) for _, cells in lanes)) for t in range(len(lanes[0][1]))]
    ):
        rows = [
            h("tr", h("th", name, scope="row"), [_td(cell) for cell in cells[first:stop]])
            for name, cells in lanes
        ]
        lines_html.append(h("table", rows))
    return h("div", lines_html, cls="lanes")


def _lines(widths: Sequence[int]) -> list[tuple[int, int]]:
    """[first, stop) of the positions of each line."""
    lines, room = [(0, 0)], LINE_CHARACTERS
    for at, width in enumerate(widths):
        if width + 1 > room:
            lines.append((at, at))
            room = LINE_CHARACTERS
        lines[-1] = (lines[-1][0], at + 1)
        room -= width + 1
    return lines


def _td(cell: Cell) -> Html:
    style = f"--share:{cell.share:.3f}" if cell.share is not None else None
    return h("td", cell.text, cls=cell.look or None, style=style, data_tip=cell.tip or None)


def piece(tokenizer: Tokenizer, index: int) -> str:
    """A token as text: specials by name, spaces visible; an id without a token (Qwen3 has spare rows) by
    number."""
    if index >= tokenizer.vocab_size:
        return f"#{index}"
    if not tokenizer.special_tokens.is_word(index):
        return tokenizer.token(index).strip("<|>")
    return tokenizer.decode([index]).replace(" ", "·").replace("\n", "⏎") or tokenizer.token(index)


def roles(ids: Sequence[int], starts: Sequence[int] = (), special_tokens: SpecialTokens = OWN) -> list[str]:
    """Owner of each position: system, user, assistant, a modality, mark, pad or text.

    Takes   starts: where questions begin that stand apart, each after the same shared beginning: who spoke at
            its end goes on there.
    """
    media = {
        i: kind
        for kind, medium in special_tokens.media.items()
        for i in (medium.start, medium.pad, medium.end)
    }
    out: list[str] = []
    speaker, opened, header_end = "text", "text", 0
    for at, index in enumerate(ids):
        if at in starts:
            speaker = opened = opened if at > starts[0] else speaker
        named = next(
            (
                role
                for role, header in special_tokens.headers.items()
                if tuple(ids[at : at + len(header)]) == header
            ),
            None,
        )
        if named is not None:
            speaker, header_end = named, at + len(special_tokens.headers[named])
        if at < header_end:
            out.append(speaker)
        elif index in media:
            out.append(media[index])
        elif index == PAD and not special_tokens.is_word(PAD):
            out.append("pad")
        elif index in (special_tokens.bos, special_tokens.eos):
            speaker = "text"
            out.append("mark")
        else:
            out.append(speaker)
            speaker = "text" if index == special_tokens.end else speaker
    return out


def runs(ids: Sequence[int], special_tokens: SpecialTokens = OWN) -> list[tuple[int, int]]:
    """[start, stop) of each column: a run of equal pads is one column, any other token its own."""
    pads = (*special_tokens.pads, *(() if special_tokens.is_word(PAD) else (PAD,)))
    out: list[tuple[int, int]] = []
    for at, index in enumerate(ids):
        if out and index in pads and ids[out[-1][0]] == index:
            out[-1] = (out[-1][0], at + 1)
        else:
            out.append((at, at + 1))
    return out


def key(names: Sequence[str]) -> Html:
    """What the colours of roles mean."""
    return h("div", [h("span", name, cls=f"role-{name}") for name in dict.fromkeys(names)], cls="key")


def mask(allowed_TT: Tensor, names: Sequence[str]) -> Html:
    """The attention mask: queries (rows), keys (columns)."""
    edge = min(MASK_EDGE, allowed_TT.shape[0])
    values = [[int(each) for each in row] for row in allowed_TT[:edge, :edge].tolist()]
    labels = [f"{at} {name}" for at, name in enumerate(names[:edge])]
    short = f" (the first {edge} of {allowed_TT.shape[0]})" if edge < allowed_TT.shape[0] else ""
    share = float(allowed_TT.float().mean())
    caption = f"a row looks at what is coloured{short}; {share:.0%} of all pairs"
    return h(
        "div",
        charts.matrix(values, labels, labels, caption, tall=max(1, 400 // edge), most=400),
        cls="mask-box",
    )


def costs(logits_TV: Tensor, targets_T: Tensor, tokenizer: Tokenizer | None) -> list[Cost]:
    """The loss of each target under its logits; without a tokenizer the likeliest tokens are shown as ids."""
    log_TV = logits_TV.float().log_softmax(-1)
    own_T = log_TV.gather(1, targets_T[:, None])[:, 0]
    ranks_T = 1 + (log_TV > own_T[:, None]).sum(1)
    best = log_TV.topk(min(3, log_TV.shape[1]))
    out = []
    for row in range(len(targets_T)):
        likely = [(int(i), float(v.exp())) for i, v in zip(best.indices[row], best.values[row])]
        named = [(piece(tokenizer, index) if tokenizer else str(index), share) for index, share in likely]
        out.append(Cost(-float(own_T[row]), int(ranks_T[row]), named))
    return out


def average(nats: Sequence[float]) -> str:
    """The number of targets and their mean loss, in words."""
    return (
        f"{len(nats)} learned, {number(float(torch.tensor(nats).mean()), 4)} nats on average"
        if nats
        else "nothing is learned"
    )
