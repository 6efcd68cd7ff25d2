"""Charts as SVG."""

from xml.etree import ElementTree

import pytest

from pipeline.report.page import svg
from pipeline.report.page.svg import Axes, Group, Series, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (3, 97, [0, 50, 100]),
        (-0.2, 0.3, [-0.2, 0, 0.2, 0.4]),
        (5, 5, [4.5, 5, 5.5]),
        (0, 0, [-0.5, 0, 0.5]),
    ],
)
def test_ticks_are_round_and_hold_both_ends(low, high, expected):
    assert ticks(low, high, 3) == pytest.approx(expected)


def test_a_point_is_where_its_axes_say():
    axes = Axes((0, 10), (0, 1), width=170, height=152, margin=52)  # 100 x 100 pixels inside of the margins
    assert (axes.x_of(0), axes.x_of(10)) == (52, 152) and (axes.y_of(0), axes.y_of(1)) == (112, 12)


def test_a_chart_is_well_formed_and_its_texts_are_escaped():
    hostile = "<script>alert(1)</script> & \x1b[31m"
    series = [
        Series(hostile, [(0, 1.0), (1, 2.0)], has_markers=True, labels=[hostile, "b"], intervals=[(0.5, 1.5)] * 2)
    ]
    drawn = svg.chart(series, title=hostile, x_label=hostile, y_label=hostile, mark=0.5)
    root = ElementTree.fromstring(drawn)
    names = {element.tag for element in root.iter()}
    assert names == {"svg", "path", "text", "circle", "title"}
    assert "\x1b" not in drawn and "\\x1b[31m" in drawn
    assert sum(element.get("class") == "error c0" for element in root.iter()) == 2


def test_without_values_there_is_no_chart():
    assert svg.chart([Series("empty", [])], title="", x_label="", y_label="") == ""
    assert svg.histograms([Group("empty", [], 0)], title="", x_label="") == ""
    assert svg.bars([("step", [("load", 0.0)])], title="", x_label="s") == ""


def test_a_histogram_counts_every_value_once():
    assert svg._counts([0, 0.1, 0.5, 1.0], (0, 1), 4) == [2, 0, 1, 1]


def test_the_parts_of_a_bar_are_as_wide_as_their_values():
    drawn = svg.bars([("a", [("load", 1.0), ("train", 3.0)]), ("b", [("train", 2.0)])], title="", x_label="s")
    root = ElementTree.fromstring(drawn)
    parts = {element[0].text: float(element.get("width", 0)) for element in root if element.tag == "rect"}
    assert parts["a: train 3.0 s"] == pytest.approx(3 * parts["a: load 1.0 s"], abs=0.1)
    assert parts["b: train 2.0 s"] == pytest.approx(2 * parts["a: load 1.0 s"], abs=0.1)
