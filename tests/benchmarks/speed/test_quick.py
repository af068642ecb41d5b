"""bench-quick: which changes are worth a warning; the record has what is compared."""

from __future__ import annotations

import json

from benchmarks.speed.quick import RECORD, ratios_of, warnings_of

TOLD = {
    "stages": [{"name": "decode", "items_per_s": 80.0}, {"name": "encode", "items_per_s": 20.0}],
    "share_of_speed_of_light": 0.9,
    "filtering_share_of_encoding": 0.8,
    "doubt": None,
}


def test_ratios_that_are_worse_are_told() -> None:
    recorded = ratios_of(TOLD)
    assert recorded["decoding_share_of_encoding"] == 0.25
    assert list(warnings_of(recorded, recorded)) == []
    better = {"share_of_speed_of_light": 1.5, "filtering_share_of_encoding": 0.2, "decoding_share_of_encoding": 0.1}
    assert list(warnings_of(better, recorded)) == []
    worse = {"share_of_speed_of_light": 0.6, "filtering_share_of_encoding": 1.1, "decoding_share_of_encoding": 0.26}
    slower, dearer = warnings_of(worse, recorded)
    assert slower == "warning: share_of_speed_of_light is 0.600; on record is 0.900 (-33%)"
    assert dearer.startswith("warning: filtering_share_of_encoding is 1.100")


def test_a_share_that_means_nothing_is_not_compared() -> None:
    recorded = ratios_of(TOLD)
    [warning] = warnings_of(ratios_of(TOLD | {"share_of_speed_of_light": 8.97, "doubt": "busy"}), recorded)
    assert warning == "warning: there is no share_of_speed_of_light: the machine was busy"


def test_the_record_is_comparable() -> None:
    recorded = json.loads(RECORD.read_text())
    assert list(warnings_of(recorded, recorded)) == []
