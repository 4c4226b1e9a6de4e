"""Tasks over tokens: each term is a hand count of its own rows, whatever they are batched with, and late
tasks join by a ramp."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F

from muomni.data.token_rows import TokenItem
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.rows import TokenModel
from muomni.nn.head import IGNORE
from muomni.tokens import sequences
from muomni.tokens.space import TokenSpace
from muomni.train.objectives.tokens import TokenBatch, TokenTasks, choices, collate
from spaces import codes, small

SPACE = small()
WORDS = (range(4, 300),)
WEIGHTS = {"i2t": 1.0, "a2t": 0.5, "t2i": 2.0, "t2a": 0.25, "text": 0.5}


def model(seed: int = 0, space: TokenSpace = SPACE) -> TokenModel:
    torch.manual_seed(seed)
    config = DecoderConfig(
        vocab_size=space.text_size, width=16, layers=1, heads=2, ffn_width=32, ctx_len=128, dropout=0.0
    )
    made = TokenModel(Decoder(config), space)
    made.start(torch.Generator().manual_seed(seed), spread=1.0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)  # far from uniform, so that a wrong target shows
    return made


def item(task: str, seed: int, frames: int = 3) -> TokenItem:
    words = torch.randint(4, 300, (seed % 5 + 1,), generator=torch.Generator().manual_seed(seed))
    if task == "text":
        return TokenItem(f"text-{seed}", task, words.repeat(3), words.repeat(3))
    kind = sequences.TASKS[task].medium
    row = sequences.build(SPACE, task, words, SPACE.ids_of(kind, codes(SPACE, kind, frames, seed)))
    return TokenItem(f"{task}-{seed}", task, row.ids, row.labels)


def items(count: int = 10) -> list[TokenItem]:
    return [item(list(WEIGHTS)[n % 5], n, frames=n % 4 + 1) for n in range(count)]


def batch(rows: Sequence[TokenItem]) -> TokenBatch:
    return collate(rows, SPACE.pad)


def by_hand(made: TokenModel, rows: Sequence[TokenItem], task: str, legal: bool = False) -> tuple[float, int]:
    """Nats and number of the targets of a task, row by row, place by place."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            if row.task != task:
                continue
            scores_TV = made.head.logits(made.hidden(made.embed(row.ids[None])))[0].float()
            for t in range(1, len(row.ids)):
                label = int(row.labels[t])
                if label == IGNORE:
                    continue
                count += 1
                ids = legal_ids(label, row, t) if legal else list(range(SPACE.size))
                total += float(F.cross_entropy(scores_TV[t - 1][ids], torch.tensor(ids.index(label))))
    return total, count


def legal_ids(label: int, row: TokenItem, t: int) -> list[int]:
    """What may stand at a target of a row, thought out again: a word or the end, the code of the book whose
    turn it is, or no choice."""
    first = int((row.labels != IGNORE).nonzero()[0])
    end = len(row.ids) - 1
    if t == first:
        return [label]
    if row.task in ("i2t", "a2t", "text"):
        return [*WORDS[0], SPACE.special("text_end")]
    if row.task == "t2i":
        return [label] if t == end else list(SPACE.region("image").ids)
    book = (t - first - 1) % 3
    codes_of = list(SPACE.region(f"audio_{book}").ids)
    return sorted([*codes_of, SPACE.special("aud_end")]) if book == 0 else codes_of


def test_each_term_is_a_hand_count_of_its_task() -> None:
    made, rows = model(), items()
    objective = TokenTasks(made, WEIGHTS).eval()
    terms = objective(batch(rows))
    counts = objective.counts(batch(rows))
    for task, weight in WEIGHTS.items():
        total, count = by_hand(made, rows, task)
        assert counts[task] == terms[task].count == count > 0
        assert float(terms[task].total.detach()) == pytest.approx(total, rel=1e-5)
        assert terms[task].weight == weight
    assert counts["misses"] == sum(counts[task] for task in WEIGHTS)
    assert terms["misses"].weight == 0.0


