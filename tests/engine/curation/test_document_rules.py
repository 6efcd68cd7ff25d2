"""Rules for documents: for each a text beyond its threshold, and one at the threshold that stays."""

import pytest

from engine.curation.content import Content, Finding
from engine.curation.document_rules import CHECKS, document_rules

RULES = document_rules()
# 20 different lines of 8 words and 42 characters, each a sentence with two stop words
LINES = [f"The row {number:02d} is long and has eight words." for number in range(20)]
GOOD = "\n".join(LINES)
UNIQUE = [f"word{number:03d}" for number in range(400)]


def text_of(*words: str) -> str:
    return " ".join(words)


# rule: the text that is dropped, the value that is found, and the text that stays at the threshold
CASES: dict[str, tuple[str, float, str]] = {
    "gopher_min_words": (text_of(*UNIQUE[:49]), 49, text_of(*UNIQUE[:50])),
    "gopher_max_words": ("a " * 100_001, 100_001, "a " * 100_000),
    "gopher_min_word_length": ("aa " * 10 + "bbb", 2.0909, "aa bbbb " * 10),
    "gopher_max_word_length": ("a" * 11 + " " + "b" * 10, 10.5, "a" * 11 + " " + "b" * 9),
    "gopher_symbols": ("# # " + "word " * 8, 0.2, "# " + "word " * 9),
    "gopher_bullets": ("\n".join(["- item"] * 10), 1.0, "\n".join(["* item"] * 9 + ["a line"])),
    "gopher_ellipses": ("and...\n" * 4 + "line\n" * 6, 0.4, "and…\n" * 3 + "line\n" * 7),
    "gopher_min_words_with_letter": ("12 34 word words", 0.5, "12 word w1 é ß"),
    "gopher_min_stop_words": ("Words that lack many others", 1, "Words that be"),
    "gopher_duplicate_lines": ("\n".join(["same"] * 5 + LINES[:5]), 0.4, "\n".join(["same"] * 4 + LINES[:6])),
    "gopher_duplicate_paragraphs": (
        "\n\n".join(["same"] * 5 + LINES[:5]),
        0.4,
        "\n\n".join(["same"] * 4 + LINES[:6]),
    ),
    "gopher_duplicate_line_characters": ("aaaa\n" * 2 + "b" * 7, 0.2353, "aaaa\n" * 2 + "b" * 10),
    "gopher_duplicate_paragraph_characters": ("aaaa\n\n" * 2 + "b" * 5, 0.2353, "aaaa\n\n" * 2 + "b" * 8),
    "gopher_top_2gram": ("ab cd xx ab cd ee fg hh kk lm no", 0.3125, "ab cd xx ab cd " + "e" * 35),
    "gopher_top_3gram": ("a b c x a b c " + "e" * 40, 0.1852, "a b c x a b c " + "e" * 42),
    "gopher_top_4gram": ("a b c d x a b c d " + "e" * 60, 0.1795, "a b c d x a b c d " + "e" * 70),
    "c4_min_sentences": ("One is here. Two are here!\nThree are here? Four.", 4, "\n".join(LINES[:5])),
    "c4_max_word_length": ("a" * 1001, 1001, "a" * 1000),
    "c4_lorem_ipsum": ("Lorem ipsum dolor", 1, "Lorem, ipsum"),
    "c4_curly_brackets": ("f() { return }", 1, "f() [return]"),
    "fineweb_min_line_ends": ("no end\n" * 8 + "An end.", 0.1111, "no end\n" * 22 + "An end.\n" * 3),
    "fineweb_short_lines": ("short\n" * 3 + "a" * 31, 0.75, "\n".join(["a" * 30] * 67 + ["b" * 31] * 33)),
    "fineweb_duplicate_line_characters": ("ab\nab\n" + "c" * 190, 0.0102, "ab\nab\n" + "c" * 194),
    "fineweb_newlines": ("a b\n" * 4 + "a", 0.4444, "a b c\n" * 3 + "d"),
}
for n, threshold in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1)):
    # n words of one letter again, and the rest of the text as one word: n of the characters are repeated
    start = text_of(*[chr(97 + place) for place in range(n)], "x", *[chr(97 + place) for place in range(n)], "")
    most = round(n / threshold)
    CASES[f"gopher_repeated_{n}grams"] = (
        start + "y" * (most - 4 - len(start)) + " z",
        round(n / (most - 2), 4),
        start + "y" * (most + 1 - len(start)),
    )


def test_there_is_a_case_for_every_rule():
    assert CASES.keys() == RULES.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_document_beyond_the_threshold_is_dropped_and_one_at_it_stays(name):
    dropped, value, stays = CASES[name]
    assert RULES[name](Content("", (dropped,))) == Finding(name, value, CHECKS[name][0])
    assert RULES[name](Content("", (stays,))) is None


def test_a_plain_text_breaks_no_rule():
    lines = [
        "The harbour lies to the north of the old town, where fishing boats have been built for three hundred years.",
        "Visitors come in summer, when markets fill every square and the smell of bread drifts through narrow streets.",
        "Winter is quieter. Storms keep ferries away, so people mend nets, repair roofs and read by the fire.",
        "A small museum shows tools, maps and letters; its keeper, herself a sailor, explains each patiently.",
    ]
    text = "\n".join(lines)
    assert [name for name, rule in RULES.items() if rule(Content("", (text,)))] == []


def test_thresholds_are_overridden_by_name_and_a_rule_without_one_is_left_out():
    rules = document_rules({"gopher_min_words": 3, "c4_min_sentences": None})
    assert "c4_min_sentences" not in rules and len(rules) == len(RULES) - 1
    assert rules["gopher_min_words"](Content("", ("a b c",))) is None
    assert rules["gopher_min_words"](Content("", ("a b",))) == Finding("gopher_min_words", 2, 3)


def test_lines_with_scripts_and_policies_and_without_end_have_no_sentences():
    lines = [
        "You need JavaScript for this page.",
        "We have a privacy policy. Read it.",
        "Two words.",
        "It has no end",
        "So it goes on…",
    ]
    assert RULES["c4_min_sentences"](Content("", ("\n".join(lines + LINES[:4]),))) == Finding("c4_min_sentences", 4, 5)


def test_rules_about_words_say_nothing_of_scripts_without_spaces():
    text = "我昨天和朋友一起去市场吃了很好吃的东西。然后回家看了一部很有意思的电影。"
    words = [name for name, rule in RULES.items() if rule(Content("", (text,)))]
    assert words == ["c4_min_sentences"]


def test_a_document_without_text_is_dropped_and_not_an_error():
    assert {"gopher_min_words", "gopher_min_stop_words"} <= {
        n for n, rule in RULES.items() if rule(Content("", (" ",)))
    }
