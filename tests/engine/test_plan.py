import pytest

from app.engine.plan import context_buckets, make_plan

AVX512 = (4, 8, 16, 24, 40, 48, 72, 80, 136, 264)


def test_rows_are_padded_to_widths_that_agree() -> None:
    plan = make_plan(16, 256, AVX512)
    assert plan.columns == {1: 4, 8: 8, 16: 16}
    assert plan.shapes.rows == plan.groups == (1, 8, 16)
    assert (plan.padded(1), plan.padded(5), plan.padded(17)) == (4, 8, 24)


@pytest.mark.parametrize("num_slots", [1, 3, 7, 16, 24, 32, 100])
def test_the_largest_call_covers_all_slots_and_no_call_has_fewer_columns_than_rows(num_slots: int) -> None:
    plan = make_plan(num_slots, 256, AVX512)
    assert plan.shapes.num_slots == num_slots
    assert all(columns >= rows and columns in AVX512 for rows, columns in plan.columns.items())


def test_parts_of_prompts_have_widths_that_agree_too() -> None:
    shapes = make_plan(32, 256, AVX512).shapes
    assert all(parts * length in AVX512 for parts, length in shapes.prefills)
    assert len(shapes.parts) > 1
    assert (shapes.chunk, shapes.lengths) == (24, (8, 24, 48, 136))
    assert max(length for parts, length in shapes.prefills if parts > 1) == shapes.chunk


def test_no_part_is_longer_than_a_context_or_than_pays() -> None:
    assert make_plan(32, 100, AVX512).shapes.lengths == (8, 24, 48)
    assert make_plan(32, 20, AVX512).shapes.lengths == (8, 24)
    assert make_plan(4, 256, AVX512, is_recurrent=True).shapes.lengths == (8, 24)


def test_a_length_that_does_not_agree_is_not_used() -> None:
    shapes = make_plan(32, 256, (16, 32, 48, 64, 80)).shapes
    assert (shapes.lengths, shapes.parts) == ((16, 48, 80), (1, 5))


def test_a_small_model_has_few_calls_to_compile() -> None:
    shapes = make_plan(16, 256, AVX512, is_small=True).shapes
    assert (shapes.rows, shapes.lengths) == ((4, 16), (24,))


def test_without_widths_every_call_has_all_rows_and_one_part() -> None:
    plan = make_plan(5, 256, ())
    assert (plan.columns, plan.shapes.parts) == ({5: 5}, (1,))


def test_an_accelerator_gets_long_parts() -> None:
    plan = make_plan(16, 256, AVX512, is_accelerator=True)
    assert plan.shapes.chunk > make_plan(16, 256, AVX512).shapes.chunk
    assert plan.groups == (16,)  # there a compiler reads part of a variable where it lies


@pytest.mark.parametrize(
    ("length", "expected"), [(64, (64,)), (256, (256,)), (600, (256, 512, 600)), (1024, (256, 512, 1024))]
)
def test_contexts_double_up_to_the_whole(length: int, expected: tuple[int, ...]) -> None:
    assert context_buckets(length) == expected


def test_the_shortest_context_that_holds_all_positions_is_read() -> None:
    plan = make_plan(4, 600, AVX512)
    assert [plan.context(n) for n in (1, 256, 257, 600, 608)] == [256, 256, 512, 600, 600]


@pytest.mark.parametrize("num_slots", [1, 3, 7, 32, 100])
def test_with_kernels_a_call_has_as_many_columns_as_rows(num_slots: int) -> None:
    plan = make_plan(num_slots, 600, (), has_kernels=True)
    assert plan.shapes.num_slots == num_slots
    assert all(columns == rows for rows, columns in plan.columns.items())
    assert min(plan.columns) == 1
    assert [plan.padded(count) for count in (1, 3, 33)] == [1, 3, 33]


def test_with_kernels_one_call_reads_any_context() -> None:
    assert make_plan(32, 600, (), has_kernels=True).contexts == (600,)


def test_with_kernels_a_lone_prompt_is_cut_by_chunks_and_others_by_more() -> None:
    shapes = make_plan(32, 600, AVX512, has_kernels=True).shapes
    assert (shapes.chunk, shapes.lengths, shapes.parts) == (32, (8, 32, 128), (1, 5))
    assert shapes.longest_alone == 32
    assert make_plan(32, 100, (), has_kernels=True).shapes.lengths == (8, 32)
    assert make_plan(4, 600, (), has_kernels=True, is_small=True).shapes.lengths == (32,)
    assert make_plan(32, 600, (), has_kernels=True, is_recurrent=True).shapes.lengths == (8, 32)
