"""GET /health and GET /metrics."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_gemma.memory import resident_bytes
from edge_gemma.runtime.monitoring import prometheus_text
from edge_gemma.runtime.serving.service import Service


async def health(request: Request) -> JSONResponse:
    """200 with "ready" or "degraded" and the reasons; 503 while the server ends."""
    service: Service = request.app.state.service
    scheduler = service.scheduler
    if scheduler.closed:
        return JSONResponse({"status": "ending", "alive": True, "ready": False, "reasons": []}, 503)
    reasons = [alert.message for alert in service.monitor.alerts()]
    if scheduler.waiting >= scheduler.max_waiting:
        reasons.append(f"{scheduler.waiting} prompts wait, and no more may")
    status = "degraded" if reasons else "ready"
    return JSONResponse({"status": status, "alive": True, "ready": True, "reasons": reasons})


async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    service: Service = request.app.state.service
    gauges = {
        "waiting": service.scheduler.waiting,
        "busy": float(service.scheduler.busy),
        "resident_memory_bytes": resident_bytes(),
        "processor_seconds": sum(os.times()[:2]),
    }
    text = prometheus_text(service.monitor, gauges)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


routes = [Route("/health", health), Route("/metrics", metrics)]
