"""Every gate of the product in one table: what it asks, of which stage, with its bound, where the bound comes
from, and what red means.

A recipe may set a bound anew (`gates: {name: bound}`), add gates for facts of its own data (`extra_gates`),
or be waived one with a reason. docs/gates.md is written from here (`make gates`).
"""

from __future__ import annotations

from dataclasses import replace

from muomni.evaluate.gates import Gate
from muomni.media.modality import MODALITIES
from muomni.runtime import EMULATED_BELOW

# --- before the first step: on a few rows, in seconds (evaluate.soundness) ----------------------------------------------------------------

START = (
    Gate(
        "placement",
        "misplaced",
        "a network lies on another device than the run, or was made so that it can't train: pass it through inputs.place in `wire`",
        at_most=0.0,
        source="review 5.1, 5.2: on a GPU a stage would have died after its training",
    ),
    Gate(
        "terms",
        "lost_terms",
        "the objective announces terms that it does not give, or gives others: a part of the loss is lost",
        at_most=0.0,
        source="reference muomni B, lost sub-loss",
    ),
    Gate(
        "counts",
        "count_error",
        "targets, tokens, pictures or seconds are not what a hand counts in the rows: losses or speeds are wrong by it",
        at_most=0.0,
        source="found here: targets a second were told twice",
    ),
    Gate(
        "padding",
        "padding_error",
        "a row's loss depends on what it was batched with: padding is attended, or rows are mixed up",
        at_most=1e-4,
        source="SPEC M-B: 1e-5 in fp32; sums of many rows round",
    ),
    Gate(
        "accumulation",
        "accumulation_error",
        "two micro-batches do not give the gradient of one batch: a mean of means",
        at_most=1e-4,
        source="SPEC C4: 1e-6 in fp32; a whole gradient rounds",
    ),
    Gate(
        "gradient_reach",
        "lost_gradients",
        "a loss does not reach what it is there to teach: something is detached",
        at_most=0.0,
        source="SPEC G2",
    ),
    Gate(
        "all_learn",
        "still_parameters",
        "something that is to learn gets no gradient, or never moves: freeze it by `train:`, or mend the wiring",
        at_most=0.0,
        source="SPEC M-D: every codebook learns",
    ),
    Gate(
        "frozen_rests",
        "unfrozen",
        "a frozen part moves within a few updates, or is not in evaluation mode",
        at_most=0.0,
        source="SPEC C8",
    ),
    Gate(
        "overfits",
        "overfit_ratio",
        "six rows are not learned by heart in 24 updates: the objective can't be met, or the rate is far too low",
        at_most=0.9,
        source="measured: 0.001 to 0.65 over the six stages of the quickstart in 16 updates",
    ),
    Gate(
        "reloads",
        "reload_error",
        "a checkpoint does not give back the network that was saved",
        at_most=0.0,
        source="SPEC C7: bit for bit",
    ),
    Gate(
        "bases",
        "base_mismatch",
        "a stage that it is built on is not what its certificate speaks of: put its files back, or run it again",
        at_most=0.0,
        source="DESIGN 4: opening final/ checks it",
    ),
    Gate(
        "native_format",
        "format_gain",
        "it computes in a number format that this device only emulates, which the recipe did not ask for by name",
        at_least=EMULATED_BELOW,
        source="measured: emulated bf16 has 0.02 of float32's speed (AVX2), bf16 of the chip's own 1.2 and more",
    ),
)

CAUSAL = (
    Gate(
        "causality",
        "future_leak",
        "a target's loss depends on what comes at its place or later: it is copied, not predicted",
        at_most=1e-5,
        source="SPEC M-A",
    ),
    Gate(
        "shift",
        "past_seen",
        "a target does not depend on what stands right before it: labels are shifted twice",
        at_least=1.0,
        source="reference lumo C",
    ),
)

PACKING = (
    Gate(
        "packing",
        "packing_error",
        "a packed document's loss depends on its neighbours: masks or positions leak",
        at_most=1e-4,
        source="SPEC M-A",
        when="packs",
    ),
)

