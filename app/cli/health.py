"""``tollgate health``: one question to a running role, for a container's health check."""

import typer

from app.cli.context import settings_for_command
from app.errors import ConfigError

TIMEOUT_S = 3.0

app = typer.Typer(no_args_is_help=True, help="Ask a running role whether it is well; exit code 0 or 1.")


@app.command(epilog="Example: tollgate health http")
def http() -> None:
    """Whether the API process on this machine answers."""
    import http.client

    settings = settings_for_command(log_level="warning")
    # A server on every interface is reached on the loopback one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared only
    connection = http.client.HTTPConnection(host, settings.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(f"the API does not answer: {error}") from None
    finally:
        connection.close()
    if status != 200:
        raise ConfigError(f"the API answered {status}")


@app.command(epilog="Example: tollgate health engine")
def engine() -> None:
    """Whether the engine has loaded its models and accepts work."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    target = settings_for_command(log_level="warning").engine_listen
    with grpc.insecure_channel(target.replace("0.0.0.0:", "127.0.0.1:")) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise ConfigError(f"the engine does not answer: {error.code().name}") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise ConfigError("the engine is not ready")
