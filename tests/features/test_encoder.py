from multiprocessing.reduction import ForkingPickler

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.core.batch import Events, Table
from morpheus.features.encoder import (
    FIRST_CODE,
    MAX_PYTHON_ROWS,
    MISSING,
    UNKNOWN,
    Category,
    DictionaryEncoder,
    EncodedSlice,
    Encoder,
    Number,
    deduplicate_rows,
    is_number,
)


def codes_of(column, values):
    """The code that a column gives each value."""
    rows = Encoder((column,)).encode(pl.Series("c", values, dtype=pl.String).to_frame())
    return rows.codes[rows.inverse, 0].tolist()


values_strategy = st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=40)


@given(values_strategy)
def test_value_seen_twice_has_a_code_and_others_are_unknown(values):
    column = Category.fit("c", pl.Series(values, dtype=pl.String))
    for value, code in zip(values, codes_of(column, values), strict=True):
        if value is None:
            assert code == MISSING
        elif values.count(value) > 1:
            assert column.vocabulary[code - FIRST_CODE] == value
        else:
            assert code == UNKNOWN


@given(values_strategy)
def test_codes_do_not_depend_on_the_order_of_the_history(values):
    series = pl.Series(values, dtype=pl.String)
    assert Category.fit("c", series) == Category.fit("c", series.reverse())


def test_empty_text_is_not_a_missing_value():
    column = Category.fit("c", pl.Series(["", "", "a", "a", None]))
    assert codes_of(column, ["", None]) == [2, MISSING]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_distinct_rows_restore_every_row(rows):
    codes = np.array(rows, dtype=np.int32)
    numbers = codes[:, :1].astype(np.float32) / 3
    found = deduplicate_rows(codes, numbers)
    assert np.array_equal(found.codes[found.inverse], codes)
    assert np.array_equal(found.numbers[found.inverse], numbers)
    assert len(found.codes) == len(set(rows))
    assert found.counts.sum() == len(rows)


def test_order_of_distinct_rows_does_not_depend_on_the_order_of_events():
    codes = np.arange(40, dtype=np.int32).reshape(20, 2) % 7
    none = np.zeros((20, 0), dtype=np.float32)
    forward, backward = deduplicate_rows(codes, none), deduplicate_rows(codes[::-1].copy(), none)
    assert np.array_equal(forward.codes, backward.codes)


def test_text_column_is_numeric_only_with_many_plain_numbers():
    assert is_number(pl.Series([str(n) for n in range(100)]))
    assert not is_number(pl.Series(["1", "2"] * 50)), "two values are words"
    assert not is_number(pl.Series([f"{n:012}" for n in range(100)])), "leading zeros"
    assert not is_number(pl.Series([str(10**17 + n) for n in range(100)])), "identifiers"


@pytest.mark.parametrize(
    ("scaler", "expected"), [("standard", [-1.0, 1.0, 3.0]), ("none", [0.0, 2.0, 4.0])]
)
def test_numbers_are_scaled_by_the_history(scaler, expected):
    column = Number.fit("n", pl.Series([0, 2] * 20), scaler)
    assert column.scale(pl.Series([0, 2, 4])).tolist() == pytest.approx(expected)


def test_gauss_rank_maps_the_median_to_zero_and_is_bounded():
    column = Number.fit("n", pl.Series(list(range(101))), "gauss_rank")
    low, middle, high = column.scale(pl.Series([-5, 50, 10_000])).tolist()
    assert middle == pytest.approx(0)
    # 5.199 standard deviations, of which the part beyond 4 counts as a logarithm.
    assert low == pytest.approx(-4 - np.log(2.199), abs=0.001)
    assert high == pytest.approx(4 + np.log(2.199), abs=0.001)


@pytest.mark.parametrize("scaler", ["standard", "gauss_rank"])
def test_one_extreme_number_in_the_history_does_not_change_the_scale(scaler):
    usual = list(range(100))
    with_extreme, without = (
        Number.fit("n", pl.Series(values, dtype=pl.Float64), scaler)
        for values in ([*usual, 1e12], usual)
    )
    values = pl.Series([-3.0, 12.0, 50.0, 90.0, 1e12])
    assert np.array_equal(with_extreme.scale(values), without.scale(values))


