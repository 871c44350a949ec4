import pytest

from imatching_ros.core.timing import Clock, StampOrder


def test_parts_of_the_same_name_add_up():
    clock = Clock(iter([1.0, 1.5, 2.0, 4.0]).__next__)
    for name in ("match", "solve", "match"):
        clock.lap(name)
    assert clock.laps == {"match": 2500.0, "solve": 500.0}


def judge(stamps_s: list[float], rate: float = 1.0, tolerance_s: float = 0.5) -> list[str]:
    """What becomes of images that arrive at a camera's 10 Hz, played at a rate."""
    times = iter([k * 0.1 / rate for k in range(1000)])
    now = [0.0]
    order = StampOrder(lambda: now[0])
    found = []
    for stamp_s in stamps_s:
        now[0] = next(times)
        verdict = order.check(round(stamp_s * 1e9), tolerance_s)
        found.append("drop" if verdict.dropped else "restart" if verdict.restarts else "use")
    return found


@pytest.mark.parametrize("wrong_s", [1.0, 10.6, 1e8, 12.0, -3.0])
def test_one_stamp_far_from_the_others_is_dropped(wrong_s):
    stamps = [10.0, 10.1, 10.2, wrong_s, 10.4, 10.5]
    expected = "use" if wrong_s == 10.6 else "drop"
    after = ["drop", "drop"] if wrong_s == 10.6 else ["use", "use"]  # the earlier ones are late then
    assert judge(stamps) == ["use", "use", "use", expected, *after]


def test_time_that_starts_again_restarts_when_it_is_confirmed():
    assert judge([10.0, 10.1, 1.0, 1.1, 1.2]) == ["use", "use", "drop", "restart", "use"]
    assert judge([10.0, 10.1, 99.0, 99.1, 99.2]) == ["use", "use", "drop", "use", "use"]
    assert judge([1e6, 10.0, 10.1, 10.2]) == ["use", "drop", "restart", "use"]  # the first stamp of all is wrong


def test_two_wrong_stamps_that_do_not_follow_each_other_change_nothing():
    assert judge([10.0, 10.1, 1e6, 3.0, 10.4]) == ["use", "use", "drop", "drop", "use"]


def test_late_and_repeated_images_are_dropped():
    order = StampOrder()
    assert not order.check(10**9, 0.5).dropped
    late, repeated = order.check(9 * 10**8, 0.5), order.check(10**9, 0.5)
    assert late.dropped and "its stamp is 0.100000 s before the last one; expected ascending stamps" in late.reason
    assert repeated.dropped and repeated.repeated and not late.repeated


def test_slow_cameras_and_fast_bags_lose_nothing_but_the_first_interval():
    slow = [60.0 * k for k in range(10)]
    assert judge(slow, rate=0.1 / 60) == ["use"] * 10
    assert judge(slow, rate=1000.0) == ["use", "drop"] + ["use"] * 8
