"""POST /webhooks/stripe: where Stripe tells what happened.

Verified, kept as it came and committed: only then is Stripe told that we have it. What is
made of it is the worker's (``app.billing.inbox``), so an answer takes a moment, whatever the
event, and Stripe sends again what we did not take.
"""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from app.api.call import Services
from app.billing import inbox
from app.billing.gateway import verify_webhook
from app.config import Settings
from app.errors import AppError, PayloadTooLarge
from app.telemetry import STRIPE_EVENTS, get_logger

log = get_logger(__name__)

MAX_EVENT_BYTES = 2**20
"""Stripe's largest events have a few hundred kilobytes."""
SIGNATURE_HEADER = "stripe-signature"

# No customer calls this: it is not in the document of the interface.
router = APIRouter(include_in_schema=False)


@router.post("/webhooks/stripe", response_model=None)
async def receive(request: Request) -> Response:
    """Takes an event in."""
    settings: Settings = request.app.state.settings
    body = await request.body()
    try:
        if len(body) > MAX_EVENT_BYTES:
            raise PayloadTooLarge(f"An event is at most {MAX_EVENT_BYTES // 2**20} MiB.")
        verify_webhook(body, request.headers.get(SIGNATURE_HEADER), settings.webhook_secrets)
        async with Services.of(request.app.state).database.begin() as connection:
            is_new = await inbox.store(connection, body)
    except AppError as error:
        # Without the body: whoever forges one does not write our log.
        log.warning("stripe.event_refused", code=error.code)
        STRIPE_EVENTS.labels("refused").inc()
        raise
    STRIPE_EVENTS.labels("stored" if is_new else "duplicate").inc()
    answer: dict[str, Any] = {"received": True}
    return Response(to_json(answer), media_type="application/json")
