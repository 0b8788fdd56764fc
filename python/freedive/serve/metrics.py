"""/metrics: what the server does, as Prometheus reads it. Counted where it happens, formatted by prometheus_client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from .service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server; the service's Observer."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each counter, of when it was made
        self.registry = CollectorRegistry()
        r: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("freedive_http_requests", "answers by route and status", ["route", "status"], **r)
        self._began = Counter("freedive_sequences_begun", "prompts accepted", **r)
        self._prompt = Counter("freedive_prompt_tokens", "of accepted prompts", **r)
        self._cached = Counter("freedive_cached_tokens", "prompt tokens found in the cache", **r)
        self._sampled = Counter("freedive_completion_tokens", "sampled for clients", **r)
        self._ended = Counter("freedive_sequences_ended", "by reason: stop, length, cancelled, deadline, error", ["reason"], **r)
        self._first = Histogram("freedive_time_to_first_token_seconds", "from acceptance to the first token", buckets=_SECONDS, **r)
        self._each = Histogram("freedive_time_per_token_seconds", "mean time between a sequence's tokens", buckets=_SECONDS, **r)

    def began(self, prompt_tokens: int) -> None:
        self._began.inc()
        self._prompt.inc(prompt_tokens)

    def first(self, seconds: float, cached_tokens: int) -> None:
        self._first.observe(seconds)
        self._cached.inc(cached_tokens)

    def ended(self, reason: str, tokens: int, seconds_after_first: float) -> None:
        self._ended.labels(reason).inc()
        self._sampled.inc(tokens)
        if tokens > 1:
            self._each.observe(seconds_after_first / (tokens - 1))

    def watch(self, service: Service) -> None:
        """Also tell the state of a service's engine, looked up when asked."""
        self.registry.register(_Engine(service))  # type: ignore[arg-type]

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Engine:
    """Gauges of an engine. Read without its lock: a number that is a step old does no harm."""

    def __init__(self, service: Service):
        self.service = service

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        engine, stats = self.service.engine, self.service.engine.stats
        scheduler, manager = engine.scheduler, engine.manager
        for name, told, value in (
            ("freedive_sequences_running", "in the batch", len(scheduler.admitted)),
            ("freedive_sequences_waiting", "for a row or for cache blocks", len(scheduler.waiting)),
            ("freedive_cache_blocks", "of 32 positions", manager.n),
            ("freedive_cache_blocks_used", "held by sequences", manager.n - manager.free),
            ("freedive_up", "1 while requests are taken", int(self.service.running)),
        ):
            yield GaugeMetricFamily(name, told, value)
        for name, told, value in (
            ("freedive_model_calls", "steps of the engine", stats.calls),
            ("freedive_prefilled_tokens", "prompt tokens computed", stats.prefilled_tokens),
            ("freedive_preemptions", "sequences sent back for want of cache blocks", stats.preemptions),
        ):
            yield CounterMetricFamily(name, told, value)
