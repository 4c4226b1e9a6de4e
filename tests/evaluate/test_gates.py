"""Gates: what was not measured, or is no number, is red."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni import files
from muomni.errors import ConfigError, GateRed
from muomni.evaluate import certificate, gates, open_set_classes, question_only, thresholds
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.gates import Gate, judge
from muomni.execution import recipe as recipes
from muomni.stages import registry

LEAST = Gate("least", "a", "too little", at_least=0.5)
MOST = Gate("most", "a", "too much", at_most=0.5)
BELOW = Gate("below", "a", "no better than nothing", below_floor=0.8)
ABOVE = Gate("above", "a", "no better than chance", above_floor=0.1)


@pytest.mark.parametrize(
    ("gate", "fact", "verdict"),
    [
        (LEAST, Fact(0.5), "green"),
        (LEAST, Fact(0.4999), "red"),
        (MOST, Fact(0.5), "green"),
        (MOST, Fact(0.5001), "red"),
        (BELOW, Fact(0.79, floor=1.0), "green"),
        (BELOW, Fact(0.8, floor=1.0), "red"),
        (ABOVE, Fact(0.6, floor=0.5), "green"),
        (ABOVE, Fact(0.59, floor=0.5), "red"),
        (BELOW, Fact(0.0), "red"),  # nothing to compare with
        (ABOVE, Fact(9.0), "red"),
        (BELOW, Fact(0.0, floor=math.nan), "red"),
        (ABOVE, Fact(9.0, floor=math.nan), "red"),
        (BELOW, Fact(0.0, floor=math.inf), "red"),
        *[
            (gate, Fact(value, floor=0.5), "red")
            for gate in (LEAST, MOST, BELOW, ABOVE)
            for value in (math.nan, math.inf, -math.inf)
        ],
    ],
)
def test_bounds(gate: Gate, fact: Fact, verdict: str) -> None:
    (judged,) = judge([gate], {"a": fact})
    assert judged.verdict == verdict
    assert bool(judged.why) == (verdict == "red")


def test_a_missing_fact_is_red_and_named() -> None:
    for gate in (LEAST, MOST, BELOW, ABOVE):
        (judged,) = judge([gate], {"b": Fact(1.0)})
        assert judged.verdict == "red"
        assert judged.value is None
        assert judged.threshold == "a was not measured"


def test_bounds_may_be_set_anew() -> None:
    assert [
        judge([gate], {"a": Fact(0.55, floor=1.0)}, {gate.name: bound})[0].verdict
        for gate, bound in ((LEAST, 0.6), (LEAST, 0.5), (MOST, 0.6), (BELOW, 0.5), (ABOVE, -0.5))
    ] == ["red", "green", "green", "red", "green"]
    assert judge([LEAST], {"a": Fact(-1.0)}, {"least": 0.0})[0].verdict == "red", "zero is a bound too"


def test_a_bound_for_no_gate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lest.*they are least"):
        judge([LEAST], {}, {"lest": 1.0})
    with pytest.raises(ConfigError, match="none of this stage"):
        judge([LEAST], {}, {}, {"lest": "because"})


@pytest.mark.parametrize("reason", ["", "  ", "\n"])
def test_a_waiver_needs_a_reason(reason: str) -> None:
    with pytest.raises(ConfigError, match="needs a reason"):
        judge([LEAST], {"a": Fact(0.0)}, {}, {"least": reason})


def test_a_waiver_shows_and_hides_nothing() -> None:
    for fact in ({"a": Fact(0.0)}, {}):
        (judged,) = judge([LEAST], fact, {}, {"least": "small data"})
        assert judged.verdict == "waived"
        assert judged.why == "small data"
    assert judge([LEAST], {"a": Fact(1.0)}, {}, {"least": "small data"})[0].verdict == "green"


def test_the_worst_gate_decides() -> None:
    judged = {
        fact: judge([LEAST], {"a": Fact(fact)}, {}, waived)[0]
        for fact, waived in ((1.0, {}), (0.0, {}), (0.1, {"least": "x"}))
    }
    green, red, waived = judged[1.0], judged[0.0], judged[0.1]
    assert certificate.overall([green, green]) == "green"
    assert certificate.overall([green, waived]) == "waived"
    assert certificate.overall([waived, red, green]) == "red"
    assert certificate.overall([]) == "red", "nothing judged proves nothing"


SOUND_FACTS = [
    ("finite", 0.0),
    ("skipped_share", 0.02),
    ("label_coverage", 0.9),
    ("frozen_moved", 1.0),
    ("leaks", 1.0),
    ("padding_error", 0.01),
]


@pytest.mark.parametrize(("fact", "bad"), SOUND_FACTS)
def test_the_gates_of_every_stage(fact: str, bad: float) -> None:
    sound = {gate.fact: Fact(1.0 if gate.at_least else 0.0) for gate in thresholds.SOUND}
    assert {row.verdict for row in judge(thresholds.SOUND, sound)} == {"green"}
    broken = judge(thresholds.SOUND, {**sound, fact: Fact(bad)})
    assert [row.verdict for row in broken].count("red") == 1


@given(st.integers(0, 500), st.integers(0, 500))
def test_shares_lie_in_their_interval(hits: int, misses: int) -> None:
    fact = share(hits, hits + misses)
    if hits + misses == 0:
        assert math.isnan(fact.value)
        assert judge([LEAST], {"a": fact})[0].verdict == "red"
        return
    assert fact.ci is not None
    assert 0 <= fact.ci[0] <= fact.value + 1e-9
    assert fact.value - 1e-9 <= fact.ci[1] <= 1


def test_the_interval_is_wilsons() -> None:
    assert share(8, 10).ci == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert share(80, 100).ci == pytest.approx((0.7112, 0.8666), abs=1e-3)


@given(
    st.floats(),
    st.none() | st.integers(0, 9),
    st.none() | st.tuples(st.floats(-1, 0), st.floats(0, 1)),
    st.none() | st.floats(-1, 1),
)
def test_facts_come_back_from_json(
    value: float, n: int | None, ci: tuple[float, float] | None, floor: float | None
) -> None:
    text = json.dumps(Fact(value, n, ci, floor).to_json(), allow_nan=False)
    back = Fact.from_json(json.loads(text))
    assert (back.n, back.ci, back.floor) == (n, ci, floor)
    assert back.value == value if math.isfinite(value) else math.isnan(back.value)


def write(folder: Path, value: float, waived: dict[str, str] | None = None) -> None:
    facts = {"a": Fact(value, 10, (0.1, 0.9), 0.5), "nothing": Fact(math.nan)}
    judged = judge([LEAST], facts, {}, waived)
    files.write_text(folder / "final" / "config.json", "{}")
    certificate.write(folder, "ears", facts, judged, weights="w", data="d", settings="s")


def test_a_green_certificate_is_believed(tmp_path: Path) -> None:
    write(tmp_path / "ears", 0.9)
    found = certificate.demand(tmp_path / "ears", "mind")
    assert found["verdict"] == "green"
    assert (found["weights"], found["data"], found["settings"], found["stage"]) == ("w", "d", "s", "ears")
    assert found["facts"]["a"] == {"value": 0.9, "n": 10, "ci": [0.1, 0.9], "floor": 0.5}
    assert found["facts"]["nothing"]["value"] is None


def test_a_red_one_is_refused_with_value_bound_and_meaning(tmp_path: Path) -> None:
    write(tmp_path / "ears", 0.2)
    with pytest.raises(GateRed) as caught:
        certificate.demand(tmp_path / "ears", "mind")
    said = str(caught.value)
    for part in ("mind", "ears", "least", "0.2", ">= 0.5", "too little", "--waive least"):
        assert part in said
    assert caught.value.exit_code == 1


def test_a_waived_one_passes_and_shows(tmp_path: Path) -> None:
    write(tmp_path / "ears", 0.2, {"least": "a toy"})
    found = certificate.demand(tmp_path / "ears", "mind")
    assert found["verdict"] == "waived"
    assert found["gates"][0] == {
        "name": "least",
        "verdict": "waived",
        "value": 0.2,
        "threshold": ">= 0.5",
        "why": "a toy",
    }
    assert certificate.red(found) == []


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        '"green"',
        '{"verdict": "green"}',
        '{"stage": "ears", "verdict": "green", "facts": {}}',
        b"\xff\xfe",
    ],
)
def test_one_that_is_missing_or_spoiled_is_none(tmp_path: Path, content: str | bytes | None) -> None:
    folder = tmp_path / "ears"
    folder.mkdir()
    if content is not None:
        (folder / certificate.NAME).write_bytes(content.encode() if isinstance(content, str) else content)
    assert certificate.read(folder) is None
    with pytest.raises(GateRed, match="no certificate"):
        certificate.demand(folder, "mind")


def test_a_certificate_is_strict_json(tmp_path: Path) -> None:
    facts = {"a": Fact(math.nan, 3, (math.nan, math.inf), math.inf)}
    certificate.write(tmp_path, "ears", facts, judge([LEAST], facts), weights="w", data="d", settings="s")

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    json.loads((tmp_path / certificate.NAME).read_text(), parse_constant=refuse)


def test_a_recipe_may_demand_more() -> None:
    least, most = gates.demanded({"word_exact": ">= 0.9", "cer": "<=1e-1"})
    assert (least.fact, least.at_least, least.at_most) == ("word_exact", 0.9, None)
    assert (most.fact, most.at_least, most.at_most) == ("cer", None, 0.1)
    assert [row.verdict for row in judge([least, most], {"word_exact": Fact(0.9), "cer": Fact(0.2)})] == [
        "green",
        "red",
    ]
    assert {row.verdict for row in judge([least, most], {})} == {"red"}, (
        "a demand for what was not measured is not met"
    )


@pytest.mark.parametrize(
    "text",
    [
        "0.9",
        "> 0.9",
        ">= ",
        ">= much",
        ">= 1e",
        ">= 1.2.3",
        ">= -",
        "<= +-1",
        ">= 0.9 or so",
        "",
        ">= nan",
        ">= 1e999",
    ],
)
def test_a_demand_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"extra_gates\.cer"):
        gates.demanded({"cer": text})


def test_a_tie_with_knowing_nothing_is_red() -> None:
    """Gates that ask whether something is surely better than nothing: a difference of exactly 0 is not."""
    every = [gate for name in registry.OURS for gate in registry.find(name).gates]
    sure = {gate.name: gate for gate in every if gate.by_ci and gate.more_than is not None}
    kinds = {f"{kind}_{arm}_sure" for kind in ("image", "audio") for arm in ("swap", "zero", "noise")}
    assert set(sure) == {*kinds, "text_sure", "above_question", "t2i_swap_sure", "t2a_swap_sure"}
    for gate in (*sure.values(), thresholds.NAMES):
        for low, verdict in ((0.0, "red"), (-0.1, "red"), (1e-9, "green"), (math.nan, "red")):
            fact = Fact(low, 200, (low, low + 0.1))
            assert judge([gate], {gate.fact: fact})[0].verdict == verdict, gate.name
        assert judge([gate], {gate.fact: Fact(0.2, 200, (0.2, 0.3))}, {gate.name: 0.2})[0].verdict == "red", (
            "a bound of a recipe is as strict"
        )
    for gate in (gate for gate in every if gate.below_floor is not None):
        assert judge([gate], {gate.fact: Fact(0.0, 9, None, 0.0)})[0].verdict == "red", gate.name


def test_what_knows_nothing_gains_nothing() -> None:
    truths = ["red", "blue"] * 32
    tie = question_only.above(question_only.gains(truths, truths, truths))
    assert (tie.value, tie.ci) == (0.0, (-0.0, 0.0))
    _, one_class = open_set_classes.named(["red"] * 64, truths, ["red", "blue"])
    assert open_set_classes.margin(one_class) < 0
    _, few = open_set_classes.named(["red", "blue", "red"], ["red", "blue", "red"], [])
    assert open_set_classes.margin(few) < 0, "three right ones of three prove nothing"
    _, all_right = open_set_classes.named(truths, truths, [])
    assert open_set_classes.margin(all_right) > 0.4


def test_a_language_model_that_is_frozen_is_not_asked_what_it_forgot() -> None:
    """Its texts are asked for only where it learns; gate `frozen` sees that it did not."""
    asked = {"regression_texts", "language"}
    for stage, values, is_taught in (
        ("align", {}, False),
        ("instruct", {"lora": None}, False),
        ("instruct", {}, True),
    ):
        settings = recipes.stage(stage).settings(**values)
        applying = {gate.name for gate in recipes.stage(stage).gates if gate.applies(settings, ["image"])}
        assert asked & applying == (asked if is_taught else set()), stage
        assert "frozen" in {gate.name for gate in thresholds.SOUND}
    omni = recipes.stage("omni").settings()
    assert "regression_texts" in {gate.name for gate in recipes.stage("omni").gates if gate.applies(omni, [])}
