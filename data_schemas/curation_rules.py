"""Which values of the keys of curation are valid together, and which of them would change nothing. Needs no torch."""

import math
import re
from collections.abc import Sequence

from data_schemas.errors import ConfigError
from data_schemas.ranges import THRESHOLDS, check_ranges
from data_schemas.stage_keys import Keys, Values, with_defaults
from data_schemas.text import shown
from data_schemas.yaml_files import kind_of

# The languages that py3langid 1.1 knows, by their codes; a test compares them with the package's own list.
LANGUAGES = frozenset(
    """ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr
    fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku
    ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa
    sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu
    zxx""".split()
)
MIX_KEYS = ("mix_weights", "mix_temperature", "mix_words", "mix_tokens")  # each asks for a mix


def is_mix(values: Values) -> bool:
    """Whether the values of a curation ask for a mix."""
    is_tempered = values.get("mix_temperature") not in (None, 1)
    return is_tempered or any(values.get(name) for name in MIX_KEYS if name != "mix_temperature")


def is_mix_of_sources(values: Values) -> bool:
    """Whether the values of a curation ask for a mix that weighs the files and steps that rows are from."""
    return is_mix(values) and values.get("mix_by") != "tag"


def check_curation(values: Values) -> None:
    """Raises ConfigError for values that contradict each other, or change nothing; defaults included."""
    if values["semantic_duplicates"] and not values["embedding_model"]:
        raise ConfigError("semantic_duplicates: embedding_model is missing: the folder of a model that embeds the rows")
    if (values["top_mark"] is None) != (values["mark_function"] is None):
        missing = "mark_function" if values["mark_function"] is None else "top_mark"
        raise ConfigError(f"{missing} is missing: mark_function gives the marks, and top_mark is the one that is kept")
    if bool(values["num_variants"]) != bool(values["synonyms"]):
        raise ConfigError("num_variants and synonyms need each other; set both or neither")
    _check_mix(values)
    _check_phrases(values)
    thresholds: Values = values["thresholds"] or {}
    check_ranges({**_default_thresholds(values), **thresholds}, given=thresholds, where="thresholds: ")
    _check_languages(values["languages"] or [])


def check_paraphrases(values: Values) -> None:
    """Raises ConfigError where the values of the stage `paraphrase` ask for nothing, or name a language badly."""
    languages = values["back_translations"] or []
    if not values["paraphrase_llm"]:
        raise ConfigError(
            "paraphrase_llm is missing: the language model that writes the paraphrases, as a folder or the name of an "
            "endpoint"
        )
    if not values["num_paraphrases"] and not languages:
        raise ConfigError("num_paraphrases=0 and no back_translations: nothing is written; set one of them")
    for language in languages:
        _check_name_of_language("back_translations", language)
    _check_name_of_language("prompt_language", values["prompt_language"])
    names = [name.strip().lower() for name in (*languages, values["prompt_language"])]
    for place, name in enumerate(names):
        if name in names[:place]:
            what = "is prompt_language too" if place == len(names) - 1 else "is listed twice"
            raise ConfigError(
                f"back_translations={shown(languages[names.index(name)])} {what}; expected other languages than that "
                "of the prompts, each once"
            )


def _check_name_of_language(key: str, language: str) -> None:
    """A model is asked for a language by its name, which it knows better than a code."""
    is_code = language.strip().lower() in LANGUAGES
    if is_code or not re.fullmatch(r"[^\W\d_][\w '().,-]{2,59}", language.strip()):
        raise ConfigError(f"{key}={shown(language)}: expected the name of a language, as in German")


def _check_mix(values: Values) -> None:
    if values["mix_words"] and (values["mix_tokens"] or values["tokenizer"]):
        other = "mix_tokens" if values["mix_tokens"] else "tokenizer"
        raise ConfigError(
            f"mix_words and {other} are both given: a mix has a budget of words, or of tokens; leave one out"
        )
    if values["mix_tokens"] and not values["tokenizer"]:
        raise ConfigError("mix_tokens: tokenizer is missing: the folder of a model whose tokenizer counts them")
    for name, weight in (values["mix_weights"] or {}).items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < math.inf:
            found = "" if is_number else f" is {kind_of(weight)}"
            raise ConfigError(f"mix_weights.{name}={shown(weight)}{found}: expected a number 0 or more")
    for name, default in (("mix_by", "source"), ("max_epochs", 1)):
        if values[name] != default and not is_mix(values):
            raise ConfigError(
                f"{name}={values[name]} changes nothing without a mix: give {', '.join(MIX_KEYS[:-1])} or "
                f"{MIX_KEYS[-1]}, or leave it out"
            )


def _check_phrases(values: Values) -> None:
    defaults = with_defaults("curate", {})
    for name in ("phrases", "find_phrases"):
        if values["max_phrase_share"] is None and values[name] != defaults[name]:
            raise ConfigError(
                f"{name} changes nothing without max_phrase_share: the share of the conversations that may have the "
                "same phrase; give it, or leave the key out"
            )
    for phrase in values["phrases"]:
        if not re.search(r"[^\W_]", phrase):
            raise ConfigError(f"phrases={shown(phrase)} has no word, so that every row would have it; remove it")
    if values["max_phrase_share"] is not None and not values["phrases"] and not values["find_phrases"]:
        raise ConfigError("max_phrase_share: no phrase is counted: give phrases, or set find_phrases: true")


def _default_thresholds(values: Values) -> Keys:
    """The thresholds with two ends of the rules that are on: rules for dialogs by name, for documents by paper."""
    is_on = {*values["dialog_rules"], *values["document_rules"]}
    return {name: default for name, default in THRESHOLDS.items() if {name, name.partition("_")[0]} & is_on}


def _check_languages(languages: Sequence[str]) -> None:
    """The codes may have any case."""
    for language in languages:
        if language.lower() not in LANGUAGES:
            raise ConfigError(
                f"languages: {shown(language)} is not a language that py3langid knows; expected codes of ISO 639-1, "
                "as 'en'"
            )
