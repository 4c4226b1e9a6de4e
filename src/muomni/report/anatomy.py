"""Show a batch of one item in full: one function for each kind of batch, which a stage names (`Stage.anatomy`).

Each takes the stage's objective (with a checkpoint's weights in place if `is_trained`) and gives titled
blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.data.batch import SequenceBatch
from muomni.media import griffin_lim
from muomni.media.modality import MODALITIES
from muomni.models.codec import Codec
from muomni.nn import masks
from muomni.report import charts, media, token_table
from muomni.report.html import Html, h, join, number
from muomni.report.token_table import Cell
from muomni.tokens.alphabet import BLANK, Alphabet
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE
from muomni.train.objectives.codec import CodecBatch, CodecObjective
from muomni.train.objectives.contrast import Contrast, VisionBatch
from muomni.train.objectives.ctc import Hearing, HearingBatch
from muomni.train.objectives.image_codec import ImageCodecBatch, ImageCodecObjective
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.symbols import before, targets
from muomni.train.objectives.talker import TalkerObjective
from muomni.train.objectives.tokens import TokenBatch, TokenTasks
from muomni.train.objectives.voice import VoiceObjective

Blocks = list[tuple[str, Html]]
SHOWN = 200  # characters of a value that is no tensor


@dataclass(frozen=True)
class Subject:
    """What is shown: the batch of one item, and the networks that would train on it (None for a manifest)."""

    batch: Any
    objective: Any
    tokenizer: Tokenizer | None
    is_trained: bool


def fields(subject: Subject) -> Blocks:
    """Of any batch, what it holds, and in which shapes."""
    rows = [h("tr", h("td", name), h("td", _brief(value))) for name, value in vars(subject.batch).items()]
    return [("What the batch holds", h("table", rows))]


def _brief(value: Any) -> str:
    """A tensor by its type and shape; anything else as it prints, cut short."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
    return repr(value)[:SHOWN]


def mel(mel_FM: Tensor, caption: str) -> Html:
    """A log-mel as a picture, low frequencies below."""
    image = h("img", src=media.heat(mel_FM.T.flip(0).float().tolist(), ink=True), alt=caption, cls="mel")
    return h("figure", h("figcaption", caption), image, cls="attention")


@torch.no_grad()
def language(subject: Subject) -> Blocks:
    """A row of text, with media in their places."""
    batch, objective, tokenizer = subject.batch, subject.objective, subject.tokenizer
    assert isinstance(batch, SequenceBatch)
    assert tokenizer is not None
    ids = batch.ids_BT[0].tolist()
    labels = [IGNORE, *targets(batch)[0].tolist()]
    documents = batch.documents_BT[0].tolist() if batch.documents_BT is not None else [0] * len(ids)
    places = masks.positions(len(ids), keep_BT=batch.keep_BT, documents_BT=batch.documents_BT)
    at = (places if places.dim() == 1 else places[0]).tolist()
    costs: dict[int, token_table.Cost] = {}
    learned = [t for t, label in enumerate(labels) if label != IGNORE]
    if subject.is_trained and isinstance(objective, NextToken) and learned:
        trunk = objective.trunk
        x_BTD = (
            trunk.embed(batch.ids_BT)
            if objective.omni is None
            else objective.omni.embed(batch.ids_BT, batch.media)
        )
        h_BTD = trunk.hidden(x_BTD, keep_BT=batch.keep_BT, documents_BT=batch.documents_BT)
        rows = torch.tensor(learned)
        costs = dict(
            zip(
                learned,
                token_table.costs(trunk.logits(h_BTD[0, rows - 1]), batch.labels_BT[0, rows], tokenizer),
            )
        )
    apart = [t for t in range(1, len(ids)) if masks.SHARED in documents and documents[t] != documents[t - 1]]
    pieces, marks = [token_table.piece(tokenizer, each) for each in ids], tokenizer.special_tokens
    owners, shown = token_table.roles(ids, apart, marks), token_table.runs(ids, marks)
    first = [start for start, _ in shown]

    def lane(text: Any, look: Any = lambda t: "") -> list[Cell]:
        return [Cell(str(text(t)), str(look(t))) for t in first]

    spans = [f"{a}–{b - 1}" if b - a > 1 else str(a) for a, b in shown]
    rows_of_lanes: list[tuple[str, list[Cell]]] = [
        ("place", [Cell(text, "masked") for text in spans]),
        (
            "piece",
            [
                Cell(
                    pieces[a] + (f" ×{b - a}" if b - a > 1 else ""), f"piece role-{owners[a]}", tip=owners[a]
                )
                for a, b in shown
            ],
        ),
        ("id", lane(lambda t: ids[t], lambda t: "masked")),
        ("position", lane(lambda t: at[t])),
        ("document", lane(lambda t: {masks.SHARED: "shared", -1: "·"}.get(documents[t], documents[t]))),
        (
            "learned",
            lane(
                lambda t: "✓" if labels[t] != IGNORE else "·",
                lambda t: "learned" if labels[t] != IGNORE else "masked",
            ),
        ),
    ]
    if costs:
        rows_of_lanes.append(("nats", [costs[t].cell(pieces[t]) if t in costs else Cell("") for t in first]))
    allowed = masks.build(len(ids), keep_BT=batch.keep_BT, documents_BT=batch.documents_BT, causal=True)
    seen_TT = torch.ones(len(ids), len(ids)).tril().bool() if allowed is None else allowed[0, 0]
    note = h(
        "p",
        token_table.average([cost.nats for cost in costs.values()])
        if costs
        else f"{len(learned)} of {len(ids)} are learned",
        cls="quiet",
    )
    out: Blocks = [
        (
            "Ids, roles, labels",
            join(token_table.key([owners[t] for t in first]), token_table.table(rows_of_lanes), note),
        )
    ]
    out.append(("Who looks at whom", token_table.mask(seen_TT, pieces)))
    for kind, stack in batch.media.items():
        row = MODALITIES[kind]
        for number_, values in enumerate(stack.values_N):
            whole = values if stack.lengths_N is None else values[: int(stack.lengths_N[number_])]
            title = f"{row.noun.capitalize()} {number_} as the {row.encoder} read it"
            out.append((title, AS_READ[kind](whole)))
    return out


