"""Rows in other languages than those that are wanted, by py3langid (the extra `data`). Needs no torch.

Prompt and answers are judged apart, as a dialog can be asked in one language and answered in another. The rules abstain
below 20 characters, of which nothing reliable can be told, outside blocks of code, where the model is not sure, and
where the prompt speaks of languages in one of those that are wanted: a translation is no row in the wrong language.
"""

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Protocol

from engine.curation.content import Content, Finding, Kind, Rule
from engine.curation.dialog_rules import prose_of

MIN_CHARACTERS = 20
MAX_CHARACTERS = 160  # from the start: twice as many take twice the time, and change 2 % of the verdicts
MIN_CONFIDENCE = 0.85
NEAR_ENGLISH = "pcm"  # Nigerian Pidgin, for which the model takes English with rare words
NO_LANGUAGE = "zxx"  # what the model says of formulas and addresses
# By which a prompt speaks of languages, by the language that it is in.
SPEAKS_OF_LANGUAGES = {
    "de": "übersetz|sprache",
    "en": r"\btranslat|\blanguages?\b|\b(?:arabic|bengali|bulgarian|cantonese|catalan|chinese|croatian|czech|danish"
    r"|dutch|english|esperanto|estonian|finnish|french|german|greek|hebrew|hindi|hungarian|icelandic|indonesian|irish"
    r"|italian|japanese|korean|latin|latvian|lithuanian|malay|mandarin|marathi|norwegian|persian|polish|portuguese"
    r"|punjabi|romanian|russian|serbian|slovak|slovenian|spanish|swahili|swedish|tagalog|tamil|telugu|thai|turkish"
    r"|ukrainian|urdu|vietnamese|welsh)\b",
    "es": r"\btradu[cz]|\bidiomas?\b",
    "fr": r"\btradui|\btraduction|\blangues?\b",
    "it": r"\btradu[crz]|\blingu[ae]\b",
    "ja": "翻訳|訳し|語に",
    "ko": "번역|[가-힣]어로",
    "pt": r"\btradu[zç]|\bidiomas?\b",
    "zh": "翻译|译成|译为",
}
PROMPT, ANSWER = "prompt_language", "answer_language"


class Identifier(Protocol):
    """What is used of py3langid."""

    @property
    def labels(self) -> list[str]: ...

    def classify(self, text: str) -> tuple[str, float]: ...


def language_rules(
    languages: Iterable[str], kind: Kind = "instructions", *, min_confidence: float = MIN_CONFIDENCE
) -> dict[str, Rule]:
    """A rule for prompts and one for answers: dropped where the language is none of these, by their ISO 639-1 codes.

    Of a preference row only the best answer is judged. Which codes are known is checked before (curation_rules.py).
    """
    wanted = frozenset(map(str.lower, languages))
    known = wanted | {"", NO_LANGUAGE} | ({NEAR_ENGLISH} if "en" in wanted else set())
    shown = ",".join(sorted(wanted))
    words = [SPEAKS_OF_LANGUAGES[language] for language in sorted(wanted & SPEAKS_OF_LANGUAGES.keys())]
    speaks = re.compile("|".join(words) or "(?!)", re.IGNORECASE)

    def rule_of(name: str) -> Rule:
        def rule(content: Content) -> Finding | None:
            answers = content.answers[:1] if kind == "preferences" else content.answers
            for text in [content.prompt] if name == PROMPT else answers:
                language, confidence = language_of(text)
                is_wrong = language not in known and confidence >= min_confidence
                if is_wrong and not speaks.search(content.prompt):
                    return Finding(name, language, shown)
            return None

        return rule

    names = {"prompts": [PROMPT], "documents": [ANSWER]}.get(kind, [PROMPT, ANSWER])
    return {name: rule_of(name) for name in names}


@lru_cache(maxsize=4)
def language_of(text: str) -> tuple[str, float]:
    """The language of a text and the probability that it is; no language for a text that is too short."""
    prose = " ".join(prose_of(text)[: 2 * MAX_CHARACTERS].split())[:MAX_CHARACTERS]
    if sum(map(str.isalpha, prose)) < MIN_CHARACTERS:
        return "", 0.0
    return _identifier().classify(prose)


def most_probable_language(text: str) -> str:
    """The code of the language that a text is most probably in, whatever its length; empty for one without letters.

    English in rare words counts as English, and capitals as small letters, which is what most of the model saw.
    """
    if not any(map(str.isalpha, text)):
        return ""
    language, _ = _identifier().classify(text.lower())
    return {NEAR_ENGLISH: "en", NO_LANGUAGE: ""}.get(language, language)


@cache
def _identifier() -> Identifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # it is in an extra; key_rules.py has checked it

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
