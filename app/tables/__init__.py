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
from app.tables.alerts import CHANNELS, MEASURES, NOTIFICATION_STATES, Alert, Notification, WebhookEndpoint
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
from app.tables.privacy import StoredRequest
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
    "CHANNELS",
    "CREDIT_KINDS",
    "INTERVALS",
    "MEASURES",
    "NOTIFICATION_STATES",
    "ORG_STATUSES",
    "OUTBOX_STATES",
    "PAYMENT_PURPOSES",
    "RESTRICTIONS",
    "REVOKE_REASONS",
    "ROLES",
    "SUBSCRIPTION_STATUSES",
    "USAGE_KINDS",
    "USAGE_STATES",
    "Alert",
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
    "Notification",
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
    "StoredRequest",
    "StripeEvent",
    "Subscription",
    "UsageEvent",
    "UsageRollupHour",
    "User",
    "WebhookEndpoint",
    "new_id",
]
