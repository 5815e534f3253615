"""Meters for Prometheus, named after OpenTelemetry's gen_ai.server.* where it has a name."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

TIMES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
PER_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
LENGTHS = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Meters:
    """The meters of one process; `text` is what GET /metrics gives."""

    def __init__(self):
        disable_created_metrics()
        self.registry = CollectorRegistry()
        made = {"registry": self.registry}
        self.first = Histogram("gen_ai_server_time_to_first_token_seconds", "From arrival to the first token, queue included", ["model"], buckets=TIMES, **made)  # fmt: skip
        self.each = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Between two tokens", ["model"], buckets=PER_TOKEN, **made
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds", "Whole answers", ["model", "outcome"], buckets=TIMES, **made
        )
        self.tokens = Counter("gen_ai_client_token_usage", "Tokens", ["model", "kind", "key"], **made)
        self.requests = Counter("medtune_http_requests", "HTTP responses", ["path", "status"], **made)
        self.errors = Counter("medtune_errors", "Requests without a whole answer", ["code"], **made)
        self.cancelled = Counter("medtune_cancelled", "Answers whose client left", ["model"], **made)
        self.guard = Counter("medtune_guard_hits", "Guard rules that fired", ["rule", "kind"], **made)
        self.format = Counter("medtune_answers_format", "Finished answers by whether they keep the recipe's format", ["model", "compliant"], **made)  # fmt: skip
        self.reasoning = Histogram(
            "medtune_reasoning_tokens", "Tokens of reasoning before an answer", ["model"], buckets=LENGTHS, **made
        )
        self.queue = Gauge("medtune_queue_depth", "Requests that wait for a slot", ["model"], **made)
        self.slots = Gauge("medtune_slots", "Slots by state", ["model", "state"], **made)
        self.up = Gauge("medtune_backend_up", "Whether the model's server is ready", ["model"], **made)
        self.restarts = Gauge("medtune_backend_restarts", "Restarts of the model's server", ["model"], **made)

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
        elif outcome != "ok":
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
