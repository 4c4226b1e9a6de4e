"""Requests made from the server's own OpenAPI description: no answer breaks it, none is a fault of ours."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from served import Running, http, ready  # noqa: E402

from muomni.infer.engine import Engine  # noqa: E402
from muomni.serve.app import build  # noqa: E402
from muomni.serve.settings import ServeSettings  # noqa: E402

MODES = {"fitting": GenerationMode.POSITIVE, "misfit": GenerationMode.NEGATIVE}
SHORT = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "n": 1}


@pytest.fixture(scope="module")
def described(engine: Engine) -> Any:
    chosen = ServeSettings(name="tiny")
    app = build(ready(engine, chosen), chosen)
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "localhost"})


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_as_described(described: Any, mode: str) -> None:
    statuses: Counter[int] = Counter()

    def check(case: Any) -> None:
        case.headers = {**dict(case.headers or {}), "host": "localhost"}
        body = case.body
        if mode == "fitting" and isinstance(body, dict):  # else most would end at the model's name
            body.update({"model": "tiny", **{key: SHORT[key] for key in SHORT if body.get(key)}})
        response = case.call()
        statuses[response.status_code] += 1
        assert response.status_code < 500, response.text
        case.validate_response(response, excluded_checks=[schemathesis.checks.positive_data_acceptance])

    for operation in (found.ok() for found in described.get_all_operations()):
        if mode == "misfit" and operation.method != "post":
            continue  # nothing of it can be misfit
        bounds = settings(
            max_examples=8,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        bounds(given(case=operation.as_strategy(generation_mode=MODES[mode]))(check))()
    assert sum(statuses.values()) > 40
    assert 200 in statuses or mode == "misfit"


def test_the_description_lists_each_route_with_its_errors(tiny: Running) -> None:
    described = http.get(f"{tiny.url}/openapi.json").json()
    assert set(described["paths"]) >= {
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/embeddings",
        "/v1/images/generations",
    }
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            if path != "/health":
                assert {"400", "401", "404", "413", "429", "500"} <= set(operation["responses"]), path
    assert "http" not in json.dumps(described["paths"])
