"""The page: nothing from data becomes markup, nothing comes from elsewhere, what is missing is left out, a
browser finds no fault."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import HOSTILE, make, make_seeing

from muomni.commands.report import pages, with_pages
from muomni.errors import ConfigError, GateRed
from muomni.report import stage_part
from muomni.report.build import report
from muomni.report.curves import Curve, chart
from muomni.report.gather import gather
from muomni.report.html import h, number, seconds
from muomni.report.samples import diff
from muomni.units import CONTENTS


class Elements(HTMLParser):
    """The elements and attributes of a page, and whether all are closed."""

    VOID = frozenset({"meta", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return report(made).read_text()


def test_no_text_of_the_data_becomes_markup(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    assert [tag for tag, _ in elements.found].count("script") == 1
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        if tag in ("img", "audio"):
            assert (attributes["src"] or "").startswith("data:")
    assert page.count("alert(1)") > 20  # it is there, as text
    assert "<script>alert" not in page


def test_a_page_needs_no_network(page: str) -> None:
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value[:60])
    own = re.sub(r'"data:[^"]*"', "", page)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", own)


def test_every_part_is_on_the_page(page: str) -> None:
    for text in (
        "Score board",
        "Time",
        "Remembered and forgotten",
        "Gates",
        "Curves",
        "with others",
        "Right answers",
        "Codebooks",
    ):
        assert text in page
    for text in (
        "Taken for another",
        "Asked",
        "Heard",
        "Continued",
        "There and back",
        "Said, and understood",
        "captions that they find",
    ):
        assert text in page
    for text in (
        "learning rate",
        "gradient norm",
        "steps a second",
        *(f"{words} a second" for words in CONTENTS.values()),
        "waiting for data",
        "MFU",
        "memory",
        "terms of the loss",
        "share missed",
    ):
        assert text in page
    assert "data-curves" in page
    assert "pointermove" in page
    assert "prefers-color-scheme" in page
    assert "was not measured" in page


def test_curves_of_speed_are_the_meters(made: Path) -> None:
    """A page names each number as metrics.jsonl does, takes none of them for a term of the loss, and leaves
    out what older runs counted."""
    stage = gather(made).stage("hearing")
    assert stage is not None
    assert stage.metrics[0]["tokens_per_s"] == 4.0  # the second unit: two a batch, two batches a second
    assert stage_part.terms(stage) == ["ctc"]
    older = replace(
        stage, metrics=[{**row, "targets_per_s": 900.0, "memory_mb": 7.0} for row in stage.metrics]
    )
    assert stage_part.terms(older) == ["ctc"]
    assert "targets" not in str(stage_part.curves(older))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seeing(tmp_path_factory.mktemp("made") / "seeing")


def test_what_stages_that_see_measure_is_on_their_pages(seeing: Path) -> None:
    align, instruct = report(seeing / "align").read_text(), report(seeing / "instruct").read_text()
    for text in (
        "By length of the answer",
        "Classes named in free words",
        "What was taught",
        "Watched from checkpoint to checkpoint",
    ):
        assert text in align
        assert text in instruct
    assert "with another picture" in align
    assert "swapping costs" in align
    assert re.search(
        r"another.+s against zero -0\.88 nats \(95 % -1\.1 … -0\.66\) and against noise -1\.26 nats", align
    )
    assert "text bits per byte" in align  # remembered and forgotten
    assert "from the question alone" in instruct
    assert "from the question alone" not in align
    assert all(bar in align for bar in ("short", "medium", "long", "step 20", "2 different answers"))
    assert "3 different answers" in align
    assert Elements(align).open == []
    assert "<script>alert" not in align


def test_the_first_and_the_last_answer_stand_beside_the_reference_and_changes_are_counted(
    seeing: Path,
) -> None:
    text = report(seeing / "align").read_text()
    bars = text[text.index("answers that changed") :][:2000]
    shares = re.findall(r'data-tip="step (\d+): ([\d.]+) · n 3"', bars)
    assert shares[:2] == [("20", "0.6667"), ("30", "0.6667")]
    first = text[text.index("<small>step 10 </small>") :][:200]
    assert "<mark>a a</mark>" in first
    assert "<del>red bus</del>" in first


def test_a_sweep_shows_its_rule_its_winner_and_who_does_not_look(seeing: Path) -> None:
    text = report(seeing / "sweep").read_text()
    assert "however low its loss" in text
    assert text.count('class="badge green">wins') == 1
    assert 'class="mark wins"' in text
    assert 'class="mark blind"' in text
    assert text.count("does not look</td>") == 2
    assert Elements(text).open == []
    assert "<script>alert" not in text


@pytest.mark.parametrize(
    ("page", "prefix"),
    [("sweep/report.html", ""), ("report.html", "sweep/"), ("elsewhere/page.html", "../sweep/")],
)
def test_a_sweep_leads_to_the_pages_of_its_points(tmp_path: Path, page: str, prefix: str) -> None:
    run = make_seeing(tmp_path / "run")
    told = run / "sweep" if page.startswith("sweep") else run
    elsewhere = report(told, out=tmp_path / "first.html").read_text()
    assert (
        "report.html" not in elsewhere
    )  # a page that goes elsewhere writes none into the run, and leads to none
    report(told)
    path = report(told, out=run / page)
    links = [
        value
        for _, attributes in Elements(path.read_text()).found
        if (value := attributes.get("href")) and value.endswith("report.html")
    ]
    assert len(links) == 3
    for link in links:
        assert link.startswith(f"{prefix}lr-")
        there = (path.parent / link).read_text()
        assert "run / sweep/lr-" in there
        assert "Watched" not in there  # this one was not
        assert "Asked" in there


def test_a_point_alone_has_a_page_and_a_sweep_that_is_not_concluded_too(tmp_path: Path) -> None:
    run = make_seeing(tmp_path / "run")
    for name in ("table.json", "certificate.json", "config.yaml", "metrics.jsonl"):
        (run / "sweep" / name).unlink()
    text = report(run).read_text()
    assert "nothing is decided" in text
    assert 'badge green">wins' not in text
    found = gather(run / "sweep" / "lr-0.0002_vision_ln-off")
    assert (found.name, found.verdict, found.stages[0].name) == (
        "run",
        "red",
        "sweep/lr-0.0002_vision_ln-off",
    )


def test_a_stage_has_a_page_of_its_own_and_an_unfinished_one_too(made: Path) -> None:
    path = report(made / "hearing")
    assert path == made.resolve() / "hearing" / "report.html"
    assert "Heard" in path.read_text()
    assert "unfinished" in report(made / "talker", out=made / "elsewhere.html").read_text()
    assert gather(made / "hearing").verdict == "red"


@pytest.mark.parametrize(
    "lost", ["samples", "account.json", "metrics.jsonl", "config.yaml", "skipped.jsonl", "quarantine.jsonl"]
)
def test_what_is_missing_is_left_out(tmp_path: Path, lost: str) -> None:
    run = make(tmp_path / "run")
    for path in run.glob(f"*/{lost}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "scoreboard.json").write_text("{torn")
    assert "hearing" in report(run).read_text()


def test_a_lost_medium_leaves_its_card(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    for path in run.glob("*/samples/*.*"):
        if path.suffix in (".wav", ".png"):
            path.unlink()
    text = report(run).read_text()
    assert "a red ring" in text
    assert "<audio" not in text


def test_media_names_lead_nowhere_else(made: Path) -> None:
    stage = gather(made).stage("hearing")
    assert stage is not None
    assert stage.media("../certificate.json") is None
    assert stage.media(None) is None


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run folder"):
        report(tmp_path)


def test_two_runs_are_laid_side_by_side(made: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", better=True)
    text = report(made, against=other, out=tmp_path / "both.html").read_text()
    assert "run against other" in text
    assert "worse" in text
    assert "no fair comparison" not in text
    assert "the other" in text  # its curves
    reverse = report(other, against=made, out=tmp_path / "back.html").read_text()
    assert "better" in reverse
    assert Elements(reverse).open == []


def test_a_comparison_across_data_says_that_it_is_unfair(made: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", better=True)
    path = other / "hearing" / "certificate.json"
    path.write_text(path.read_text().replace("cd" * 32, "dc" * 32))
    assert (
        report(made, against=other, out=tmp_path / "both.html").read_text().count("no fair comparison") == 1
    )


def test_a_difference_within_the_intervals_is_told_as_such() -> None:
    from muomni.report.compare import change

    near = change({"value": 0.8, "ci": [0.7, 0.9]}, {"value": 0.75, "ci": [0.65, 0.85]}, more_is_better=True)
    far = change({"value": 0.8, "ci": [0.7, 0.9]}, {"value": 0.3, "ci": [0.2, 0.4]}, more_is_better=True)
    assert "overlap" in near
    assert "same" in near
    assert "better" in far
    assert "overlap" not in far
    assert "worse" in change({"value": 0.8}, {"value": 0.3}, more_is_better=False)


def test_wrong_characters_are_marked_and_missing_ones_told() -> None:
    assert diff("one", "one") == '<span class="right">one</span>'
    assert "<mark>" in diff("one", "ond")
    assert "<del>e</del>" in diff("one", "on")
    assert "<mark>two</mark>" in diff("a one", "a two", by_word=True)


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    drawn = chart("loss", [Curve("training", [(float(step), 5.0 / (step + 1)) for step in range(100_000)])])
    assert drawn is not None
    assert len(drawn) < 60_000
    assert "[99999.0," in drawn
    assert 'class="log"' in drawn
    assert chart("nothing", [Curve("training", [(1.0, float("nan"))])]) is None


def test_numbers_as_a_person_reads_them() -> None:
    assert [number(v) for v in (None, float("nan"), 0.0, 1234567, 0.123456, -2.5)] == [
        "–",
        "–",
        "0",
        "1\u2009234\u2009567",
        "0.1235",
        "-2.5",
    ]
    assert [seconds(v) for v in (None, 3.21, 59.0, 61.0, 3700.0)] == [
        "–",
        "3.2 s",
        "59 s",
        "1 m 01 s",
        "1 h 01 m",
    ]
    assert h("p", HOSTILE, title=HOSTILE).count("<") == 2


def browse(path: Path) -> tuple[str, str]:
    """The page's elements after its script ran, and what the browser complained of."""
    browser = next(
        (
            found
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (found := shutil.which(name))
        ),
        None,
    )
    if browser is None:
        pytest.skip("NO CHROMIUM: the page was not opened in a browser")
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
    ]
    done = subprocess.run([*command, f"file://{path.resolve()}"], capture_output=True, text=True, timeout=900)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_a_browser_opens_it_without_a_console_error(made: Path, page: str) -> None:
    elements, complaints = browse(made / "report.html")
    assert not complaints
    assert re.search(
        r"<audio[^>]* hidden", elements
    )  # the script ran: its own players stand in place of the browser's


