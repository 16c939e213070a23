"""The framing of events survives any text."""

import json

from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from pydantic import BaseModel

from app.api import sse
from app.errors import Overloaded


class Body(BaseModel):
    text: str
    note: str | None = None


@given(st.lists(st.text(max_size=20), max_size=6), st.data())
def test_the_official_decoder_reads_back_every_event_however_the_bytes_arrive(
    texts: list[str], data: st.DataObject
) -> None:
    raw = b"".join(sse.event(Body(text=text)) + sse.KEEP_ALIVE for text in texts) + sse.DONE
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    chunks = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    events = [event.data for event in SSEDecoder().iter_bytes(iter(chunks))]
    assert events[-1] == "[DONE]"
    # A keep-alive is no event.
    assert [json.loads(event) for event in events[:-1]] == [{"text": text} for text in texts]


def test_a_field_appears_exactly_where_it_was_set() -> None:
    assert sse.event(Body(text="a", note=None)) == b'data: {"text":"a","note":null}\n\n'
    assert sse.event(Body(text="a")) == b'data: {"text":"a"}\n\n'


def test_an_error_event_has_the_body_of_an_error_answer() -> None:
    (event,) = SSEDecoder().iter_bytes(iter([sse.error_event(Overloaded("Full."))]))
    assert json.loads(event.data) == {
        "error": {"message": "Full.", "type": "server_error", "param": None, "code": "overloaded"}
    }
