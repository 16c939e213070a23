"""The portal in its languages: which one a visitor reads, and how it writes numbers, dates and amounts."""

import ast
import inspect
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.accounts.users import find_login
from app.errors import AppError, BadRequest
from app.portal.i18n import DOMAIN, LANGUAGE_COOKIE, LANGUAGES, LOCALE_DIR, preferred
from tests.api.world import World
from tests.portal.test_usage_pages import bill
from tests.portal.visiting import Browser, visiting

ROOT = Path(__file__).parents[2]
EN, ZH = LANGUAGES["en"], LANGUAGES["zh"]
AT = datetime(2026, 11, 27, 6, 8, 9, tzinfo=UTC)
TEMPLATES = sorted((ROOT / "app" / "portal" / "templates").glob("*.html"))
NAMES = {
    *("Tollgate", "PDF", "Stripe", "curl", "Python", "JavaScript", "top_p", "UTC", "retry-after"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    *("x-should-retry: false", "x-budget-stopped"),
}
"""What is the same in every language."""
SHOWN_ON_PAGES = (
    *("app/portal", "app/accounts", "app/alerts", "app/privacy"),
    *("app/keys.py", "app/key_terms.py", "app/auth.py", "app/db.py", "app/mail.py"),
    *(f"app/billing/{name}.py" for name in ("account", "catalog", "changes", "checkout", "gateway", "outbox")),
    *(f"app/billing/{name}.py" for name in ("receipts", "standing", "statement")),
)
"""Where errors are raised that a person may read."""
CATALOGUES = sorted(LOCALE_DIR.glob(f"*/LC_MESSAGES/{DOMAIN}.po"))


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.9", "en"),
        ("de-DE,de;q=0.9,zh;q=0.5,en;q=0.4", "zh"),
        ("de,fr", "en"),
        ("en;q=0.1, ZH-hans;q=0.9", "zh"),
        ("zh;q=0", "en"),
        ("zh;q=nonsense,en;q=0.1", "en"),
        ("zh;v=1", "zh"),
        (";;;,,,q=1", "en"),
        ("de," * 500 + "zh", "en"),
    ],
)
def test_a_browser_says_what_its_owner_reads(header: str, code: str) -> None:
    assert preferred(header).code == code


@given(st.text(alphabet="zhen-;q=.0123,* \t", max_size=60))
def test_any_header_means_a_language(header: str) -> None:
    assert preferred(header) in LANGUAGES.values()