@pytest.mark.parametrize("name", [".", "sweep", "instruct", "sweep/lr-0.0001_vision_ln-off"])
def test_a_browser_opens_the_pages_of_stages_that_see(seeing: Path, name: str) -> None:
    assert not browse(report(seeing / name))[1]


WIDE = """<script>
const wide = [...document.querySelectorAll(".card, .points, .taught, .scatter")].filter((each) => each.scrollWidth > each.clientWidth + 1);
document.title = "TOLD" + JSON.stringify(wide.map((each) => each.textContent.slice(0, 60)));
</script>"""


def test_long_answers_stay_within_their_cards(seeing: Path, tmp_path: Path) -> None:
    page = report(seeing / "instruct").read_text()
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{WIDE}</body>"))
    told = re.search(r"<title>TOLD(.*?)</title>", browse(tmp_path / "page.html")[0])
    assert told is not None
    assert json.loads(unescape(told[1])) == []


POINT = """<script>
const seen = [];
for (const what of ["[data-curves] svg", "[data-matrix] img", ".interval"]) {
  const target = document.querySelector(what), box = target.getBoundingClientRect();
  const where = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
  target.dispatchEvent(new PointerEvent("pointermove", where));
  seen.push(document.getElementById("tip").textContent);
}
document.querySelector(".log").click();
seen.push(document.querySelectorAll(".logged").length);
document.querySelector("[data-show=right]").click();
seen.push(document.querySelectorAll("article[hidden]").length);
document.title = "TOLD" + JSON.stringify(seen);
</script>"""


