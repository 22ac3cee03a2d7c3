"""What Prometheus reads: requests by status and how long they took, batches, and the queue."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """The measurements of one server."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("dim_requests", "Requests answered.", ["endpoint", "status"], registry=registry)
        self._seconds = Histogram("dim_request_seconds", "From request to answer.", ["endpoint"], buckets=SECONDS, registry=registry)
        self._batch = Histogram("dim_batch_pictures", "Pictures painted together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry)
        self._painting = Histogram("dim_batch_seconds", "To paint a batch.", buckets=SECONDS, registry=registry)
        self.queue = Gauge("dim_queue_pictures", "Pictures that wait.", registry=registry)

    def observe_request(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def observe_batch(self, pictures: int, seconds: float) -> None:
        self._batch.observe(pictures)
        self._painting.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
