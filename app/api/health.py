"""GET /livez, /readyz, /metrics: for supervisors and scrapers; no key needed.

Live means that the process answers. Ready means that a request sent now could be
served: the database answers, the engine has a model that is ready and loads no other.
A broken model is named and takes nobody else down. Neither says anything about
customers.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic_core import to_json
from sqlalchemy import text

from app.api.call import Services
from app.errors import AppError
from app.rpc import engine_pb2 as pb
from app.telemetry import METRICS_CONTENT_TYPE, render_metrics

OK = "ok"

router = APIRouter(tags=["health"])

_PLAIN: dict[int | str, dict[str, Any]] = {
    200: {"description": "Alive.", "content": {"text/plain": {"example": "ok\n"}}}
}
_READY = {"status": "ready", "checks": {"database": OK, "engine": OK}, "broken_models": []}
_READINESS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Ready.", "content": {"application/json": {"example": _READY}}},
    503: {
        "description": "Not ready; says which part.",
        "content": {
            "application/json": {
                "example": {
                    "status": "not_ready",
                    "checks": {"database": OK, "engine": "no_model_ready"},
                    "broken_models": ["shakespeare"],
                }
            }
        },
    },
}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Prometheus' text format.",
        "content": {
            "text/plain": {"example": 'tollgate_http_requests_total{route="/livez",method="GET",status="200"} 1.0'}
        },
    }
}


@router.get("/livez", response_model=None, response_class=PlainTextResponse, responses=_PLAIN)
async def livez() -> Response:
    """Whether the process answers at all."""
    return Response("ok\n", media_type="text/plain")


@router.get("/readyz", response_model=None, responses=_READINESS)
async def readyz(request: Request) -> Response:
    """Whether a request sent now could be served."""
    services = Services.of(request.app.state)
    database, (engine, broken_models) = await asyncio.gather(_database(services), _engine(services))
    is_ready = database == engine == OK
    body = {
        "status": "ready" if is_ready else "not_ready",
        "checks": {"database": database, "engine": engine},
        "broken_models": broken_models,
    }
    return Response(to_json(body), 200 if is_ready else 503, media_type="application/json")


@router.get("/metrics", response_model=None, response_class=PlainTextResponse, responses=_METRICS)
async def metrics() -> Response:
    """Counters of this installation's API processes."""
    rendered = await asyncio.to_thread(render_metrics)
    return Response(rendered, headers={"content-type": METRICS_CONTENT_TYPE})


async def _database(services: Services) -> str:
    try:
        async with services.database.begin() as connection:
            # A table of ours, so that a database without them is not ready.
            await connection.execute(text("SELECT FROM api_keys LIMIT 0"))
    except AppError as error:
        return error.code
    return OK


async def _engine(services: Services) -> tuple[str, list[str]]:
    """How the engine is, and its broken models."""
    try:
        engine = await services.engine.describe()
    except AppError as error:
        return error.code, []
    return _condition(engine), [model.name for model in engine.models if model.state == "broken"]


def _condition(engine: pb.DescribeResponse) -> str:
    states = {model.state for model in engine.models}
    if engine.draining:
        return "draining"
    if "loading" in states:
        return "loading"
    return OK if "ready" in states else "no_model_ready"