def test_numbers_near_the_quartiles_all_count_for_the_scale():
    values = pl.Series([0.0, 1.0, 2.0, 3.0, 22.0])
    column = Number.fit("n", values, "standard")
    assert column.scale(values).mean() == pytest.approx(0, abs=1e-6)
    assert column.inverse_scale(0) == pytest.approx(5.6)


@given(st.floats(-1e300, 1e300), st.floats(1e-9, 1e9))
def test_scaled_numbers_are_finite_ascending_and_grow_like_a_logarithm(value, std):
    column = Number("n", (0.0, std), (0.0, 1.0))
    z = float(column.scale(pl.Series([value]))[0])
    distance = min(abs(value) / std, np.finfo(np.float64).max)
    limited = distance if distance <= 4 else 4 + np.log1p(distance - 4)
    assert abs(z) == pytest.approx(limited, rel=1e-5)
    assert np.sign(z) in (0, np.sign(value))
    assert abs(z) < 1000


@given(st.floats(-1e6, 1e6))
def test_the_inverse_of_a_scaled_number_is_the_number(value):
    column = Number("n", (3.0, 20.0), (0.0, 1.0))
    z = float(column.scale(pl.Series([value]))[0])
    assert column.inverse_scale(z) == pytest.approx(value, rel=1e-3, abs=1e-3)


def test_missing_number_has_its_own_code_and_no_value():
    column = Number.fit("n", pl.Series([1, 2, 3, None]), "standard")
    values = pl.Series(["2", None, "x", "inf"])
    assert column.encode(values).tolist() == [FIRST_CODE, MISSING, UNKNOWN, UNKNOWN]
    assert column.scale(values).tolist() == [0, 0, 0, 0]


def test_constant_number_column_has_standard_deviation_one():
    column = Number.fit("n", pl.Series([7.0, 7.0]), "standard")
    assert column.scale(pl.Series([8.0])).tolist() == [1.0]


def test_absent_column_is_missing_in_every_event():
    frame = pl.DataFrame({"a": ["x", "x"], "b": ["y", "y"]})
    encoder = Encoder.fit(frame, ["a", "b"])
    rows = encoder.encode(frame.drop("b"))
    assert rows.codes[rows.inverse].tolist() == [[2, MISSING]] * 2


@pytest.mark.parametrize("hashes", [[0, 1, 2, 0], [7, 7, 7, 7], [5, 5, 9, 5]])
def test_different_rows_with_equal_hashes_stay_apart(hashes):
    rows_strategy = pl.DataFrame({"a": ["x", "y", None, "x"], "b": ["x", "x", "x", "x"]})
    dictionary = DictionaryEncoder(rows_strategy, rows_strategy.columns)
    dictionary.__dict__["row_hashes"] = np.array(hashes, dtype=np.uint64)
    found = EncodedSlice(rows_strategy, dictionary).unique_rows
    assert rows_strategy[found.first_index][found.inverse].equals(rows_strategy)


rows_strategy = st.lists(
    st.tuples(st.sampled_from(["x", "y", "", None]), st.sampled_from(["1.5", "n", None])),
    min_size=1,
    max_size=30,
)


@given(rows_strategy, rows_strategy, st.data())
def test_slice_of_a_table_is_encoded_as_if_it_were_alone(history, rows, data):
    frame = pl.DataFrame(rows, schema={"a": pl.String, "n": pl.String}, orient="row")
    past = pl.DataFrame(history, schema=frame.schema, orient="row")
    scale = Number("n", (0.0, 1.0), (0.0, 1.0))
    encoder = Encoder((Category.fit("a", past["a"]), Category.fit("n", past["n"]), scale))
    start = data.draw(st.integers(0, frame.height))
    part = frame.slice(start, data.draw(st.integers(0, frame.height - start)))
    alone = encoder.encode(part)
    in_table = encoder.encode(
        part, EncodedSlice(part, DictionaryEncoder(frame, frame.columns), start)
    )
    for name in ("codes", "numbers", "inverse"):
        assert np.array_equal(getattr(alone, name), getattr(in_table, name)), name


