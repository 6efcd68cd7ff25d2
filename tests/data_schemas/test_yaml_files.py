"""Numbers of a YAML file mean what is written."""

import json

import pytest
import yaml

from data_schemas.yaml_files import RefusedYaml, dump_line, dump_yaml, load_yaml


def test_numbers_of_every_ordinary_form_are_read():
    text = "[0, -3, +5, 1_000, 0x1F, 0b11, 01, 1.5, -2.0e-3, .inf, 1e-9, -2E3, .5e+1, 1.e2, '1:30', '010', 2024-01-31]"
    *numbers, date = load_yaml(text)
    assert numbers == [0, -3, 5, 1000, 31, 3, 1, 1.5, -0.002, float("inf"), 1e-9, -2000.0, 5.0, 100.0, "1:30", "010"]
    assert str(date) == "2024-01-31"


@pytest.mark.parametrize(
    ("written", "read"), [("1:30", "90"), ("-1:30:00", "-5400"), ("010", "8"), ("-0_17", "-15"), ("2:30.25", "150.25")]
)
def test_a_number_that_yaml_reads_in_base_8_or_60_is_refused(written, read):
    with pytest.raises(RefusedYaml) as caught:
        load_yaml(f"time_limit: {written}")
    assert (
        caught.value.problem
        == f"YAML reads {written!r} as the number {read}; write it as a decimal number, or in quotes"
    )


def test_json_is_read_with_its_escapes():
    content = {"안녕 🙂": ["🙂", "\u2028", 1.5, 1e-9]}
    assert load_yaml(json.dumps(content)) == content


def test_what_is_written_is_read_back():
    content = {"1e5": ["1e-9", 1e-9, 1e22, "-.5e1", "e5", "1e", "1:30", None, "null", "가\nnew line"], "name": "12e34"}
    for text in (dump_yaml(content), dump_line(content)):
        assert load_yaml(text) == content == yaml.safe_load(text)
    assert "\n" not in dump_line(content) and dump_line("one word") == "one word"