LABELS = (
    Gate(
        "supervision",
        "taught_right",
        "what is learned is not what the assistant says (or the document): prompts are supervised, or words lost",
        at_least=1.0,
        source="SPEC V3",
    ),
    Gate(
        "ends_taught",
        "ends_taught",
        "the symbol that ends an answer, a document or speech is not learned: generation will not stop",
        at_least=1.0,
        source="reference higgs B",
    ),
)

SPOKEN_CODES = Gate(
    "codes",
    "stale_codes",
    "the codes it learns from are not those of the codec it will speak through: they are stale",
    at_most=0.01,
    source="SPEC H2, DESIGN 5",
)

CODED = (  # rows of ids that a codec gave
    Gate(
        "codes",
        "stale_codes",
        "the ids of images or sounds are not what their codec gives now: another codec, or books in another order",
        at_most=0.01,
        source="SPEC H2, T4 check F",
    ),
    Gate(
        "shard_leaks",
        "shard_leaks",
        "a group stands on both sides of the shards: remove them, and look at `group` in the data",
        at_most=0.0,
        source="SPEC C13, T3",
    ),
)

COVERAGE = (  # of the whole training set, as it is taught (labels.whole)
    Gate(
        "truncation",
        "truncated_share",
        "answers are cut, or rows left out, because they do not fit: raise ctx_len, or shorten the template",
        at_most=0.01,
        source="SPEC V5",
    ),
    Gate(
        "zero_labels",
        "zero_label_rows",
        "rows teach nothing: remove them, or mend their answers",
        at_most=0.0,
        source="SPEC V5",
    ),
)

SIGHT = (
    Gate(
        "media_reach",
        "blind_media",
        "other pictures or sounds change nothing: media do not reach the loss",
        at_most=0.0,
        source="SPEC M-E",
    ),
)

# --- of the run itself------------------------------------------------

RUN = (
    Gate(
        "finite",
        "finite",
        "a loss or weight is not finite: lower lr, look at skipped.jsonl",
        at_least=1.0,
        source="SPEC C5",
    ),
    Gate(
        "updates",
        "skipped_share",
        "more than 1 % of the updates were skipped as unsafe: lower lr or raise warmup_steps",
        at_most=0.01,
        source="SPEC C5",
    ),
    Gate(
        "label_coverage",
        "label_coverage",
        "some rows teach nothing: all their labels are masked",
        at_least=0.99,
        source="SPEC V5",
    ),
    Gate("frozen", "frozen_moved", "a frozen part changed its weights", at_most=0.0, source="SPEC C8"),
    Gate(
        "rests",
        "rested_moved",
        "a part that was to rest at first changed before its `from_step`",
        at_most=0.0,
        source="SPEC C8, T6: the base is untouched until its phase begins",
        when="last_phase",
    ),
    Gate(
        "joins",
        "joined_still",
        "a part that was to learn from a later step on never changed: an earlier `from_step`, a longer run",
        at_most=0.0,
        source="issue 16: a declared second phase frees the base",
        when="last_phase",
    ),
    Gate(
        "leaks",
        "leaks",
        "training and held-out data share items: fix `group`",
        at_most=0.0,
        source="SPEC C13",
    ),
    Gate(
        "order",
        "order_error",
        "samples were drawn too often, or batches passed over or taken twice, as the run itself counted: a resume began at another place",
        at_most=0.0,
        source="SPEC C7: each sample once an epoch, batch after batch",
    ),
    Gate(
        "schedule",
        "rate_errors",
        "the rates that moved the weights are not those of the schedule: none at first, another peak or end, a rise after warm-up",
        at_most=0.0,
        source="SPEC C2, on the rates that the run noted",
    ),
    Gate(
        "average",
        "ema_error",
        "the weights that are handed on are not the moving average that `ema_decay` asks for",
        at_most=0.1,
        source="0 the average, 1 the raw weights, by probes that the run averaged by hand",
        when="ema_decay",
    ),
    Gate(
        "ranks",
        "rank_spread",
        "the ranks hold different weights: gradients are not synced",
        at_most=0.0,
        source="SPEC C14",
    ),
    Gate(
        "saved", "saved_error", "what lies in final/ is not what was measured", at_most=0.0, source="SPEC G2"
    ),
)

