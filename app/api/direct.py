"""The routes that run models, answered without the framework's routing and dependencies.

They are nearly all of the traffic, and what the framework does for a request (it matches
routes one by one, solves dependencies, opens three stacks of contexts) costs more than
checking its key and its body. They stay routes of the framework as well, which describes
them in its document and answers other methods; a handler cannot tell the difference.

What a handler takes is a ``Call`` and nothing else.
"""

from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.call import require_call
from app.api.keeping import keeping
from app.auth import require_key


class DirectRoutes:
    """Answers a POST to one of the routes; whatever else comes goes on.

    Errors are raised for the request's edge, which answers them (``app.api.middleware``).

    Args:
        app: The framework's own routing.
        routers: Whose routes are answered here; none has parameters in its path.
    """

    def __init__(self, app: ASGIApp, routers: Sequence[APIRouter]) -> None:
        self._app = app
        self._routes: Mapping[str, APIRoute] = {
            route.path: route for router in routers for route in router.routes if isinstance(route, APIRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other ASGI events go on."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive)
        call = await require_call(request, await require_key(request))
        response = await route.endpoint(call)
        if call.key.prompt_retention_days is not None:
            send = keeping(send, call, call.key.prompt_retention_days, request.app.state.prompts)
        await response(scope, receive, send)
