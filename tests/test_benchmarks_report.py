"""What the comparison of trainers says of how its figures were taken."""

from benchmarks.trainers import _report


def test_one_of_a_thing_is_no_plural() -> None:
    around = {
        "device": "cpu",
        "processor": "a processor",
        "cores": 1,
        "python": "3.11.0",
        "packages": {"torch": "2.6.0"},
    }
    content = {
        "environment": around,
        "rivals": {},
        "data": "mnist",
        "steps": 60,
        "linear_steps": 500,
        "repeats": 1,
        "threads": 1,
        "full": True,
    }
    said = _report.conditions(content)
    assert said.startswith("1 repeat in turns, ")
    assert "a processor, 1 core, 1 thread, Python 3.11.0" in said
    several = {**content, "environment": {**around, "cores": 2}, "repeats": 3, "threads": 2}
    assert _report.conditions(several).startswith("3 repeats in turns, ")
    assert "2 cores, 2 threads, " in _report.conditions(several)
