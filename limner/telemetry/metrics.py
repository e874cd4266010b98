"""What an operator watches. Names, labels and buckets in one place; docs/operate/metrics.md explains each."""

import os
from functools import lru_cache
from typing import TypeVar

from prometheus_client import REGISTRY as PROCESS_REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


@lru_cache(maxsize=4096)
def of(metric: Metric, *labels: str | int) -> Metric:
    """What `labels` does, remembered: for what is counted with every request or job."""
    return metric.labels(*labels)


REQUESTS = Counter("limner_requests", "HTTP requests answered", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "limner_request_seconds", "Time to answer a request", ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)  # fmt: skip
CONNECTIONS_ENDED = Counter("limner_connections_ended", "Connections of the API that limner hung up on", ["reason"])
JOBS = Counter("limner_jobs_finished", "Jobs closed", ["model", "outcome", "error_code"])
JOB_SECONDS = Histogram(
    "limner_job_seconds", "From a run's start to the job's end", ["model"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)  # fmt: skip
PICKUP_SECONDS = Histogram(
    "limner_job_pickup_seconds", "From submit to the first claim",
    buckets=(0.005, 0.01, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1, 5, 30, 300),
)  # fmt: skip
ATTEMPTS = Counter("limner_provider_attempts", "Calls of providers", ["provider", "outcome"])
RESENDS = Counter(
    "limner_provider_resends", "Calls sent again after an unknown outcome; those of class C may be paid twice",
    ["provider", "call_class"],
)  # fmt: skip
OWN_KEY_FAULTS = Counter(
    "limner_own_key_faults",
    "Changes of organizations' own keys to one that a provider refuses, or that cannot be used",
    ["code"],
)
RESUMES = Counter(
    "limner_provider_resumes", "Tasks of an earlier run that were asked after instead of sent again", ["provider"]
)
ABSURD_COSTS = Counter("limner_provider_absurd_costs", "Costs a provider stated that cannot be true", ["provider"])
UPLOADS = Counter("limner_uploads_ended", "Uploads that became ready, or why they were rejected", ["outcome"])
ABSURD_USAGE = Counter(
    "limner_provider_absurd_usage", "Answers whose stated usage cannot be true, or lacks a count", ["provider"]
)
PROVIDER_STATE = Gauge(
    "limner_provider_state", "How a provider of the platform's fares: 0 unknown, 1 healthy, 2 degraded, 3 down", ["provider"],
    multiprocess_mode="mostrecent",
)  # fmt: skip
PROVIDER_STATES = ("unknown", "healthy", "degraded", "down")
RUNS_RELEASED = Counter("limner_runs_released", "Runs given back", ["reason"])
LEASES_LOST = Counter("limner_leases_lost", "Runs whose lease another worker took")
EVENTS_PLACED = Counter("limner_events_placed", "Events given their place in the log")
EVENT_LAG = Histogram(
    "limner_event_lag_seconds", "From an event to its place in the log, of the oldest placed together",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300),
)  # fmt: skip
STREAMS = Gauge("limner_streams_open", "Clients that follow a job", multiprocess_mode="livesum")
QUEUE_DEPTH = Gauge("limner_queue_depth", "Jobs waiting to be claimed", multiprocess_mode="mostrecent")
QUEUE_RUNNING = Gauge("limner_queue_running", "Jobs under a live lease", multiprocess_mode="mostrecent")
QUEUE_DEFERRED = Gauge("limner_queue_deferred", "Jobs whose time has not come", multiprocess_mode="mostrecent")
QUEUE_OLDEST = Gauge("limner_queue_oldest_seconds", "Age of the oldest waiting job", multiprocess_mode="mostrecent")
QUEUE_OVERDUE = Gauge("limner_queue_overdue", "Open jobs past their deadline", multiprocess_mode="mostrecent")
OPEN_HOLDS = Gauge("limner_open_holds", "Holds not yet settled", multiprocess_mode="mostrecent")
HELD_CREDITS = Gauge("limner_held_credits", "Credits on hold", multiprocess_mode="mostrecent")
WEBHOOK_ATTEMPTS = Counter("limner_webhook_attempts", "Tries to deliver a webhook", ["outcome"])
WEBHOOK_LAG_SECONDS = Histogram(
    "limner_webhook_lag_seconds", "From an event to the first try to deliver it",
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 30, 300),
)  # fmt: skip
WEBHOOK_DUE = Gauge(
    "limner_webhook_due_seconds", "How long the webhook has waited whose turn came first",
    multiprocess_mode="mostrecent",
)  # fmt: skip
WEBHOOKS_FAILING = Gauge("limner_webhooks_failing", "Webhooks whose last try failed", multiprocess_mode="mostrecent")
VIOLATIONS = Gauge(
    "limner_invariant_violations", "Broken invariants at the last check (0 is right)", multiprocess_mode="mostrecent"
)


def render() -> bytes:
    """The Prometheus text format; over all processes of this machine where they share a folder (`limner up`)."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(PROCESS_REGISTRY)