def test_values_are_told_under_the_pointer_and_switches_switch(made: Path, page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{POINT}</body>"))
    elements, complaints = browse(tmp_path / "page.html")
    assert not complaints
    curve, cell, interval, logged, hidden = json.loads(
        unescape(re.search(r"<title>TOLD(.*?)</title>", elements)[1])
    )  # type: ignore[index]
    assert re.match(r"step \d+\ntraining  [\d.]+", curve)
    assert "frame 1" in cell
    assert "should be" in interval
    assert (logged, hidden) == (1, 1)


def test_a_stage_that_runs_beside_others_writes_its_own_page_once_and_leaves_the_runs_to_its_parent(
    tmp_path: Path,
) -> None:
    run = make(tmp_path / "run")
    pages(run, ["hearing"], alone=True)
    page = run / "hearing" / "report.html"
    assert page.exists()
    assert not (run / "report.html").exists()
    page.write_text("as it was")
    pages(run)
    assert page.read_text() == "as it was"
    assert (run / "report.html").exists()
    assert (run / "omni" / "report.html").exists()
    (run / "hearing" / "certificate.json").touch()  # judged again
    pages(run)
    assert page.read_text() != "as it was"


def test_pages_are_written_green_or_red_and_never_spoil_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(tmp_path / "run")

    red = GateRed("a gate is red")
    red.folder = run
    with pytest.raises(GateRed), with_pages(["hearing"]):
        raise red
    assert (run / "report.html").exists()
    assert (run / "hearing" / "report.html").exists()
    assert not (run / "vision" / "report.html").exists()
    (run / "omni" / "certificate.json").write_text(
        '{"stage": "omni", "verdict": "green", "facts": 3, "gates": []}'
    )
    with with_pages() as trained:
        trained(run)
    told = capsys.readouterr().err.splitlines()
    assert any(line.startswith("no report of") and "TypeError" in line for line in told)
    assert (run / "vision" / "report.html").exists()
