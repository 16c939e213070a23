"""What all tables have in common: ids, types of columns, closed lists of words."""

import os
import time
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Date, DateTime, Float, LargeBinary, Text, text
from sqlalchemy.orm import DeclarativeBase

from app.db import metadata

THIS_MONTH = text("(date_trunc('month', (now() AT TIME ZONE 'UTC')))::date")
"""The first day of the running month in UTC, as a column's default."""


def new_id() -> UUID:
    """A UUID version 7 (RFC 9562 section 5.7): milliseconds first, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return UUID(int=value)


def one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    """A constraint that ``column`` is one of ``values``, named after it."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


class Base(DeclarativeBase):
    """Aware times and 64-bit integers unless a column says otherwise."""

    metadata = metadata
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this class attribute
        datetime: DateTime(timezone=True),
        int: BigInteger(),
        date: Date(),
        float: Float(53),
        str: Text(),
        bytes: LargeBinary(),
    }