SOUND = (*START, *RUN)  # of every stage
STRUCTURE = frozenset(
    gate.name for gate in (*SOUND, *CAUSAL, *PACKING, *LABELS, *CODED, *COVERAGE, *SIGHT)
) | {
    "infeasible",
    "regression_texts",
}  # not of what was learned


def held_out_gap(most: float, unit: str) -> Gate:
    """The gate on how much harder held-out data are than training data."""
    return Gate(
        "held_out_gap",
        "held_out_gap",
        f"it learned its training data by heart ({unit}): more data, fewer epochs, dropout",
        at_most=most,
        source="measured",
    )


def ablation(kind: str) -> tuple[Gate, ...]:
    """The gates that prove that a modality is used: answers are likelier with the right medium than with
    another, with none, with noise."""
    row = MODALITIES[kind]
    probe = f"look at the swapped pairs, probe the {row.encoder}, train the projector longer"
    ignored = f"answers ignore the {row.noun}: {probe}"
    return (
        Gate(
            f"{kind}_swap_gap",
            f"{kind}_swap_gap_nats",
            ignored,
            at_least=0.1,
            source="SPEC M-E",
            modality=kind,
        ),
        Gate(
            f"{kind}_swap_share",
            f"{kind}_swap_gap_share",
            ignored,
            at_least=0.05,
            source="SPEC M-E: 5 % of the right nats",
            modality=kind,
        ),
        Gate(
            f"{kind}_swap_sure",
            f"{kind}_swap_gap_nats",
            ignored,
            more_than=0.0,
            source="SPEC M-E: paired bootstrap and sign test, 95 %",
            modality=kind,
            by_ci=True,
        ),
        Gate(
            f"{kind}_swap_wins",
            f"{kind}_swap_win_rate",
            ignored,
            at_least=0.8,
            source="SPEC M-E",
            modality=kind,
        ),
        Gate(
            f"{kind}_zero_sure",
            f"{kind}_zero_gap_nats",
            ignored,
            more_than=0.0,
            source="SPEC M-E: correct < zero, paired as the swap",
            modality=kind,
            by_ci=True,
        ),
        Gate(
            f"{kind}_noise_sure",
            f"{kind}_noise_gap_nats",
            ignored,
            more_than=0.0,
            source="SPEC M-E: correct < noise, paired as the swap",
            modality=kind,
            by_ci=True,
        ),
        Gate(
            f"{kind}_pairs",
            f"{kind}_swap_pairs",
            "too few held-out items to prove anything: raise eval_items or val_split",
            at_least=64,
            source="SPEC M-E",
            modality=kind,
        ),
    )


# --- at the end, by stage---------------------------------------------

NAMES = Gate(
    "names",
    "names_least",
    "answers do not name what is in the picture more surely than one constant answer would: look at golden/, train the connector longer",
    more_than=0.0,
    source="chance: the commonest class; the low end of 95 % (Clopper-Pearson)",
    when="has_names",
)


MEASURABLE = Gate(
    "regression_texts",
    "regression_texts",
    "nothing to measure forgetting by: name held-out texts of the kind that the language model was trained on "
    "(`regression_texts`; stage omni: texts among its data)",
    at_least=1.0,
    source="SPEC V5: forgetting is never left unmeasured",
)


# Of a stage that may leave its language model as it is: gate `frozen` sees to that, to the last bit.
MEASURABLE_IF_TAUGHT = replace(MEASURABLE, when="teaches_language")


def language(most: float) -> Gate:
    """The gate on how much worse a language model may have become at texts that it was not taught here."""
    return Gate(
        "language",
        "forgetting_bits_per_byte",
        "the language model lost some of its language: fewer steps, lower LoRA rate, or text among the data",
        at_most=most,
        source="SPEC V5; SPEC 7",
        when="teaches_language",
    )
