"""Each kind of instruction of IFEval has an answer that follows it, and one that does not by little."""

import pytest

from engine.tasks.instructions import CHECKERS, split_sentences

GERMAN = "Der Hund läuft durch den Wald und sucht nach seinem Ball, den er gestern verloren hat."
ENGLISH = "the dog runs through the forest and looks for the ball that it lost yesterday."
# kind, arguments, an answer that follows it, one that does not
CASES = [
    ("keywords:existence", {"keywords": ["mom", "tea"]}, "Tea for MOM", "Tea for dad"),
    ("keywords:frequency", {"keyword": "tea", "relation": "at least", "frequency": 2}, "Tea and teapots", "Tea only"),
    ("keywords:frequency", {"keyword": "tea", "relation": "less than", "frequency": 2}, "Tea only", "Tea and teapots"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocket", "A Rock."),
    ("keywords:letter_frequency", {"letter": "T", "let_relation": "at least", "let_frequency": 2}, "Tot", "to"),
    ("keywords:letter_frequency", {"letter": "#", "let_relation": "less than", "let_frequency": 2}, "# a", "## a"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 3}, "A b. C! D?", "Hi Mr. B. Go"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***One *** Two***", "One *** *** Two"),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "It's", "It's me"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        'One\n\n"Weekend, here',
        "Weekend\n\nOne",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a and b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. s. Call", "Bye. PS Call"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S Call", "P.S. Call"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n** b"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "Section 1\na\nSECTION 2\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A day>>\nText", "<< >>\nText"),
    ("combination:two_responses", {}, "One******Two", "One******One"),
    ("combination:two_responses", {}, "******One******Two", "One************Two"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write this. "}, "write this. Yes", "Yes. Write this."),
    ("startend:end_checker", {"end_phrase": "Peace!"}, 'So be it. "Peace!"', "Peace! So be it."),
    ("startend:quotation", {}, ' "All of it" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "THE U.S. team",
        "THE U.s. team",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH.upper() + " no"),
    ("change_case:english_capital", {}, ENGLISH.upper(), GERMAN.upper()),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    ("punctuation:no_comma", {}, "One and two", "One, two"),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), CASES)
def test_an_instruction_is_followed_or_not(kind, arguments, good, bad):
    assert CHECKERS[kind](good, arguments)
    assert not CHECKERS[kind](bad, arguments)


def test_every_kind_has_a_case():
    assert {case[0] for case in CASES} == CHECKERS.keys() and len(CHECKERS) == 25


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Dr. Who met J. Smith at 3 p.m. yesterday.", 1),
        ("It costs 3.50 in all. He paid.", 2),
        ('"Stop!" she said. He did.', 3),
        ("No end at all", 1),
        ("Wait... what?", 1),
        ("", 0),
    ],
)
def test_sentences_are_split(text, count):
    assert len(split_sentences(text)) == count
