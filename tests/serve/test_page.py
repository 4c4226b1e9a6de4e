"""The page: sealed, labelled, and used by a browser with words, a picture and a microphone."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browsing import Tab, browser
from PIL import Image
from served import Running, http, serving

from muomni.infer.engine import Engine
from muomni.serve import following, page


class Elements(HTMLParser):
    """All elements with their attributes and the texts of buttons."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.within: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))
        if tag in ("button", "label"):
            self.within.append(len(self.all) - 1)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("button", "label"):
            self.within.pop()

    def handle_data(self, data: str) -> None:
        for number in self.within:
            self.texts[number] = self.texts.get(number, "") + data.strip()


# --- as it is written ------------------------------------------------------------------------------------------


def test_it_is_one_file_that_names_no_other_place() -> None:
    assert set(re.findall(r"(?:https?|wss?):\S*", page.text())) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|\bsrc=|<link(?! rel=\"icon\" href=\"data:,\")", page.text())


def test_its_policy_lets_nothing_in_but_itself(tiny: Running) -> None:
    reply = http.get(f"{tiny.url}/")
    assert reply.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert not re.search(r"<[^>]*\son\w+=", page.text()), "a handler within markup would be blocked"


def test_every_control_has_a_name() -> None:
    elements = Elements(page.text())
    labels = {at["for"] for tag, at in elements.all if tag == "label" and at.get("for")}
    inside = re.findall(
        r"<label[^>]*>(?:(?!</label>).)*?<(?:select|input)[^>]*id=\"([^\"]+)\"", page.text(), re.DOTALL
    )
    for number, (tag, at) in enumerate(elements.all):
        if tag == "button":
            assert elements.texts.get(number) or at.get("aria-label"), at
            assert at.get("type") in ("button", "submit"), at
        elif tag in ("input", "select", "textarea", "progress", "video"):
            assert at.get("aria-label") or at.get("id") in labels or at.get("id") in inside, at
    assert [at for _, at in elements.all if at.get("aria-live") == "polite"]


# --- what it asks ----------------------------------------------------------------------------------------------


def test_its_routes_want_the_key_and_the_page_none(engine: Engine) -> None:
    with serving(engine, api_key="sesame") as running:
        assert http.get(f"{running.url}/").status_code == 200
        for name in ("abilities", "certificate", "report", "training"):
            assert http.get(f"{running.url}/muomni/{name}").status_code == 401
        told = http.get(f"{running.url}/muomni/abilities", headers={"authorization": "Bearer sesame"}).json()
        assert told["missing"] == {"drawing": "mmpt"}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run's folder with a judged stage and one in training, without networks."""
    done, going = tmp_path / "run" / "thinker", tmp_path / "run" / "hearing"
    for folder in (done, going):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("max_steps: 400\n")
    gates = [
        {"name": "perplexity", "verdict": "green", "value": 3.25, "threshold": "<= 5", "why": None},
        {
            "name": "speed",
            "verdict": "waived",
            "value": float("nan"),
            "threshold": ">= 9",
            "why": "a slow chip",
        },
    ]
    certificate = {"stage": "thinker", "verdict": "waived", "facts": {}, "gates": gates, "files": {}}
    (done / "certificate.json").write_text(json.dumps(certificate))
    rows = [{"step": step, "loss": 4 / step, "steps_per_s": 2.0, "lr": 1e-3} for step in range(1, 101, 3)]
    (going / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1')
    (going / "alive.json").write_text(json.dumps({"pid": os.getpid(), "step": 101, "time": time.time()}))
    return tmp_path / "run"


def test_a_stage_that_another_process_trains_is_followed(trained: Path) -> None:
    told = following.training(trained, "", "")
    assert (told["stage"], told["is_running"], told["step"], told["steps"]) == ("hearing", True, 101, 400)
    assert told["eta_s"] == pytest.approx(299 / 2)
    assert "<svg" in told["html"]
    again = following.training(trained, "", told["version"])
    assert again["html"] is None
    with (trained / "hearing" / "metrics.jsonl").open("a") as stream:
        stream.write('\n{"step": 130, "loss": 0.1}\n')
    os.utime(trained / "hearing" / "metrics.jsonl", (time.time() + 5, time.time() + 5))
    assert following.training(trained, "", told["version"])["step"] == 130
    (trained / "hearing" / "alive.json").write_text(
        json.dumps({"pid": 2**22 + 1, "step": 131, "time": time.time()})
    )
    assert following.training(trained, "hearing", "")["is_running"] is False


def test_gates_are_told_with_why_they_were_waived(trained: Path) -> None:
    (proof,) = [each for each in following.certificates(trained, {})["stages"] if each["name"] == "thinker"]
    assert [gate["verdict"] for gate in proof["gates"]] == ["green", "waived"]
    assert proof["gates"][1]["why"] == "a slow chip"
    assert proof["gates"][1]["value"] is None


def test_nothing_outside_of_the_folder_is_read(trained: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"verdict": "green", "gates": [{"name": "SECRET", "verdict": "green"}]}))
    (trained / "thinker" / "certificate.json").unlink()
    (trained / "thinker" / "certificate.json").symlink_to(secret)
    (trained / "report.html").symlink_to(secret)
    assert "SECRET" not in json.dumps(following.certificates(trained, {}))
    assert following.report(trained) is None
    for name in ("../secret", "/etc", "..%2fsecret"):
        assert following.training(trained, name, "")["stage"] == "hearing"


