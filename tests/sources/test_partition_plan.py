from hypothesis import given
from hypothesis import strategies as st

from morpheus.sources.group_by_user import bin_pack

weights = st.lists(st.integers(0, 30), max_size=40)


@given(weights, st.integers(1, 50), st.integers(0, 10))
def test_no_bin_exceeds_the_capacity_except_a_single_weight(each, budget, first):
    parts = bin_pack(each, budget, first)
    for part in set(parts):
        inside = [weight for weight, at in zip(each, parts, strict=True) if at == part and weight]
        assert len(inside) < 2 or sum(inside) <= (budget if part else first)


@given(weights, st.integers(1, 50))
def test_bins_follow_the_order_and_are_filled(each, budget):
    parts = bin_pack(each, budget)
    assert parts == sorted(parts)
    assert sorted(set(parts)) == list(range(len(set(parts))))
    for part in range(1, len(set(parts))):
        before = sum(w for w, at in zip(each, parts, strict=True) if at == part - 1)
        assert before + each[parts.index(part)] > budget
