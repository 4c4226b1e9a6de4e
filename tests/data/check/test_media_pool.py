"""Media opened by worker processes: what one process finds, whoever dies."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muomni.data.check import media_pool
from muomni.data.check.checker import check
from muomni.data.check.media_pool import MediaPool
from muomni.data.sample import AudioPart, ImagePart
from muomni.data.source import Source
from muomni.errors import DataError
from muomni.media import audio

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads do it")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pool"), np.random.default_rng(0)
    made = []
    for number in range(24):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
        audio.write(folder / f"{number}.wav", rng.normal(0, 0.1, 4000).astype(np.float32), 16_000)
        made += [
            ImagePart(path=str(folder / f"{number}.png")),
            AudioPart(path=str(folder / f"{number}.wav"), start=0.1),
        ]
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:40])
    return [*made, ImagePart(path=str(folder / "torn.png")), ImagePart(path=str(folder / "none.png"))]


def told(found):
    return [
        (each.reason, each.message, each.hint)
        if isinstance(each, DataError)
        else (
            each.key,
            each.seconds,
            each.size,
            each.oddities,
            None if each.vector is None else each.vector.tolist(),
        )
        for each in found
    ]


def test_workers_find_what_one_process_finds(parts):
    with MediaPool(workers=1) as alone, MediaPool(workers=2, few=0) as pool:
        assert told(pool.examine(parts)) == told(alone.examine(parts))


def test_few_media_need_no_workers(parts):
    with MediaPool(workers=2, few=30) as pool:
        list(pool.examine(parts[:30]))
        assert pool._executor is None
        list(pool.examine(parts[:1]))
        assert pool._executor is not None


def test_a_hint_comes_back_from_a_worker():
    error = pickle.loads(pickle.dumps(DataError("missing", "a.png: expected a file", hint="look elsewhere")))
    assert (error.reason, error.message, error.hint) == (
        "missing",
        "a.png: expected a file",
        "look elsewhere",
    )


@linux
def test_a_decoder_that_dies_is_told(parts, monkeypatch):
    monkeypatch.setattr(media_pool, "_examined", _die)
    with (
        pytest.raises(
            DataError, match=r"a decoder died at one of 50 files, between .*0\.png and .*none\.png"
        ),
        MediaPool(2, few=0) as pool,
    ):
        list(pool.examine(parts))


def _die(part):
    os.kill(os.getpid(), signal.SIGKILL)


@linux
def test_workers_end_with_a_check_that_is_killed(tmp_path):
    script = (
        "from muomni.data.check.media_pool import MediaPool\nfrom muomni.data.sample import ImagePart\nimport os, time\n"
        "with MediaPool(2, few=0) as pool:\n    list(pool.examine([ImagePart(path='none.png')] * 40))\n"
        "    print(*pool._executor._processes, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        workers = [int(number) for number in child.stdout.readline().split()]
        child.kill()
    assert len(workers) == 2
    tries = iter(range(3000))
    while any(
        Path(f"/proc/{worker}").exists() and "\nState:\tZ" not in Path(f"/proc/{worker}/status").read_text()
        for worker in workers
    ):
        assert next(tries, None) is not None, "they outlive their parent"
        time.sleep(0.2)


def test_a_check_by_workers_reports_as_one_without(parts, tmp_path, monkeypatch):
    rows = [
        f'{{"id": "{number}", "messages": [{{"role": "user", "content": [{part.model_dump_json()}]}}, '
        f'{{"role": "assistant", "content": "word {number}"}}]}}'
        for number, part in enumerate(parts)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    reports = []
    for workers, few in ((1, 10**6), (2, 0)):
        monkeypatch.setattr(
            "muomni.data.check.checker.MediaPool", lambda workers=workers, few=few: MediaPool(workers, few)
        )
        reports.append(check(Source(path="rows.jsonl"), tmp_path).to_json())
    assert reports[0] == reports[1]
    assert reports[0]["counts"]["undecodable"] == 1
