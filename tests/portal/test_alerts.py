"""Members see what was told, and choose which addresses are called."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import text

from app import mail
from app.alerts import endpoints, thresholds
from app.alerts.calls import Caller
from app.alerts.notifications import Messenger, send_due
from app.errors import MailUnavailable, NotificationFailed
from app.portal.alert_mails import alert_mailer, limit_reached
from app.portal.i18n import LANGUAGES
from tests.api.world import World
from tests.portal.visiting import Browser, visiting

HOOK = "https://acme.example/hook"


async def addresses(world: World, org_id: UUID) -> list[tuple[UUID, str, int]]:
    async with world.database.begin() as connection:
        found = await endpoints.list_endpoints(connection, org_id)
    return [(one.id, one.url, one.secret_version) for one in found]


async def tell(world: World, statement: str = "UPDATE org_budgets SET spend_cap = 0") -> None:
    async with world.database.begin() as connection:
        await connection.execute(text(statement))
    await thresholds.tell_due(world.database, datetime.now(UTC))


async def test_an_address_is_added_shown_with_its_secret_renewed_and_removed(
    world: World, acme: UUID, owner: Browser
) -> None:
    await owner.send_form("/alerts/webhooks", "/alerts", url=HOOK)
    ((id, url, version),) = await addresses(world, acme)
    assert (url, version) == (HOOK, 1)
    assert endpoints.secret_of(world.settings, id, 1) in await owner.page("/alerts")
    await owner.send_form(f"/alerts/webhooks/{id}/renew", "/alerts")
    page = await owner.page("/alerts")
    assert endpoints.secret_of(world.settings, id, 2) in page
    assert endpoints.secret_of(world.settings, id, 1) not in page
    assert (await owner.send_form(f"/alerts/webhooks/{id}/test", "/alerts")).headers[
        "location"
    ] == "/alerts?done=tested"
    page = await owner.page("/alerts?done=tested")
    assert "A test event is on its way." in page
    assert f'<td class="address">{HOOK}</td>' in page
    await owner.send_form(f"/alerts/webhooks/{id}/remove", "/alerts")
    assert await addresses(world, acme) == []
    async with world.database.begin() as connection:
        actions = await connection.execute(text("SELECT action FROM audit_log ORDER BY id"))
        assert list(actions.scalars()) == ["webhook.add", "webhook.renew", "webhook.remove"]


async def test_a_wrong_address_is_told_beside_it(world: World, acme: UUID, owner: Browser) -> None:
    answer = await owner.send_form("/alerts/webhooks", "/alerts", url="<b>nowhere")
    assert answer.status_code == 400
    assert "A webhook address begins with https://" in answer.text
    assert "&lt;b&gt;nowhere" in answer.text
    assert await addresses(world, acme) == []


async def test_what_was_told_and_sent_is_shown(world: World, acme: UUID, owner: Browser) -> None:
    assert "No limit has been used by half yet." in await owner.page("/alerts")
    await owner.send_form("/alerts/webhooks", "/alerts", url=HOOK)
    await tell(world)
    page = await owner.page("/alerts")
    for word in ("Cap of the month", "100 %", f"owner@{acme.hex}.example", "on its way"):
        assert word in page


@pytest.mark.parametrize(("role", "reads", "writes"), [("admin", True, True), ("billing", True, True)])
async def test_who_may(world: World, acme: UUID, role: str, reads: bool, writes: bool) -> None:
    async with visiting(world, acme, role) as member:
        assert ((await member.get("/alerts")).status_code == 200) is reads
        assert ((await member.send_form("/alerts/webhooks", "/alerts", url=HOOK)).status_code == 303) is writes


async def test_others_may_not(world: World, acme: UUID, owner: Browser) -> None:
    await owner.send_form("/alerts/webhooks", "/alerts", url=HOOK)
    ((id, *_),) = await addresses(world, acme)
    async with visiting(world, acme, "developer") as member:
        assert (await member.get("/alerts")).status_code == 403
        answer = await member.send_form(f"/alerts/webhooks/{id}/remove", "/settings")
        assert answer.status_code == 403
    for unknown in ("nonsense", str(acme)):
        assert (await owner.send_form(f"/alerts/webhooks/{unknown}/remove", "/alerts")).status_code == 404
    assert len(await addresses(world, acme)) == 1


@pytest.mark.parametrize(
    ("statement", "subject", "words"),
    [
        ("UPDATE org_budgets SET spend_cap = 0", "100% of its cap", "Requests are refused until the cap is raised"),
        ("UPDATE org_budgets SET plan = 'free', tokens_used = 800000", "80% of its tokens", "1,000,000 tokens"),
    ],
)
async def test_a_mail_says_what_and_where(
    world: World, acme: UUID, owner: Browser, statement: str, subject: str, words: str
) -> None:
    await tell(world, statement)
    caller = Caller()
    messenger = Messenger(world.settings, caller, alert_mailer(world.settings, world.database))
    assert await send_due(world.database, messenger, datetime.now(UTC)) == 1
    await caller.aclose()
    (file,) = world.settings.mail_dir.glob("*.eml")
    written = " ".join(file.read_text().split())
    for word in (f"owner@{acme.hex}.example", f"Acme has used {subject}", words, world.settings.portal_url):
        assert word in written


async def test_a_mail_server_that_is_away_is_tried_again(
    world: World, acme: UUID, owner: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise MailUnavailable("The mail could not be sent.")

    monkeypatch.setattr("app.portal.alert_mails.send", refuse)
    event = {"data": {"organization": str(acme), "measure": "credit", "percent": 50, "limit": "1"}}
    with pytest.raises(NotificationFailed):
        await alert_mailer(world.settings, world.database)("a@acme.example", event)
    assert mail.send is not refuse


@pytest.mark.parametrize("measure", ["spend_cap", "token_limit", "included", "credit"])
@pytest.mark.parametrize("percent", [50, 100])
@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda language: language.code)
def test_every_limit_has_its_words(language: object, measure: str, percent: int) -> None:
    data = {"measure": measure, "percent": percent, "limit": str(10**12)}
    written = limit_reached(language, "a@acme.example", "Acme", data, "https://tollgate.example")  # type: ignore[arg-type]
    assert "%(" not in written.subject + written.text
    assert f"{percent}%" in written.subject
    assert written.text.rstrip().endswith("/limits" if measure == "spend_cap" else "/billing")