def _pixels(pixels_3HW: Tensor, size: int = 224) -> Html:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels_3HW.permute(1, 2, 0).numpy()).save(stream, "PNG", optimize=True)
    return h("img", src=media.uri(stream.getvalue(), "image/png"), width=size, height=size, alt="picture")


AS_READ: dict[str, Callable[[Tensor], Html]] = {  # a medium as its encoder reads it, by modality
    "image": _pixels,
    "audio": lambda mel_FM: mel(mel_FM, f"{len(mel_FM)} frames"),
}


def hearing(subject: Subject) -> Blocks:
    """A sound and the symbols that are heard in it."""
    batch, objective = subject.batch, subject.objective
    assert isinstance(batch, HearingBatch)
    frames, alphabet = int(batch.frames_B[0]), Alphabet()
    symbols = batch.labels_BU[0, : int(batch.symbols_B[0])].tolist()
    letters = [alphabet.decode([each]).replace(" ", "␣") for each in symbols]
    out: Blocks = [("As the ears read it", mel(batch.mel_BFM[0, :frames], f"log-mel, {frames} frames"))]
    rows: list[tuple[str, list[Cell]]] = [
        ("place", [Cell(str(i), "masked") for i in range(len(symbols))]),
        ("symbol", [Cell(letter, "piece role-assistant") for letter in letters]),
        ("id", [Cell(str(each), "masked") for each in symbols]),
    ]
    note = f"{len(symbols)} symbols"
    if isinstance(objective, Hearing):
        states = int(objective.encoder.lengths(batch.frames_B)[0])
        note += f" against {states} states: a symbol each {states / max(1, len(symbols)):.1f} states"
    if not (subject.is_trained and isinstance(objective, Hearing)):
        return [*out, ("What is to be written", join(token_table.table(rows), h("p", note, cls="quiet")))]
    with torch.no_grad():
        heard = objective.encoder(batch.mel_BFM, batch.frames_B)
        log_TC = objective.encoder.symbols(heard.states_BTD)[0]
    log_TC.requires_grad_(True)
    nats = F.ctc_loss(
        log_TC[:, None], batch.labels_BU, heard.lengths_B, batch.symbols_B, blank=BLANK, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(nats, log_TC)
    # torch's gradient is exp(log p) - occupancy: how likely each state writes each symbol, given the text.
    occupied_TC = (log_TC.exp() - gradient).detach().clamp(min=0)
    log_TC = log_TC.detach()
    kinds = [BLANK, *dict.fromkeys(symbols)]
    names = ["blank", *(alphabet.decode([each]).replace(" ", "␣") for each in kinds[1:])]
    mean = {
        c: float((occupied_TC[:, c] * -log_TC[:, c]).sum() / occupied_TC[:, c].sum().clamp(min=1e-6))
        for c in kinds
    }
    cells = [
        Cell(
            f"{mean[c]:.1f}",
            "heat-cell",
            min(1.0, mean[c] / token_table.FULL_NATS),
            f"{mean[c]:.3f} nats where heard",
        )
        for c in symbols
    ]
    rows.append(("nats", cells))
    path = [alphabet.decode([c]) or "·" for c in log_TC.argmax(1).tolist()]
    note += f"; {number(float(nats.detach()))} nats in all, {number(float(nats.detach()) / max(1, len(symbols)), 3)} a symbol"
    columns = [f"state {t}, likeliest {letter!r}" for t, letter in enumerate(path)]
    drawn = charts.matrix(
        [occupied_TC[:, c].tolist() for c in kinds],
        names,
        columns,
        "symbols (rows) against states: where each is heard, the text given",
        tall=12,
    )
    greedy = h("p", "likeliest symbol of each state: ", h("code", "".join(path)))
    return [
        *out,
        ("What is to be written", join(token_table.table(rows), h("p", note, cls="quiet"))),
        ("Where it is heard", join(drawn, greedy)),
    ]


@torch.no_grad()
def vision(subject: Subject) -> Blocks:
    """A picture with its true and false captions."""
    batch, objective, tokenizer = subject.batch, subject.objective, subject.tokenizer
    assert isinstance(batch, VisionBatch)
    assert tokenizer is not None
    captions = [("true", batch.caption_ids_BT[0][batch.caption_keep_BT[0]].tolist())]
    if batch.negatives_BNT is not None and batch.negatives_keep_BNT is not None:
        pairs = zip(batch.negatives_BNT[0], batch.negatives_keep_BNT[0])
        captions += [("false", ids[keep].tolist()) for ids, keep in pairs if bool(keep.any())]
    out: Blocks = [("As the eyes read it", _pixels(batch.pixels_BHW3[0].permute(2, 0, 1)))]
    scores: list[float] = []
    if subject.is_trained and isinstance(objective, Contrast):
        seen = objective.vision(batch.pixels_BHW3.permute(0, 3, 1, 2))
        unit = objective.vision.unit(objective.vision.pooled(seen))[0]
        for _, ids in captions:
            vector = objective.texts(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0]
            scores.append(float(unit @ vector.float()))
    tables = []
    for place, (side, ids) in enumerate(captions):
        rows = [
            (
                side,
                [
                    Cell(
                        token_table.piece(tokenizer, each),
                        f"piece role-{'assistant' if side == 'true' else 'image'}",
                    )
                    for each in ids
                ],
            ),
            ("id", [Cell(str(each), "masked") for each in ids]),
        ]
        won = f"similarity {number(scores[place], 3)}" if scores else ""
        won += "; it beats the true one" if scores and place and scores[place] >= scores[0] else ""
        tables.append(join(token_table.table(rows), h("p", won, cls="quiet") if won else None))
    return [*out, ("Captions, true and false", join(tables))]


@torch.no_grad()
def codec(subject: Subject) -> Blocks:
    """A sound, its codes, and what they give back."""
    batch, objective = subject.batch, subject.objective
    assert isinstance(batch, CodecBatch)
    frames = int(batch.frames_B[0])
    out: Blocks = [("What is to be rebuilt", mel(batch.mel_BFM[0, :frames], f"log-mel, {frames} frames"))]
    if not (subject.is_trained and isinstance(objective, CodecObjective)):
        return out
    codec: Codec = objective.codec
    codes = codec.encode(batch.mel_BFM, batch.frames_B)
    rebuilt = codec.decode(codes)[0, :frames]
    error_FM = (codec.normalise(rebuilt) - codec.normalise(batch.mel_BFM[0, :frames])).square()
    stride = codec.config.stride_frames
    per_code = [float(part.mean()) for part in torch.split(error_FM, stride)]
    rows = [("frame", [Cell(str(i), "masked") for i in range(codes.shape[-1])])]
    rows += [
        (f"book {k}", [Cell(str(code), "role-audio") for code in book])
        for k, book in enumerate(codes[0].tolist())
    ]
    rows.append(
        (
            "error",
            [
                Cell(
                    f"{e:.2f}",
                    "heat-cell",
                    min(1.0, e / 0.5),
                    f"mean square {e:.4f}, in units of the mel's spread",
                )
                for e in per_code
            ],
        )
    )
    terms = {name: float(term.total) / max(1, term.count) for name, term in objective(batch).items()}
    note = ", ".join(f"{name} {number(value, 3)}" for name, value in terms.items())
    spec = codec.config.mel
    sounds = [
        media.player(griffin_lim.sound(each, spec), spec.rate_hz, name)
        for each, name in ((batch.mel_BFM[0, :frames], "mel"), (rebuilt, "rebuilt"))
    ]
    out.append(
        ("Rebuilt from the codes", join(mel(rebuilt, "log-mel, rebuilt"), h("div", sounds, cls="line")))
    )
    return [
        *out,
        (
            f"{codec.codebooks} books of codes, a column each {stride} mel frames",
            join(token_table.table(rows), h("p", note, cls="quiet")),
        ),
    ]


@torch.no_grad()
def image_codec(subject: Subject) -> Blocks:
    """A picture, its codes, and what they give back."""
    batch, objective = subject.batch, subject.objective
    assert isinstance(batch, ImageCodecBatch)
    out: Blocks = [("What is to be rebuilt", _pixels(batch.pixels_BHW3[0].permute(2, 0, 1)))]
    if not (subject.is_trained and isinstance(objective, ImageCodecObjective)):
        return out
    codec = objective.codec
    codes = codec.encode(batch.image_B3HW)
    rebuilt_3HW = (255 * codec.decode(codes)[0]).round().byte()
    grid = codes[0, 0].view(codec.grid).tolist()
    rows = [
        (f"row {number}", [Cell(str(code), "role-image") for code in row]) for number, row in enumerate(grid)
    ]
    terms = {name: float(term.total) / max(1, term.count) for name, term in objective(batch).items()}
    told = ", ".join(f"{name} {number(value, 3)}" for name, value in terms.items())
    return [
        *out,
        ("Rebuilt from the codes", _pixels(rebuilt_3HW)),
        (
            f"{codec.config.tokens} codes, one each {codec.config.patch_size} px",
            join(token_table.table(rows), h("p", told, cls="quiet")),
        ),
    ]


@torch.no_grad()
def talker(subject: Subject) -> Blocks:
    """A text and the grid of codes by which it is said."""
    batch, objective, tokenizer = subject.batch, subject.objective, subject.tokenizer
    assert isinstance(batch, SequenceBatch)
    assert batch.codes_BKS is not None
    assert isinstance(objective, TalkerObjective)
    talker = objective.talker
    ids = batch.ids_BT[0].tolist()
    letters = talker.config.text_units == "char"
    pieces = [
        Alphabet().decode([each]) if letters or tokenizer is None else token_table.piece(tokenizer, each)
        for each in ids
    ]
    times = talker.pace.positions(batch.ids_BT, batch.is_real_BT)[0].tolist()
    text_rows = [
        ("piece", [Cell(each, "piece role-user") for each in pieces]),
        ("id", [Cell(str(each), "masked") for each in ids]),
        (
            "at frame",
            [
                Cell(f"{each:.1f}", tip="the middle of the time in which it is likely spoken")
                for each in times
            ],
        ),
    ]
    grid_BKS = batch.codes_BKS
    steps = grid_BKS.shape[-1]
    named = {talker.config.end: "end", talker.config.pad: "·"}
    states = (
        talker(batch.ids_BT, batch.is_real_BT, before(grid_BKS), hidden_BTD=batch.hidden_BTD)
        if subject.is_trained
        else None
    )
    rows: list[tuple[str, list[Cell]]] = [("step", [Cell(str(step), "masked") for step in range(steps)])]
    nats: list[float] = []
    for book in range(talker.config.codebooks):
        codes = grid_BKS[0, book].tolist()
        said = [s for s, code in enumerate(codes) if code < talker.config.codebook_size + (book == 0)]
        rows.append(
            (
                f"book {book}",
                [
                    Cell(str(named.get(code, code)), "role-audio" if s in said else "masked")
                    for s, code in enumerate(codes)
                ],
            )
        )
        if states is not None and said:
            at = torch.tensor(said)
            costs = dict(
                zip(said, token_table.costs(talker.logits(states[0, at], book), grid_BKS[0, book, at], None))
            )
            nats += [cost.nats for cost in costs.values()]
            rows.append(
                (
                    f"nats {book}",
                    [costs[s].cell(str(codes[s])) if s in costs else Cell("") for s in range(steps)],
                )
            )
    length = len(ids) + steps
    prefix_B = torch.tensor([len(ids)])
    allowed = masks.build(length, causal=True, prefix_B=prefix_B)
    assert allowed is not None
    names = [*pieces, "start", *(f"frame {s}" for s in range(steps - 1))]
    note = (
        token_table.average(nats)
        if nats
        else f"{sum(cell.look == 'role-audio' for name, cells in rows for cell in cells)} codes are learned"
    )
    return [
        ("The text, and when it is likely said", token_table.table(text_rows)),
        (
            "The delayed grid: what each step has to say",
            join(token_table.table(rows), h("p", note, cls="quiet")),
        ),
        (
            "Who looks at whom: the text is seen by all, frames by later ones",
            token_table.mask(allowed[0, 0], names),
        ),
    ]


@torch.no_grad()
def tokens(subject: Subject) -> Blocks:
    """A row over text and media tokens; its ids are those of the model's token space."""
    batch, objective = subject.batch, subject.objective
    assert isinstance(batch, TokenBatch)
    assert isinstance(objective, TokenTasks)
    assert subject.tokenizer is not None
    space, ids_T = objective.model.space, batch.ids_BT[0]
    names = {token: name.strip("<>") for name, token in space.specials.items()}
    regions = [space.region_of(token) for token in ids_T.tolist()]
    owners = [
        {"text": "user", "special": "mark"}.get(region.name, region.name.partition("_")[0])
        for region in regions
    ]

    def piece(token: int, place: int) -> str:
        if token in names:
            return names[token]
        if regions[place].name != "text":
            return str(token - regions[place].start)
        tokenizer: Any = subject.tokenizer
        return token_table.piece(tokenizer, token)

    pieces = [piece(token, place) for place, token in enumerate(ids_T.tolist())]
    is_learned = (batch.labels_BT[0] != IGNORE).tolist()
    learned = [t for t in range(1, len(pieces)) if is_learned[t]]
    rows = [
        ("place", [Cell(str(t), "masked") for t in range(len(pieces))]),
        (
            "piece",
            [
                Cell(each, f"piece role-{owner}", tip=region.name)
                for each, owner, region in zip(pieces, owners, regions)
            ],
        ),
        ("id", [Cell(str(token), "masked") for token in ids_T.tolist()]),
        ("learned", [Cell("✓", "learned") if taught else Cell("·", "masked") for taught in is_learned]),
    ]
    told = f"{len(learned)} of {len(pieces)} are learned"
    if subject.is_trained and learned:
        h_TD = objective.states(batch)[0]
        places = torch.tensor(learned)
        costs = token_table.costs(objective.head.logits(h_TD[places - 1]), ids_T[places], None)
        found = dict(zip(learned, costs))
        rows.append(
            ("nats", [found[t].cell(pieces[t]) if t in found else Cell("") for t in range(len(pieces))])
        )
        told = token_table.average([cost.nats for cost in costs])
    task = h(
        "p",
        f"Task {batch.tasks[0]}: ",
        h("small", "codes are told by their number within their book"),
        cls="quiet",
    )
    return [
        (
            "Ids, regions, labels",
            join(task, token_table.key(owners), token_table.table(rows), h("p", told, cls="quiet")),
        )
    ]


@torch.no_grad()
def voice(subject: Subject) -> Blocks:
    """A conversation's words as one table and its codes as another: the labels of each book, and what each costs."""
    batch, objective = subject.batch, subject.objective
    assert isinstance(batch, SequenceBatch)
    assert isinstance(objective, VoiceObjective)
    assert batch.codes_BKS is not None
    assert batch.code_labels_BKS is not None
    model = objective.model
    places = model.is_audio(batch.ids_BT)[0].nonzero().flatten().tolist()
    named = {model.start: "start", model.end: "end"}
    states_TD = objective.states(batch)[0] if subject.is_trained else None
    rows: list[tuple[str, list[Cell]]] = [("place", [Cell(str(place), "masked") for place in places])]
    nats: list[float] = []
    for book in range(model.books):
        codes, labels = batch.codes_BKS[0, book].tolist(), batch.code_labels_BKS[0, book].tolist()
        learned = [place for place in places if place and labels[place] != IGNORE]
        looks = dict.fromkeys(learned, "role-audio learned")
        cells = [
            Cell(named.get(codes[place], str(codes[place])), looks.get(place, "masked")) for place in places
        ]
        rows.append((f"book {book}", cells))
        if states_TD is not None and learned:
            at = torch.tensor(learned)
            scores = model.head.logits(states_TD[at - 1], book + 1)
            costs = dict(zip(learned, token_table.costs(scores, batch.code_labels_BKS[0, book, at], None)))
            nats += [cost.nats for cost in costs.values()]
            rows.append(
                (
                    f"nats {book}",
                    [costs[t].cell(str(codes[t])) if t in costs else Cell("") for t in places],
                )
            )
    told = token_table.average(nats) if nats else "codes that are not learned are heard: references"
    return [
        *language(subject),
        ("Codes, labels", join(token_table.table(rows), h("p", told, cls="quiet"))),
    ]
