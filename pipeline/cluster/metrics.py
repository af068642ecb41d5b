"""The figures of a run as metrics of Ray, which Prometheus collects from every cluster: names begin with ray_tatok_."""

from __future__ import annotations

from ray.util.metrics import Gauge

from tatok.pipeline.monitoring.events import Event
from tatok.pipeline.monitoring.figures import RunFigures

__all__ = ["METRICS", "RayMetrics"]

# Metric -> what it is; its value is the figure of that name.
METRICS = {
    "num_shards": "Shards of the source.",
    "num_committed": "Shards that are committed, earlier runs included.",
    "num_retried": "Attempts of this run that failed and were repeated.",
    "num_failed": "Shards that this run has given up.",
    "num_waiting": "Queue: shards that wait for a tokenizer.",
    "num_at_work": "Queue: attempts at work.",
    "num_tokenizers": "Tokenizers that work.",
    "num_idle_decoders": "Queue: decoders without work.",
    "num_rows": "Images or clips of this run, shards at work included.",
    "num_tokens": "Tokens of this run, shards at work included.",
    "num_rejects": "Rejects of this run, shards at work included.",
    "num_bytes": "Bytes read, of the shards that this run has committed.",
    "pending_bytes": "Bytes that are still to be read.",
    "encode_s": "Stage: seconds that tokenizers have spent encoding.",
    "wait_s": "Stage: seconds that tokenizers' shards have waited for decoded clips.",
    "gpu_idle_share": "Share of the tokenizers' time in which they did not encode.",
}
_REASONS = "rejects_by_reason"
# Gauges, not counters: the figures are totals already, and one source of them keeps all displays equal.


class RayMetrics:
    """Sets the metrics from a run's events; Ray must be running. Tag `run` tells runs apart."""

    def __init__(self) -> None:
        self._figures = RunFigures()
        self._gauges = {
            name: Gauge(f"tatok_{name}", description=text, tag_keys=("run",)) for name, text in METRICS.items()
        }
        text = "Rejects of the shards that this run has committed, by reason."
        self._reasons = Gauge(f"tatok_{_REASONS}", description=text, tag_keys=("run", "reason"))

    def __call__(self, event: Event) -> None:
        """Take note of an event and set what it changes."""
        self._figures.take(event)
        figures, run = self._figures.now(), self._figures.run[:8] or "none"
        for name, gauge in self._gauges.items():
            gauge.set(float(getattr(figures, name)), tags={"run": run})
        for reason, count in figures.reject_reasons:
            self._reasons.set(float(count), tags={"run": run, "reason": reason})
