"""Value types: what is taken, what is refused, and in which words."""

import dataclasses

import numpy as np
import pytest
import torch

from sparsemm_eval import checks
from sparsemm_eval.errors import ConfigError


@checks.record
class Example:
    images: checks.Count = 200
    mode: checks.one_of("avg", "max") = "avg"
    share: checks.Share = 0.5
    width: checks.odd(9) = 5


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), torch.tensor(3)])
def test_numbers_of_all_libraries_are_numbers(value):
    found = checks.checked(checks.Count, "images", value)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [True, "3", None, 0, -1, 2.5, float("nan"), float("inf"), [1], 1e30, 2**40])
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ConfigError, match=r"images=.* expected an integer >= 1"):
        checks.checked(checks.Count, "images", value)


@pytest.mark.parametrize("value", [True, "0.5", None, -0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(ConfigError, match=r"ratio=.* expected a number in \[0, 1\]"):
        checks.checked(checks.Share, "ratio", value)


def test_bounds_are_said():
    with pytest.raises(ConfigError, match=r"and <= 9223372036854775807"):
        checks.checked(checks.Seed, "seed", 2**70)
    with pytest.raises(ConfigError, match=r"a number in \(0, 1\)"):
        checks.checked(checks.OpenShare, "share", 1)
    with pytest.raises(ConfigError, match=r"an odd integer in \[1, 9\]"):
        checks.checked(checks.odd(9), "kernel_size", 4)
    with pytest.raises(ConfigError, match=r"expected text$"):
        checks.checked(str | None, "name", 3)


def test_lists_of_a_command():
    assert checks.listed(checks.Count, "budgets", "16, 32") == [16, 32]
    assert checks.listed(checks.Share, "shares", "0.05,1") == [0.05, 1.0]
    for text in ("", "16,", "16,a", "0", "1.5"):
        with pytest.raises(ConfigError, match=r"separated by commas, each an integer >= 1"):
            checks.listed(checks.Count, "budgets", text)


def test_records_are_checked_frozen_and_comparable():
    assert Example(images=np.int64(4)) == Example(4)
    assert dataclasses.replace(Example(), width=7).width == 7
    assert len({Example(), Example(200)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example().images = 3


def test_what_a_record_itself_refuses_is_said_as_it_says_it():
    @checks.record
    class Range:
        low: checks.Natural
        high: checks.Natural

        def __post_init__(self):
            if self.low > self.high:
                raise ConfigError("low", self.low, f"at most high ({self.high})")

    with pytest.raises(ConfigError, match=r"low=3 is not valid: expected at most high \(2\)") as caught:
        Range(3, 2)
    assert caught.value.argument == "low"


@pytest.mark.parametrize(
    ("argument", "value", "remedy"),
    [
        ("images", 0, "an integer >= 1"),
        ("mode", "sum", "one of avg, max"),
        ("share", 2, r"a number in \[0, 1\]"),
        ("width", 4, r"an odd integer in \[1, 9\]"),
        ("depth", 4, "one of images, mode, share, width"),
    ],
)
def test_a_record_names_argument_value_and_remedy(argument, value, remedy):
    with pytest.raises(ConfigError, match=remedy) as caught:
        Example(**{argument: value})
    assert (caught.value.argument, caught.value.value) == (argument, value)


def test_arguments_without_a_name_are_named_too():
    with pytest.raises(ConfigError, match=r"mode='sum' is not valid: expected one of avg, max"):
        Example(1, "sum")
