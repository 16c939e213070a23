"""``tollgate keys``: who may call."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from app.cli.context import usd_option, with_database
from app.errors import BadRequest

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.config import Settings
    from app.db import Database
    from app.keys import KeyListing

app = typer.Typer(no_args_is_help=True, help="API keys of an organisation.")


Org = Annotated[UUID, typer.Option("--org", help="Id of the organisation.", show_default=False)]
KeyId = Annotated[UUID, typer.Argument(help="Id of the key, as `keys list` shows it.", show_default=False)]
Scope = Annotated[
    list[str] | None,
    typer.Option(
        help="generation, classification, embedding, usage or keys; may be repeated (default: all but keys).",
        show_default=False,
    ),
]
Model = Annotated[
    list[str] | None, typer.Option(help="A model it may use; may be repeated (default: all).", show_default=False)
]
Network = Annotated[
    list[str] | None,
    typer.Option("--ip", help="A network it may be used from, CIDR; may be repeated.", show_default=False),
]
Expires = Annotated[
    datetime | None,
    typer.Option(help="When it ends, UTC (default: never).", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
]
RequestsPerMinute = Annotated[int | None, typer.Option(help="Its own limit (default: the plan's).")]
TokensPerMinute = Annotated[int | None, typer.Option(help="Its own limit (default: the plan's).")]
MonthlyCap = Annotated[str | None, typer.Option(help="What it may cost in a calendar month, USD (default: no limit).")]


@app.command(epilog="Example: tollgate keys create --org ID --name laptop --scope generation --expires 2027-01-31")
def create(
    org: Org,
    name: Annotated[str, typer.Option(help="What the key is for.", show_default=False)],
    scope: Scope = None,
    model: Model = None,
    ip: Network = None,
    expires: Expires = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    monthly_cap: MonthlyCap = None,
) -> None:
    """Create a key and print it, alone and for the only time."""
    from app import key_terms, keys

    changes = _changes(name, scope, model, ip, expires, requests_per_minute, tokens_per_minute, monthly_cap)

    async def run(database: "Database", settings: "Settings") -> str:
        async with database.begin() as connection:
            new = await keys.mint_key(connection, settings, org, key_terms.Terms(**changes))
            created = await keys.get_key(connection, new.id)
            await _note(connection, created, "key.create", after=created.terms.told)
        return new.key

    print(with_database(run))


@app.command(epilog="Example: tollgate keys update 0198c0de-0000-7000-8000-000000000000 --monthly-cap 25 --reset ip")
def update(
    key_id: KeyId,
    name: Annotated[str | None, typer.Option(help="What the key is for.", show_default=False)] = None,
    scope: Scope = None,
    model: Model = None,
    ip: Network = None,
    expires: Expires = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    monthly_cap: MonthlyCap = None,
    reset: Annotated[
        list[str] | None,
        typer.Option(
            help="Take a limit away: model, ip, expires, requests-per-minute, tokens-per-minute or monthly-cap.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Change what a key may do; what is not named stays."""
    from app import keys

    changes = _changes(name, scope, model, ip, expires, requests_per_minute, tokens_per_minute, monthly_cap)
    changes |= {_limit(word): None for word in reset or ()}

    async def run(database: "Database", _: "Settings") -> None:
        async with database.begin() as connection:
            before = await keys.get_key(connection, key_id)
            changed = await keys.update_key(connection, key_id, changes)
            await _note(connection, changed, "key.change", before=before.terms.told, after=changed.terms.told)

    with_database(run)
    print(f"The key {key_id} is changed.")


@app.command(epilog="Example: tollgate keys rotate 0198c0de-0000-7000-8000-000000000000 --overlap-hours 72")
def rotate(
    key_id: KeyId,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=8784, help="How long the old key goes on working; 0: it ends at once.")
    ] = 24,
) -> None:
    """Print a successor of a key on the same terms; the old one works on for a while."""
    from app import keys

    async def run(database: "Database", settings: "Settings") -> str:
        old_ends_at = datetime.now(UTC) + timedelta(hours=overlap_hours)
        async with database.begin() as connection:
            new = await keys.rotate_key(connection, settings, key_id, old_ends_at=old_ends_at)
            old = await keys.get_key(connection, key_id)
            await _note(connection, old, "key.rotate", after={"replaced_by": new.id, "old_ends_at": old_ends_at})
        return new.key

    print(with_database(run))


@app.command(epilog="Example: tollgate keys revoke 0198c0de-0000-7000-8000-000000000000")
def revoke(key_id: KeyId) -> None:
    """End a key at once, for every process."""
    from app import keys

    async def run(database: "Database", _: "Settings") -> None:
        async with database.begin() as connection:
            await _note(connection, await keys.revoke_key(connection, key_id), "key.revoke")

    with_database(run)
    print(f"The key {key_id} is revoked.")


@app.command("list", epilog="Example: tollgate keys list --org ID")
def list_keys(org: Org) -> None:
    """List an organisation's keys, newest first; never a key in full."""
    from app import keys

    async def run(database: "Database", _: "Settings") -> "list[KeyListing]":
        async with database.begin() as connection:
            return await keys.list_keys(connection, org)

    now = datetime.now(UTC)
    for key in with_database(run):
        line = f"{key.id}  {key.prefix}…{key.last4}  {key.state(now):7}  {','.join(key.scopes)}  {key.name}"
        print(line if key.replaced_by is None else f"{line}  (replaced by {key.replaced_by})")


async def _note(
    connection: "AsyncConnection",
    key: "KeyListing",
    action: str,
    *,
    before: "dict[str, Any] | None" = None,
    after: "dict[str, Any] | None" = None,
) -> None:
    """Writes into the organisation's audit log what the operator did; the last step of its transaction."""
    from app import audit

    await audit.record(
        connection,
        org_id=key.org_id,
        actor=audit.OPERATOR,
        action=action,
        target=f"key:{key.id}",
        before=before,
        after=after,
    )


def _changes(
    name: str | None,
    scope: list[str] | None,
    model: list[str] | None,
    ip: list[str] | None,
    expires: datetime | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    monthly_cap: str | None,
) -> dict[str, Any]:
    """The options that were given, as fields of ``key_terms.Terms``."""
    from app import key_terms

    given = {
        "name": name,
        "scopes": tuple(scope) if scope else None,
        "allowed_models": tuple(model) if model else None,
        "ip_allow": key_terms.parse_networks(ip) if ip else None,
        "expires_at": expires.replace(tzinfo=UTC) if expires else None,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "monthly_cap": usd_option(monthly_cap, "--monthly-cap"),
    }
    return {field: value for field, value in given.items() if value is not None}


def _limit(word: str) -> str:
    """The field of ``key_terms.Terms`` behind a word of ``--reset``."""
    fields = {"model": "allowed_models", "ip": "ip_allow", "expires": "expires_at"}
    same = ("requests-per-minute", "tokens-per-minute", "monthly-cap")
    fields |= {limit: limit.replace("-", "_") for limit in same}
    if word not in fields:
        raise BadRequest(f"'{word}' is not a limit: {', '.join(fields)}.", param="reset")
    return fields[word]