@given(rows_strategy, st.sampled_from([1, MAX_PYTHON_ROWS]), st.data())
def test_columns_learned_from_a_slice_of_a_table_are_those_of_its_values(rows, height, data):
    frame = pl.DataFrame(rows, schema={"a": pl.String, "n": pl.String}, orient="row")
    quantity = pl.int_range(pl.len()) * data.draw(st.integers(0, 3))
    frame = pl.concat([frame] * (height // frame.height + 1)).with_columns(
        text_quantity=quantity.cast(pl.String), quantity=quantity, flag=quantity % 2 == 0
    )
    start = data.draw(st.integers(0, frame.height - 1))
    part = frame.slice(start, data.draw(st.integers(1, frame.height - start)))
    encoded_slice = EncodedSlice(part, DictionaryEncoder(frame, frame.columns), start)
    fitted = Encoder.fit(part, frame.columns, encoded_slice=encoded_slice)
    assert fitted.digest == Encoder.fit(part, frame.columns).digest
    for column, values in zip(fitted.columns, part, strict=True):
        of_numbers = is_number(values)
        fit = Number.fit(values.name, values, "standard") if of_numbers else None
        assert column == (fit or Category.fit(values.name, values))


@given(rows_strategy)
def test_codes_of_few_and_of_many_rows_restore_the_same_values(rows):
    frame = pl.DataFrame(rows, schema={"a": pl.String, "n": pl.String}, orient="row")
    small = DictionaryEncoder(frame, frame.columns)
    large = DictionaryEncoder(
        pl.concat([frame] * (MAX_PYTHON_ROWS // frame.height + 1)), frame.columns
    )
    assert small.column_positions == large.column_positions
    for name, position in small.column_positions.items():
        for dictionary in (small, large):
            texts = {code: word for word, code in dictionary.value_codes(name).items()} | {-1: None}
            restored = [texts[code] for code in dictionary.codes[position][: frame.height].tolist()]
            assert restored == frame[name].to_list()
        assert len(small.value_codes(name)) == len(large.value_codes(name))


@pytest.mark.parametrize("names", [("a", "b"), ("a",)])
def test_slice_of_other_rows_or_fewer_columns_is_not_used(names):
    frame = pl.DataFrame({"a": ["x", "y", "y"], "b": ["u", "u", "v"]})
    encoder = Encoder.fit(pl.concat([frame, frame]), ["a", "b"])
    others = frame if names == ("a",) else frame.reverse()
    encoded_slice = EncodedSlice(others, DictionaryEncoder(others, names))
    right, found = encoder.encode(frame), encoder.encode(frame, encoded_slice)
    assert np.array_equal(found.codes[found.inverse], right.codes[right.inverse])


def test_slice_is_not_sent_to_other_processes():
    frame = pl.DataFrame({"a": ["x"]})
    batch = Events(user="ann", table=Table(frame), dict_codes=EncodedSlice.from_frame(frame, ["a"]))
    unpickled = ForkingPickler.loads(bytes(ForkingPickler.dumps(batch)))
    assert unpickled.dict_codes is None
    assert unpickled.table.to_frame().equals(frame)


def test_encoding_together_equals_encoding_one_by_one():
    frame = pl.DataFrame({"a": [*"xyxyxxz"], "n": [f"{n % 3}.5" for n in range(7)], "c": ["w"] * 7})
    encoder = Encoder.fit(frame, ["a", "n", "c"])
    encoded = encoder.encode(frame)
    for at in range(frame.height):
        alone = encoder.encode(frame[at : at + 1])
        assert alone.codes[0].tolist() == encoded.codes[encoded.inverse[at]].tolist()


def test_column_without_values_equals_an_absent_column():
    history = pl.DataFrame(
        {"verb": ["get", "get", "put", "put"], "of": ["a", "a", None, None], "size": [1, 2, 3, 4]}
    )
    fitted = Encoder.fit(history, history.columns)
    with_missing = Category.fit("of", history["of"], missing="nothing")
    encoder = Encoder((fitted.columns[0], with_missing, fitted.columns[2]))
    events = history.select("verb").with_columns(of=pl.lit(None, pl.String), size=pl.lit(None))
    empty, absent = encoder.encode(events), encoder.encode(events.select("verb"))
    assert np.array_equal(empty.codes, absent.codes)
    assert np.array_equal(empty.inverse, absent.inverse)
    assert not empty.numbers.any()
    word = FIRST_CODE + with_missing.vocabulary.index("nothing")
    assert [with_missing.missing_code, fitted.columns[2].missing_code] == [word, MISSING]
    assert set(empty.codes[:, 1].tolist()) == {word}
