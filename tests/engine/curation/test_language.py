"""Languages: what is dropped, and where the rules abstain."""

import pytest

from data_schemas.curation_rules import LANGUAGES
from engine.curation.content import Content, Finding
from engine.curation.language import ANSWER, PROMPT, _identifier, language_of, language_rules

ENGLISH = "Could you tell me how the weather will be tomorrow in the mountains?"
GERMAN = "Kannst du mir sagen, wie das Wetter morgen in den Bergen sein wird?"
KOREAN = "내일 산에서 날씨가 어떻게 될지 나에게 알려 줄 수 있나요? 고맙습니다."


def found(content: Content, languages: list[str], **options) -> list[Finding]:
    return [finding for rule in language_rules(languages, **options).values() if (finding := rule(content))]


def test_prompt_and_answers_are_judged_apart():
    assert found(Content(ENGLISH, (ENGLISH,)), ["en"]) == []
    assert found(Content(GERMAN, (ENGLISH,)), ["en"]) == [Finding(PROMPT, "de", "en")]
    assert found(Content(ENGLISH, (ENGLISH, KOREAN)), ["en"]) == [Finding(ANSWER, "ko", "en")]
    assert found(Content(GERMAN, (KOREAN,)), ["ko", "de"]) == []


def test_of_a_preference_row_the_best_answer_is_judged():
    assert found(Content(ENGLISH, (ENGLISH, GERMAN)), ["en"], kind="preferences") == []
    assert found(Content(ENGLISH, (GERMAN, ENGLISH)), ["en"], kind="preferences") == [Finding(ANSWER, "de", "en")]
    assert language_rules(["en"], "prompts").keys() == {PROMPT} and language_rules(["en"], "documents").keys() == {
        ANSWER
    }


@pytest.mark.parametrize(
    "text",
    [
        "Guten Tag, Herr Wirt",
        "1 + 1 = 2 und so weiter 3 + 4 = 7",
        f"```\n{GERMAN}\n```",
        "",
        "https://example.org/abc/def/ghi",
    ],
)
def test_the_rules_abstain_where_nothing_can_be_told(text):
    assert found(Content(text, (text,)), ["en"]) == []


def test_an_unsure_answer_of_the_model_drops_nothing():
    names = "Switzerland, Spain, Senegal, Sweden, Sudan"
    assert language_of(names)[0] != "en" and found(Content(names, ()), ["en"]) == []
    assert [finding.rule for finding in found(Content(names, ()), ["en"], min_confidence=0)] == [PROMPT]


@pytest.mark.parametrize(
    "prompt",
    [
        "Please translate this into Korean, which I cannot speak: it will be cold in the mountains tomorrow.",
        f"Which language is this? {GERMAN}",
        f"{GERMAN}\n\nTranslate this to English, please.",
    ],
)
def test_a_translation_is_in_no_wrong_language(prompt):
    assert found(Content(prompt, (KOREAN,)), ["en"]) == []
    assert found(Content(f"{GERMAN} Translation?", (KOREAN,)), ["fr"])[0].rule == PROMPT  # no French word asks for it


def test_the_languages_that_are_checked_before_are_those_of_the_model_in_any_case():
    assert {*_identifier().labels} == LANGUAGES and len(_identifier().labels) > 100
    assert found(Content(GERMAN, ()), ["DE"]) == [] != found(Content(GERMAN, ()), ["EN"])