def test_padding_and_neighbours_change_no_row() -> None:
    made, rows = model(), items()
    objective = TokenTasks(made, WEIGHTS).eval()
    together = objective(batch(rows))
    alone: dict[str, float] = {}
    for row in rows:
        for name, term in objective(batch([row])).items():
            alone[name] = alone.get(name, 0.0) + float(term.total.detach())
    assert {name: float(term.total.detach()) for name, term in together.items()} == pytest.approx(
        alone, rel=1e-5
    )
    wide = batch(rows)
    wide.ids_BT = F.pad(wide.ids_BT, (0, 7), value=5)
    wide.labels_BT = F.pad(wide.labels_BT, (0, 7), value=IGNORE)
    wide.keep_BT = F.pad(wide.keep_BT, (0, 7), value=False)
    for name, term in objective(wide).items():
        torch.testing.assert_close(term.total, together[name].total, rtol=1e-5, atol=1e-5)


def test_two_halves_have_the_gradient_of_the_whole() -> None:
    rows = items()
    whole, parts = (TokenTasks(model(), WEIGHTS) for _ in range(2))
    counts = whole.counts(batch(rows))

    def back(objective: TokenTasks, some: Sequence[TokenItem]) -> None:
        terms = objective(batch(some))
        sum((t.total * t.weight / counts[name] for name, t in terms.items()), torch.zeros(())).backward()

    back(whole, rows)
    back(parts, rows[:3])
    back(parts, rows[3:])
    for (name, a), b in zip(whole.named_parameters(), parts.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert whole.model.new_head.grad is not None


def test_a_loss_of_legal_ids_is_the_softmax_over_them_and_what_has_no_choice_is_free() -> None:
    made, rows = model(), items(20)
    objective = TokenTasks(made, WEIGHTS, legal=choices(SPACE, WORDS)).eval()
    terms = objective(batch(rows))
    for task in ("i2t", "a2t", "t2i", "t2a"):
        total, count = by_hand(made, rows, task, legal=True)
        assert terms[task].count == count
        assert float(terms[task].total.detach()) == pytest.approx(total, rel=1e-5)
        assert float(terms[task].total.detach()) < by_hand(made, rows, task)[0]
    start_and_end = [row for row in rows if row.task == "t2i"]
    for row in start_and_end:
        row.labels[len(row.ids) - 7 : -1] = IGNORE  # what is left are two targets without a choice
        alone = objective(batch([row]))
        assert alone["t2i"].count == 2
        assert float(alone["t2i"].total.detach()) == 0.0
        assert float(alone["misses"].total) == 0.0


def test_a_late_task_joins_by_its_ramp_and_a_resumed_run_knows_where_it_was() -> None:
    objective, rows = TokenTasks(model(), WEIGHTS, ramp={"t2i": 4}), batch(items())
    objective.train()
    seen = []
    for step in range(6):
        seen.append(objective(rows)["t2i"].weight / WEIGHTS["t2i"])
        assert objective(rows)["i2t"].weight == WEIGHTS["i2t"]
        objective.after_step(step + 1)
        again = TokenTasks(model(1), WEIGHTS, ramp={"t2i": 4}).train()
        again.load_state_dict(objective.state_dict())
        assert again(rows)["t2i"].weight == objective(rows)["t2i"].weight
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert TokenTasks(model(), WEIGHTS, ramp={"t2i": 4}).eval()(rows)["t2i"].weight == WEIGHTS["t2i"], (
        "measured, it counts in full"
    )
    settled = TokenTasks(model(), WEIGHTS, ramp={"t2i": 4})
    settled.warm_start(rows)
    assert settled.train()(rows)["t2i"].weight == WEIGHTS["t2i"]


def test_a_loss_before_the_ramp_does_not_move_what_only_late_tasks_teach() -> None:
    objective = TokenTasks(model(), {"t2i": 1.0}, ramp={"t2i": 4}).train()
    term = objective(batch([item("t2i", 1)]))["t2i"]
    (term.total * term.weight).backward()
    assert float(objective.model.new_head.grad.abs().max()) == 0.0
