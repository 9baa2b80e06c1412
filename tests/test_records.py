"""What the chapters read of recorded runs comes with the package."""

import pytest

from benchmarks.machine import model_hash
from dpo_core.course.records import read_record, record_file
from dpo_core.errors import InputError


def test_a_missing_record_is_an_error_that_says_how_to_get_it():
    with pytest.raises(InputError, match=r"sweep_99\.json: .*install dpo_core again .*`make records`"):
        read_record("sweep_99")


def test_every_record_says_what_made_it():
    files = sorted(record_file("museum").parent.glob("*.json"))
    assert len(files) >= 6
    for file in files:
        assert {"command", "machine", "versions"} <= read_record(file.stem).keys(), file.name


def test_the_baseline_is_of_the_shipped_model():
    record = read_record("start")
    assert record["model"] == model_hash(), "run `python -m tools.records.start`"
    assert [len(rewards) for rewards in record["rewards"]] == [80] * 3
