from imatching_ros.core.timing import Clock


def test_parts_of_the_same_name_add_up():
    clock = Clock(iter([1.0, 1.5, 2.0, 4.0]).__next__)
    for name in ("match", "solve", "match"):
        clock.lap(name)
    assert clock.laps == {"match": 2500.0, "solve": 500.0}
