"""The table of roles and what they may do."""

from dataclasses import dataclass

import pytest

from app.accounts.permissions import PERMISSIONS, allows, require
from app.errors import PermissionDenied
from app.tables import ROLES


@dataclass
class Person:
    role: str


def test_every_role_has_its_permissions() -> None:
    assert tuple(PERMISSIONS) == ROLES


def test_an_owner_may_do_everything() -> None:
    assert PERMISSIONS["owner"] == frozenset().union(*PERMISSIONS.values())


def test_an_admin_may_do_all_but_delete_the_organisation_and_make_owners() -> None:
    assert PERMISSIONS["owner"] - PERMISSIONS["admin"] == {"org.delete", "owners.write"}


def test_money_and_keys_are_in_different_hands() -> None:
    assert not allows("developer", "billing.read")
    assert not allows("developer", "limits.write")
    assert not allows("billing", "keys.read")
    assert allows("billing", "members.read")
    assert not allows("billing", "members.write")


def test_a_viewer_changes_nothing() -> None:
    assert PERMISSIONS["viewer"] == {"overview.read", "usage.read"}


def test_what_a_role_lacks_is_refused() -> None:
    require(Person("developer"), "keys.write")
    with pytest.raises(PermissionDenied) as refusal:
        require(Person("viewer"), "keys.write")
    assert refusal.value.code == "role_not_allowed"


def test_a_permission_that_was_never_given_is_refused_to_everybody() -> None:
    assert not any(allows(role, "keys.wirte") for role in ROLES)
