"""What protects forms and links, apart from the pages that use it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import FormData, UploadFile

from app.errors import BadRequest
from app.portal.forms import local_path, text_of, texts_of, usd_of, whole_of


@pytest.mark.parametrize("path", ["/", "/usage", "/usage?span=week&model=a%2Fb", "/keys/019ab4b0#x", "/用量"])
def test_a_path_of_ours_is_followed(path: str) -> None:
    assert local_path(path) == path


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "usage",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/\n/evil.example",
        "/a\r\nset-cookie: x=1",
        " //evil.example",
        "/x\\..\\evil",
        7,
    ],
)
def test_what_may_lead_elsewhere_is_not(address: object) -> None:
    assert local_path(address) == "/overview"
    assert local_path(address, "/") == "/"


@given(st.text(alphabet="/\\.:@?#ahtps \t\r\n\x00\x0b\u2028%", max_size=12))
def test_nothing_that_is_followed_names_a_host(address: str) -> None:
    path = local_path(address)
    assert path.startswith("/")
    assert not path.startswith(("//", "/\\"))
    assert path.isprintable()


def test_a_field_is_text_without_blanks_and_a_file_is_none() -> None:
    form = FormData([("a", " x "), ("b", UploadFile(file=None)), ("c", "1"), ("c", "2")])  # type: ignore[arg-type]
    assert text_of(form, "a") == "x"
    assert text_of(form, "b") == ""
    assert text_of(form, "missing") == ""
    assert texts_of(form, "c") == ("1", "2")
    assert texts_of(form, "b") == ()


@pytest.mark.parametrize(("text", "whole"), [("", None), ("0", 0), (" 12 ", 12), ("007", 7)])
def test_a_whole_number(text: str, whole: int | None) -> None:
    assert whole_of(FormData(n=text), "n") == whole


@pytest.mark.parametrize("text", ["-1", "1.0", "1,000", "1e3", "٣", "²", "9" * 16, "one"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        whole_of(FormData(n=text), "n")
    assert refusal.value.param == "n"


@pytest.mark.parametrize(("text", "pico_usd"), [("", None), ("25", 25 * 10**12), (" 0.000001 ", 10**6)])
def test_an_amount(text: str, pico_usd: int | None) -> None:
    assert usd_of(FormData(n=text), "n") == pico_usd


def test_what_is_no_amount() -> None:
    with pytest.raises(BadRequest) as refusal:
        usd_of(FormData(n="-1"), "n")
    assert refusal.value.param == "n"
