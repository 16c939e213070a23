"""``tollgate db``: the schema and the address of the database."""

import typer

from app.cli.context import settings_for_command

app = typer.Typer(no_args_is_help=True, help="The database: its schema and its address.")


@app.command(epilog="Example: tollgate db migrate")
def migrate() -> None:
    """Bring the database to the newest schema. Safe to run twice or from two places."""
    import asyncio

    from app import migrate as migrations
    from app import postgres

    with postgres.available(settings_for_command(log_level="warning")) as url:
        asyncio.run(migrations.upgrade(url))
    print(f"The schema is at revision {migrations.head()}.")


@app.command(epilog='Example: psql "$(tollgate db url)"')
def url() -> None:
    """Print the address of the database in use, password included.

    The embedded one answers while `tollgate up` runs.
    """
    from app import postgres

    settings = settings_for_command(log_level="warning")
    print(settings.database_url or postgres.locate(settings.data_dir).url)
