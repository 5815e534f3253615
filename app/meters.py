"""Meters for Prometheus, named after OpenTelemetry's gen_ai.server.* where it has a name."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

TIMES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
PER_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
LENGTHS = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


GEN = "gen_ai_server_"
MADE = {  # attribute: (kind, name, what it is, labels, buckets)
    "first": (Histogram, GEN + "time_to_first_token_seconds", "From arrival to the first token", ["model"], TIMES),
    "each": (Histogram, GEN + "time_per_output_token_seconds", "Between two tokens", ["model"], PER_TOKEN),
    "duration": (Histogram, GEN + "request_duration_seconds", "Whole answers", ["model", "outcome"], TIMES),
    "tokens": (Counter, "gen_ai_client_token_usage", "Tokens", ["model", "kind", "key"]),
    "requests": (Counter, "medtune_http_requests", "HTTP responses", ["path", "status"]),
    "errors": (Counter, "medtune_errors", "Requests without a whole answer", ["code"]),
    "cancelled": (Counter, "medtune_cancelled", "Answers whose client left", ["model"]),
    "guard": (Counter, "medtune_guard_hits", "Guard rules that fired", ["rule", "kind"]),
    "format": (Counter, "medtune_answers_format", "Whole answers by recipe's format kept", ["model", "compliant"]),
    "reasoning": (Histogram, "medtune_reasoning_tokens", "Reasoning before an answer", ["model"], LENGTHS),
    "queue": (Gauge, "medtune_queue_depth", "Requests that wait for a slot", ["model"]),
    "slots": (Gauge, "medtune_slots", "Slots by state", ["model", "state"]),
    "up": (Gauge, "medtune_backend_up", "Whether the model's server is ready", ["model"]),
    "restarts": (Gauge, "medtune_backend_restarts", "Restarts of the model's server", ["model"]),
}


class Meters:
    """The meters of one process; `text` is what GET /metrics gives."""

    def __init__(self):
        disable_created_metrics()
        self.registry = CollectorRegistry()
        for name, (kind, full, about, labels, *buckets) in MADE.items():
            extra = {"buckets": buckets[0]} if buckets else {}
            setattr(self, name, kind(full, about, labels, registry=self.registry, **extra))

    def text(self, backends):
        """The exposition, with what the backends are at now."""
        for name, backend in backends.items():
            self.queue.labels(name).set(len(backend.slots.waiting))
            self.slots.labels(name, "free").set(backend.slots.free)
            self.slots.labels(name, "busy").set(backend.slots.count - backend.slots.free)
            self.up.labels(name).set(backend.state == "ready")
            self.restarts.labels(name).set(backend.restarts)
        return generate_latest(self.registry)

    def finished(self, relay, outcome, key):
        """Count one answer that has ended, however it did."""
        job, stream, model = relay.job, relay.stream, relay.job.backend.model.name
        now = time.perf_counter()
        self.duration.labels(model, outcome).observe(now - job.arrived)
        if stream.first:
            self.first.labels(model).observe(stream.first - job.arrived)
            pieces = sum(choice.pieces for choice in stream.choices)
            if pieces > 1:
                self.each.labels(model).observe((stream.last - stream.first) / (pieces - 1))
        for rule in job.hits:
            self.guard.labels(rule.id, rule.kind).inc()
        for entry in relay.after:
            self.guard.labels(entry["id"], entry["kind"]).inc()
        if outcome == "cancelled":
            self.cancelled.labels(model).inc()
        elif outcome not in ("ok", "fault"):  # a fault is counted where its 500 is made
            self.errors.labels(outcome).inc()
        total = stream.total()
        if outcome == "ok" and total:
            for choice in stream.choices:
                if hasattr(choice, "compliant"):
                    self.format.labels(model, "yes" if choice.compliant else "no").inc()
                    self.reasoning.labels(model).observe(choice.thinking)
        self.tokens.labels(model, "input", key).inc((total or {}).get("prompt_tokens", 0))
        self.tokens.labels(model, "output", key).inc(
            (total or {}).get("completion_tokens", sum(c.pieces for c in stream.choices))
        )