def test_numbers_dates_and_amounts_are_written_as_their_readers_do() -> None:
    assert (EN.number(1234567), ZH.number(1234567)) == ("1,234,567", "1,234,567")
    assert (EN.compact(1_250_000), ZH.compact(1_250_000)) == ("1.2M", "125万")
    assert (EN.money(3_450_000), ZH.money(3_450_000)) == ("$0.000003", "US$0.000003")
    assert (EN.dollars(25 * 10**12), ZH.dollars(-(10**12) // 2)) == ("$25.00", "-US$0.50")
    assert EN.dollars(1_500_000) == "$0.000002"
    assert EN.rounded(Decimal("2345678901234.5")) == "$2.35"
    assert (EN.cents(499_000), ZH.cents(1)) == ("$4,990.00", "US$0.01")
    assert (EN.month(AT), ZH.month(AT)) == ("November 2026", "2026年11月")
    assert (EN.short_day(AT), ZH.short_day(AT)) == ("Nov 27", "11月27日")
    assert EN.percent(Decimal("0.42")) == "42%"
    assert EN.day(AT) == '<time datetime="2026-11-27">Nov 27, 2026</time>'
    assert ZH.minute(AT) == '<time datetime="2026-11-27T06:08:09Z">2026年11月27日 06:08 UTC</time>'
    assert ">3 minutes ago<" in EN.ago(AT, AT + timedelta(minutes=3))
    assert ">3分钟前<" in ZH.ago(AT, AT + timedelta(minutes=3))


def test_an_amount_is_rounded_half_to_even_as_the_api_does() -> None:
    assert [EN.money(pico) for pico in (500_000, 1_500_000, 2_500_000)] == ["$0.000000", "$0.000002", "$0.000002"]


def test_times_are_shown_in_utc_wherever_they_come_from() -> None:
    assert "Nov 27, 2026, 06:08 UTC" in EN.minute(AT.astimezone(tz=None))


def test_the_catalogues_are_up_to_date() -> None:
    script = ROOT / "scripts" / "update-messages.sh"
    venv = str(Path(sys.prefix))
    checked = subprocess.run(
        [script, "--check"], capture_output=True, text=True, env={"VENV": venv, "PATH": "/usr/bin:/bin"}, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_every_text_is_translated_with_the_same_placeholders(path: Path) -> None:
    with path.open("rb") as lines:
        catalogue = read_po(lines, locale=path.parts[-3])
    for message in catalogue:
        if not message.id:
            continue
        sources = [message.id] if isinstance(message.id, str) else [*message.id]
        written = [message.string] if isinstance(message.string, str) else list(message.string or ("",))
        assert all(written), f"{sources[0]!r} is not translated"
        assert not message.fuzzy, sources[0]
        if message.python_format:
            names = {name for source in sources for name in placeholders(source)}
            for text in written:
                assert set(placeholders(text)) <= names
                text % dict.fromkeys(names, "x")


def placeholders(text: str) -> list[str]:
    """The names in ``%(name)s``."""
    return [part.partition(")")[0] for part in text.split("%(")[1:] if set(part[:1]) <= set(string.ascii_letters)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_say_nothing_that_is_not_translated(path: Path) -> None:
    text = re.sub(r"{#.*?#}", "", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"{% trans.*?{% endtrans %}", "", text, flags=re.DOTALL)
    text = re.sub(r"{{.*?}}|{%.*?%}", "\0", text, flags=re.DOTALL)
    text = re.sub(r"<title>.*?</title>|<script.*?</script>", "", text.replace("aria-describedby", ""))
    told = re.findall(r'(?:aria-label|alt|title|placeholder)="([^"]*)"', text)
    told += re.sub(r"<[^>]*>", "\n", text).replace("\0", "\n").splitlines()
    words = {one.strip() for part in told for one in part.split("\0") if re.search("[A-Za-z]", one)}
    assert words <= NAMES


def test_errors_that_pages_show_are_translated() -> None:
    with CATALOGUES[0].open("rb") as lines:
        known = {message.id for message in read_po(lines, locale="zh_Hans_CN")}
    raised = [found for path in SHOWN_ON_PAGES for found in errors_in(ROOT / path)]
    assert len(raised) > 60
    assert [(place, message) for place, message in raised if message not in known] == []


def errors_in(path: Path) -> Iterator[tuple[str, str | None]]:
    """Where an error is made, and its message; None: it is put together there, so no catalogue can have it."""
    kinds = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AppError)}
    kinds.remove("StripeRefused")  # in the words of Stripe
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        tree = ast.parse(file.read_text())
        constants: dict[str, list[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                said = [one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant)]
                constants.setdefault(node.targets[0].id, []).extend(one for one in said if isinstance(one, str))
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds):
                continue
            place, message = f"{file.name}:{node.lineno}", node.args[0]
            if isinstance(message, ast.Name):
                yield from ((place, text) for text in constants.get(message.id, ()))
            else:
                yield place, str(message.value) if isinstance(message, ast.Constant) else None


def test_what_went_wrong_is_told_with_its_values() -> None:
    error = BadRequest("A list of networks has 1 to %(most)s.", values={"most": 100})
    assert error.message == EN.told(error) == "A list of networks has 1 to 100."
    assert ZH.told(error) == "网段列表须有 1 到 100 项。"
    assert ZH.told(BadRequest("100% of something")) == "100% of something"


def test_there_is_a_catalogue_for_every_language_but_english() -> None:
    assert {path.parts[-3] for path in CATALOGUES} == {one.locale_name for one in LANGUAGES.values()} - {"en_US"}
    assert ZH.gettext("Overview") == "概览"
    assert ZH.ngettext("%(count)s label", "%(count)s labels", 2) == "%(count)s 个标签"
    assert EN.ngettext("%(count)s label", "%(count)s labels", 2) == "%(count)s labels"
    assert ZH.gettext("not in any catalogue") == "not in any catalogue"


async def test_a_page_is_in_the_language_that_was_chosen(world: World, acme: UUID) -> None:
    await bill(world.database, acme, {})
    async with visiting(world, acme, **{LANGUAGE_COOKIE: "zh"}) as browser:
        for path, said in {
            "/overview": "本月花费",
            "/keys": "API 密钥",
            "/keys/new": "可用于",
            "/usage": "每日费用",
            "/usage/rows": "单个请求",
            "/limits": "您自设的上限",
            "/settings": "跟随系统",
            "/": "多种文本模型",
        }.items():
            page = await browser.page(path)
            assert '<html lang="zh-Hans"' in page
            assert said in page
        assert "US$0.000126" in await browser.page("/usage")
        assert f"{datetime.now(UTC):%Y年}" in await browser.page("/usage")
        answer = await browser.send_form("/limits", "/limits", spend_cap="much")
        assert "请输入金额" in answer.text
        assert "没有此密钥" in (await browser.get("/keys/nonsense")).text


async def test_the_choice_goes_before_the_browser_s(world: World, owner: Browser) -> None:
    chinese = {"accept-language": "zh-CN"}
    assert "概览" in (await owner.get("/overview", headers=chinese)).text
    answer = await owner.get("/language/en", params={"next": "/usage?span=week"}, headers=chinese)
    assert (answer.status_code, answer.headers["location"]) == (303, "/usage?span=week")
    assert "Overview" in (await owner.get("/overview", headers=chinese)).text
    owner.cookies.delete(LANGUAGE_COOKIE)
    owner.cookies.set(LANGUAGE_COOKIE, "klingon")
    assert "概览" in (await owner.get("/overview", headers=chinese)).text


async def test_a_link_to_a_language_leads_nowhere_else(owner: Browser) -> None:
    answer = await owner.get("/language/zh", params={"next": "//evil.example"})
    assert answer.headers["location"] == "/"
    assert (await owner.get("/language/klingon")).status_code == 404


async def test_mails_come_in_the_language_that_was_chosen(world: World, acme: UUID, owner: Browser) -> None:
    await owner.send_form("/settings", "/settings", language="zh")
    async with world.database.begin() as connection:
        login = await find_login(connection, f"owner@{acme.hex}.example")
    assert login is not None
    assert login.language == "zh"


async def test_settings_are_kept_in_the_browser(owner: Browser) -> None:
    answer = await owner.send_form("/settings", "/settings", language="zh", theme="dark")
    assert answer.headers["location"] == "/settings?saved=yes"
    page = await owner.page("/settings?saved=yes")
    assert '<html lang="zh-Hans" data-theme="dark">' in page
    assert "已保存" in page
    await owner.send_form("/settings", "/settings", language="klingon", theme="pink")
    assert '<html lang="zh-Hans" data-theme="dark">' in await owner.page("/settings")
    assert (await owner.post("/settings", data={"theme": "light"})).status_code == 403
