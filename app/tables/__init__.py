"""All tables. Constraints live here and in the database, never in Python alone.

Ids are time-ordered UUIDs made by the application (``new_id``), so that a row's id
is known before it is written. Times are aware UTC, tokens are bigint, money is
an exact bigint of 10^-12 USD, the unit in which tokens x price is whole: up to nine
million USD. The migrations are the authority for what a database holds;
a test compares them with this package.
"""

from app.tables.accounts import (
    ORG_STATUSES,
    REVOKE_REASONS,
    ROLES,
    ApiKey,
    AuditEntry,
    Invitation,
    Membership,
    Org,
    PasswordReset,
    PortalSession,
    RateBucket,
    RecoveryCode,
    SecondFactor,
    SignUp,
    User,
)
from app.tables.base import Base, new_id
from app.tables.billing import (
    CREDIT_KINDS,
    INTERVALS,
    OUTBOX_STATES,
    PAYMENT_PURPOSES,
    SUBSCRIPTION_STATUSES,
    CatalogPrice,
    CreditEntry,
    Invoice,
    MeteringPeriod,
    MeterOutbox,
    Payment,
    StripeEvent,
    Subscription,
)
from app.tables.usage import (
    BUDGET_STATUSES,
    RESTRICTIONS,
    USAGE_KINDS,
    USAGE_STATES,
    AnswerPart,
    IdempotencyKey,
    OrgBudget,
    Reservation,
    RolledHour,
    UsageEvent,
    UsageRollupHour,
)

__all__ = [
    "BUDGET_STATUSES",
    "CREDIT_KINDS",
    "INTERVALS",
    "ORG_STATUSES",
    "OUTBOX_STATES",
    "PAYMENT_PURPOSES",
    "RESTRICTIONS",
    "REVOKE_REASONS",
    "ROLES",
    "SUBSCRIPTION_STATUSES",
    "USAGE_KINDS",
    "USAGE_STATES",
    "AnswerPart",
    "ApiKey",
    "AuditEntry",
    "Base",
    "CatalogPrice",
    "CreditEntry",
    "IdempotencyKey",
    "Invitation",
    "Invoice",
    "Membership",
    "MeterOutbox",
    "MeteringPeriod",
    "Org",
    "OrgBudget",
    "PasswordReset",
    "Payment",
    "PortalSession",
    "RateBucket",
    "RecoveryCode",
    "Reservation",
    "RolledHour",
    "SecondFactor",
    "SignUp",
    "StripeEvent",
    "Subscription",
    "UsageEvent",
    "UsageRollupHour",
    "User",
    "new_id",
]
