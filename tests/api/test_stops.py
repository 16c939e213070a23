"""Text is released only once it is certain, however it arrives."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from app.api.stops import StopMatcher, TextAssembler, Token
from app.rpc import engine_pb2 as pb
from tests.api.world import BOS, byte_tokenizer

TOKENIZER = byte_tokenizer()
LETTERS = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="abé\n", min_size=1, max_size=4), max_size=4)
# Some characters of which are several tokens.
TEXTS = st.text(alphabet="abéè語\n", max_size=12)


class Bytes:
    """A detokenizer whose tokens are bytes; holds back an unfinished character."""

    def __init__(self) -> None:
        self._pending = b""

    def push(self, token_id: int) -> str:
        self._pending += bytes([token_id])
        try:
            text = self._pending.decode()
        except UnicodeDecodeError:
            return ""
        self._pending = b""
        return text

    def push_all(self, token_ids: Sequence[int]) -> str:
        try:
            text = (self._pending + bytes(token_ids)).decode()
        except UnicodeDecodeError:
            return ""
        self._pending = b""
        return text

    def flush(self) -> str:
        text, self._pending = self._pending.decode("utf-8", "replace"), b""
        return text


def expected(text: str, stops: list[str]) -> str:
    """The answer by definition: read character by character, cut at the first complete stop string."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(len(stop) for stop in complete)]
    return text


@given(TEXTS, STOPS, st.data())
def test_pieces_join_to_the_same_answer_wherever_the_text_is_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        # Never more than the answer: nothing shown has to be taken back.
        assert expected(text, stops).startswith(shown)
        if matcher.is_stopped:
            break
    else:
        shown += matcher.flush()
    assert shown == expected(text, stops)


def test_text_that_cannot_become_a_stop_string_is_not_held_back() -> None:
    matcher = StopMatcher(["\n\n"])
    assert matcher.push("one\n") == "one"
    assert matcher.push("two") == "\ntwo"


@given(TEXTS | st.text(max_size=12), STOPS)
def test_every_token_is_counted_once_and_the_completing_one_is_the_last(text: str, stops: list[str]) -> None:
    assembler = TextAssembler(Bytes(), stops)
    shown, tokens = "", list[Token]()
    pushed = 0
    for byte in text.encode():
        piece = assembler.push(byte)
        pushed += 1
        shown += piece.text
        tokens += piece.tokens
        if assembler.is_stopped:
            break
    else:
        piece = assembler.flush()
        shown += piece.text
        tokens += piece.tokens
    assert shown == expected(text, stops)
    assert [token.id for token in tokens] == list(text.encode()[:pushed])


@given(st.text(min_size=1, max_size=12))
def test_no_piece_ends_inside_a_character(text: str) -> None:
    assembler = TextAssembler(Bytes(), ())
    pieces = [assembler.push(byte) for byte in text.encode()]
    for piece in pieces:
        assert piece.text in text
    assert "".join(piece.text for piece in pieces) == text


def test_tokens_of_an_unfinished_character_wait_for_its_end() -> None:
    assembler = TextAssembler(Bytes(), ())
    first, second = (assembler.push(byte) for byte in "é".encode())
    assert (first.text, first.tokens) == ("", ())
    assert (second.text, len(second.tokens)) == ("é", 2)


def test_a_token_whose_text_is_held_back_is_not_counted_yet() -> None:
    assembler = TextAssembler(Bytes(), ["ab"])
    assert [token.id for token in assembler.push(ord("x")).tokens] == [ord("x")]
    assert assembler.push(ord("a")).tokens == ()
    assert [token.id for token in assembler.push(ord("c")).tokens] == [ord("a"), ord("c")]


def test_offsets_are_positions_in_the_answer() -> None:
    assembler = TextAssembler(Bytes(), ())
    tokens = [token for byte in "aéb".encode() for token in assembler.push(byte).tokens]
    assert [token.offset for token in tokens] == [0, 1, 1, 2]


def test_an_unfinished_character_at_the_end_shows_as_a_replacement() -> None:
    assembler = TextAssembler(Bytes(), ())
    assembler.push("é".encode()[0])
    piece = assembler.flush()
    assert piece.text == "\ufffd"
    assert len(piece.tokens) == 1


def test_a_stop_string_that_the_last_flush_completes_still_ends_the_answer() -> None:
    assembler = TextAssembler(Bytes(), ["\ufffd"])
    assembler.push("é".encode()[0])
    assert assembler.flush().text == ""
    assert assembler.is_stopped


@given(LETTERS, STOPS, st.integers(0, 8))
def test_the_text_of_the_least_tokens_is_shown_whatever_it_says(text: str, stops: list[str], min_tokens: int) -> None:
    assembler = TextAssembler(Bytes(), stops, min_tokens)
    shown = ""
    for byte in text.encode():
        shown += assembler.push(byte).text
        if assembler.is_stopped:
            break
    else:
        shown += assembler.flush().text
    assert shown == text[:min_tokens] + expected(text[min_tokens:], stops)


# Characters whole and in parts, and a token without text.
CHUNKS = st.lists(st.lists(st.sampled_from([*b"ab", *"é".encode(), BOS]), max_size=4), max_size=6)


@given(CHUNKS, st.just([]) | STOPS)
def test_tokens_that_come_together_give_what_they_give_one_by_one(chunks: list[list[int]], stops: list[str]) -> None:
    together, alone = (TextAssembler(TOKENIZER.detokenizer(), stops) for _ in range(2))
    for number, chunk in enumerate(chunks, 1):
        piece = together.push_all(chunk, is_last=number == len(chunks))
        pieces = []
        for token_id in chunk:
            pieces.append(alone.push(token_id))
            if alone.is_stopped:
                break
        if number == len(chunks) and not alone.is_stopped:
            pieces.append(alone.flush())
        assert piece.text == "".join(one.text for one in pieces)
        assert [token.id for token in piece.tokens] == [token.id for one in pieces for token in one.tokens]
        assert together.is_stopped == alone.is_stopped
        if alone.is_stopped:
            break


def test_offsets_of_scored_tokens_are_their_own_in_a_chunk_as_well() -> None:
    scores = [pb.TokenLogprob(token=byte, logprob=-1.0) for byte in b"abc"]
    piece = TextAssembler(Bytes(), ()).push_all(b"abc", scores)
    assert [token.offset for token in piece.tokens] == [0, 1, 2]
    assert [token.score for token in piece.tokens] == scores
