"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import Any

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        import prometheus_client as prometheus

        self.registry = prometheus.CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = prometheus.Counter(
            "muomni_requests", "Requests by route and status", ["route", "status"], **made
        )
        self.seconds = prometheus.Histogram(
            "muomni_request_seconds",
            "From a request to the end of its answer",
            ["route"],
            buckets=SECONDS,
            **made,
        )
        self.first = prometheus.Histogram(
            "muomni_first_piece_seconds",
            "From a request to the first byte of its answer's body",
            ["route"],
            buckets=SECONDS,
            **made,
        )
        self.running = prometheus.Gauge("muomni_requests_running", "Requests that are being answered", **made)
        self.tokens = prometheus.Counter(
            "muomni_tokens", "Tokens read (prompt) and written (completion)", ["kind"], **made
        )
        self.sound = prometheus.Counter(
            "muomni_sound_seconds", "Seconds of sound heard (in) and spoken (out)", ["way"], **made
        )
        self.gone = prometheus.Counter(
            "muomni_clients_gone", "Answers that were ended because their client had gone", **made
        )

    def text(self) -> tuple[bytes, str]:
        """All of it, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
