"""Stamps in order, late, lone outliers, and clocks that were set."""

import pytest

from imatching_ros.core.stamps import Order, StampOrder

LETTERS = {Order.NEXT: "n", Order.LATE: "l", Order.OUTLIER: "o", Order.JUMP: "j"}


@pytest.mark.parametrize(
    "stamps_s, expected",
    [
        ([0, 0.1, 0.2], "nnn"),
        ([0, 0.1, 0.1, 0.05, 0.2], "nnlln"),
        ([100, 100.1, 90, 100.2], "nnon"),  # one stamp 10 s early
        ([100, 100.1, 1e8, 100.2], "nnon"),  # one three years ahead
        ([100, 100.1, 90, 90.1, 90.2], "nnojn"),  # a bag that loops
        ([100, 100.1, 130, 130.1, 130.2], "nnonn"),  # a pause
        ([1e8, 100, 100.1, 100.2], "nojn"),  # the first was the outlier
        ([0, 20, 40, 60, 80], "nonnn"),  # an image in 20 s
        ([100, 90, 80, 70], "nooo"),  # nothing ascends
    ],
)
def test_order_of_stamps(stamps_s, expected):
    order = StampOrder()
    assert "".join(LETTERS[order.add(round(s * 1e9))] for s in stamps_s) == expected


def test_what_is_late_can_be_set():
    assert StampOrder(2.0).add(0) is Order.NEXT
    order = StampOrder(2.0)
    assert [order.add(s * 10**9) for s in (10, 9, 11)] == [Order.NEXT, Order.LATE, Order.NEXT]
