"""The 25 kinds of instructions of IFEval that a program can check (Zhou et al., arXiv 2311.07911, table 1).

A checker takes an answer and the instruction's arguments, as `kwargs` of the published file gives them. The checks are
those of the authors' code, with four differences, since theirs need downloaded data or draw at random: sentences are
split by `split_sentences` in place of nltk's trained model, words in capitals by a regular expression in place of
nltk's tokenizer, the language is that of py3langid, which is deterministic, in place of langdetect, and a letter that
is a character like `#` is counted, where the authors' code draws another letter.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from engine.curation.language import most_probable_language

Arguments = Mapping[str, Any]
Checker = Callable[[str, Arguments], bool]

ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st jr sr vs etc e.g i.e u.s u.k u.n no inc ltd co corp fig vol gen col sgt capt lt rev hon gov "
    "sen rep dept est approx a.m p.m ph.d d.c".split()
)
SENTENCE_END = re.compile(r"[.?!]+[\"')\]*_”’]*(?=\s)")
CAPITAL_WORD = re.compile(r"(?:[^\W\d_]\.){2,}|[^\W_]+(?:[-/][^\W_]+)*")
CONSTRAINED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text: up to `.`, `?` or `!` before white space, unless a `.` ends an abbreviation, an initial
    or is followed by a small letter."""
    sentences, start = [], 0
    for match in SENTENCE_END.finditer(text):
        if match[0][0] == "." and _goes_on(text[start : match.start()], text[match.end() :]):
            continue
        sentences.append(text[start : match.end()])
        start = match.end()
    return [sentence.strip() for sentence in [*sentences, text[start:]] if sentence.strip()]


def _goes_on(before: str, after: str) -> bool:
    """Whether the sentence goes on after a full stop."""
    word = (before.split() or [""])[-1].lstrip("\"'([*_“‘")
    is_initial = len(word) == 1 and word.isalpha() and word.isupper() and word != "I"
    return word.lower() in ABBREVIATIONS or is_initial or after.lstrip()[:1].islower()


def _holds(count: int, relation: str, limit: int) -> bool:
    """`less than` or `at least`, the two relations of the published file. Raises ValueError for another one."""
    if relation == "less than":
        return count < limit
    if relation == "at least":
        return count >= limit
    raise ValueError(f"the relation {relation!r} is neither 'less than' nor 'at least'")


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def keyword_existence(answer: str, given: Arguments) -> bool:
    return all(keyword.lower() in answer.lower() for keyword in given["keywords"])


def keyword_frequency(answer: str, given: Arguments) -> bool:
    count = len(re.findall(re.escape(given["keyword"]), answer, re.IGNORECASE))
    return _holds(count, given["relation"], given["frequency"])


def forbidden_words(answer: str, given: Arguments) -> bool:
    return not any(_has_word(answer, word) for word in given["forbidden_words"])


def letter_frequency(answer: str, given: Arguments) -> bool:
    count = answer.lower().count(given["letter"].lower())
    return _holds(count, given["let_relation"], given["let_frequency"])


def response_language(answer: str, given: Arguments) -> bool:
    return most_probable_language(answer) in (given["language"], "")


def number_sentences(answer: str, given: Arguments) -> bool:
    return _holds(len(split_sentences(answer)), given["relation"], given["num_sentences"])


def number_paragraphs(answer: str, given: Arguments) -> bool:
    """Paragraphs are divided by `***`; only the first and the last part may be empty."""
    parts = re.split(r"\s?\*\*\*\s?", answer)
    if not all(part.strip() for part in parts[1:-1]):
        return False
    return sum(bool(part.strip()) for part in parts) == given["num_paragraphs"]


def number_words(answer: str, given: Arguments) -> bool:
    return _holds(len(re.findall(r"\w+", answer)), given["relation"], given["num_words"])


def nth_paragraph_first_word(answer: str, given: Arguments) -> bool:
    """Paragraphs are divided by an empty line; the first word is without quotes and what follows it."""
    parts = re.split(r"\n\n", answer)
    count, place = sum(bool(part.strip()) for part in parts), given["nth_paragraph"]
    if place > count or not parts[place - 1].strip():
        return False
    word = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word)[0].lower()
    return count == given["num_paragraphs"] and word == given["first_word"].lower()


def number_placeholders(answer: str, given: Arguments) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= given["num_placeholders"]


def postscript(answer: str, given: Arguments) -> bool:
    marker: str = given["postscript_marker"]
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, re.escape(marker.lower())), answer.lower()) is not None


def number_bullet_lists(answer: str, given: Arguments) -> bool:
    bullets = re.findall(r"^\s*\*[^*].*$", answer, re.MULTILINE) + re.findall(r"^\s*-.*$", answer, re.MULTILINE)
    return len(bullets) == given["num_bullets"]


def constrained_response(answer: str, given: Arguments) -> bool:
    return any(text in answer for text in CONSTRAINED_ANSWERS)


def number_highlighted_sections(answer: str, given: Arguments) -> bool:
    """Parts in `*...*` or `**...**` that are not empty; as in the authors' code both patterns are counted."""
    single = [part for part in re.findall(r"\*[^\n*]*\*", answer) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", answer) if part[2:-2].strip()]
    return len(single) + len(double) >= given["num_highlights"]


def multiple_sections(answer: str, given: Arguments) -> bool:
    heads = re.findall(rf"\s?{re.escape(given['section_spliter'])}\s?\d+\s?", answer)
    return len(heads) >= given["num_sections"]


def json_format(answer: str, given: Arguments) -> bool:
    text = answer.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(answer: str, given: Arguments) -> bool:
    return any(found.strip("<>").strip() for found in re.findall(r"<<[^\n]+>>", answer))


def two_responses(answer: str, given: Arguments) -> bool:
    """Two different answers, divided by `******`; only the first and the last part may be empty."""
    parts = answer.split("******")
    if not all(part.strip() for part in parts[1:-1]):
        return False
    valid = [part.strip() for part in parts if part.strip()]
    return len(valid) == 2 and valid[0] != valid[1]


def repeat_prompt(answer: str, given: Arguments) -> bool:
    return answer.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def end_checker(answer: str, given: Arguments) -> bool:
    return answer.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def capital_word_frequency(answer: str, given: Arguments) -> bool:
    count = sum(word.isupper() for word in CAPITAL_WORD.findall(answer))
    return _holds(count, given["capital_relation"], given["capital_frequency"])


def english_capital(answer: str, given: Arguments) -> bool:
    return answer.isupper() and most_probable_language(answer) in ("en", "")


def english_lowercase(answer: str, given: Arguments) -> bool:
    return answer.islower() and most_probable_language(answer) in ("en", "")


def no_comma(answer: str, given: Arguments) -> bool:
    return "," not in answer


def quotation(answer: str, given: Arguments) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKERS: Mapping[str, Checker] = {
    "keywords:existence": keyword_existence,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
OF_LANGUAGE = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