# --- as a browser has it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    folder = tmp_path_factory.mktemp("browser")
    sound = folder / "question.wav"
    soundfile.write(sound, 0.3 * np.sin(np.arange(48000) / 12), 48000, subtype="PCM_16")
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={sound}")  # fmt: skip
    with browser(folder / "profile", *flags) as tab:
        yield tab


def answered(tab: Tab, count: int) -> str:
    tab.until(f"document.querySelectorAll('.turn:not(.mine):not(.writing)').length === {count}")
    assert not tab.run("document.querySelector('.turn .error')?.textContent ?? ''")
    return str(
        tab.run("[...document.querySelectorAll('.turn:not(.mine)')].at(-1).querySelector('p').textContent")
    )


def ready(tab: Tab, url: str) -> None:
    tab.open(f"{url}/")
    tab.until("!document.getElementById('send').disabled")


def typed(tab: Tab, text: str) -> None:
    tab.run(f"document.getElementById('question').value = {json.dumps(text)}")


def sealed(tab: Tab, url: str) -> None:
    assert not tab.complaints
    assert all(each.startswith((url, "data:", "blob:", "about:")) for each in tab.asked), tab.asked


def test_a_browser_asks_in_words_with_a_picture_and_by_voice(tab: Tab, tiny: Running, client: Any) -> None:
    ready(tab, tiny.url)
    typed(tab, "the red circle")
    tab.run(
        "document.getElementById('question').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', cancelable: true}))"
    )
    asked = [{"role": "user", "content": "the red circle"}]
    expected = client.chat.completions.create(model="tiny", messages=asked).choices[0].message.content
    assert answered(tab, 1) == expected
    assert "first words" in tab.run("document.getElementById('trace').innerText")

    tab.run("document.getElementById('fresh').click()")
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    tab.run(
        f"attach(new Blob([Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0))], {{type: 'image/png'}}), 'red.png')"
    )
    tab.until("document.querySelector('#attached img')")
    typed(tab, "what is this")
    tab.run("document.getElementById('send').click()")
    answered(tab, 1)
    assert tab.run("document.querySelector('.turn.mine img').naturalWidth") == 40
    assert not re.search(r"picture\s+0\s", tab.run("document.getElementById('trace').innerText"))

    tab.run("document.getElementById('fresh').click()")
    tab.run("document.getElementById('record').click()")
    tab.until("document.getElementById('record').getAttribute('aria-pressed') === 'true'")
    time.sleep(0.8)
    tab.run("document.getElementById('record').click()")
    tab.until("document.querySelector('#attached audio')")
    tab.until("document.querySelector('#attached audio').duration")
    heard = tab.run("document.querySelector('#attached audio').duration")
    assert 0.3 < heard < 5
    loudest = tab.run(
        "Math.max(...new Int16Array(Uint8Array.from(atob(state.parts[0].url.split(',')[1]), (c) => c.charCodeAt(0)).buffer, 44))"
    )
    assert loudest > 3000, "the microphone played a tone, and none was recorded"
    tab.run("document.getElementById('aloud').checked = true; document.getElementById('send').click()")
    answered(tab, 1)
    sealed(tab, tiny.url)


def test_stop_ends_an_answer(tab: Tab, tiny: Running) -> None:
    ready(tab, tiny.url)
    typed(tab, "the red circle is left of the blue square")
    tab.run("document.getElementById('send').click(); document.getElementById('stop').click()")
    tab.until("document.querySelector('.turn .quiet')?.textContent === 'stopped'")
    assert tab.run("!document.getElementById('send').hidden && state.messages.length === 0")
    sealed(tab, tiny.url)


def test_it_can_be_looked_at(
    tab: Tab, tiny: Running, engine: Engine, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set MUOMNI_SCREENSHOTS to keep the pictures."""
    monkeypatch.setattr(engine.parts, "where", trained, raising=False)
    kept = Path(os.environ.get("MUOMNI_SCREENSHOTS", tmp_path))
    with serving(engine, name="toy") as running:
        ready(tab, running.url)
        typed(tab, "the red circle")
        tab.run("document.getElementById('send').click()")
        answered(tab, 1)
        for name, width, height in (("phone", 390, 844), ("desktop", 1280, 800)):
            for theme in ("light", "dark"):
                for view in ("talk", "train"):
                    tab.run(f"location.hash = '{view}'")
                    if view == "train":
                        tab.until("document.querySelector('#followed svg')")
                        assert "hearing" in tab.run(
                            "document.getElementById('stage').selectedOptions[0].textContent"
                        )
                    tab.look(kept / f"{name}-{theme}-{view}.png", width, height, theme, phone=name == "phone")
                    assert tab.run("document.documentElement.scrollWidth <= innerWidth"), (
                        f"{name}, {view}: wider than the screen"
                    )
                    assert tab.run("document.documentElement.dataset.theme") == theme
        tab.run(
            "const s = document.getElementById('stage'); s.value = 'thinker'; s.dispatchEvent(new Event('change'))"
        )
        tab.until("document.querySelector('#followed table.gates')")
        assert "a slow chip" in tab.run("document.getElementById('followed').innerText")
        tab.look(kept / "gates.png", 390, 844, "light", phone=True)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        tab.run("location.hash = 'talk'")
        tab.run("document.querySelector('.proof-stage').open = true")
        tab.look(kept / "proof.png", 1280, 800, "dark")
        assert "a slow chip" in tab.run("document.getElementById('certificate').innerText")
        sealed(tab, running.url)
