"""Bad rows, rules and sections, given to the stage curate."""

from collections.abc import Callable
from typing import Any

from data_schemas import key_rules
from tests.bad_inputs.bad_models import model
from tests.bad_inputs.cases import Call, Case, Place

RULES = """
def broken(row): raise KeyError("a\\nb")
def number(row): return 3
def text(row): return "3"
"""


def dialog(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]}


def curate(rows: list[Any] | None = None, **keys: Any) -> Callable[[Place], Call]:
    """The stage on two rows, or on these."""

    def make(place: Place) -> Call:
        place.write("rules.py", RULES)
        file = place.write("rows.jsonl", rows or [dialog("Is it?"), dialog("Is that so?")])
        return place.stage("curate", **{"instructions": [file]} | keys)

    return make


def without_py3langid(place: Place) -> Call:
    place.patch.setattr(key_rules, "is_installed", lambda package: False)
    return curate(languages=["en"])(place)


def curate_with_tokenizer(place: Place) -> Call:
    model(place, "base", kind="tiny_base")
    return curate(tokenizer="base")(place)


def varied(synonyms: Callable[[Place], Any]) -> Callable[[Place], Call]:
    def make(place: Place) -> Call:
        file = place.write("prompts.jsonl", [{"prompt": [{"role": "user", "content": "Is the town quick?"}]}])
        keys = {"prompts": [file], "num_variants": 2, "synonyms": [synonyms(place)]}
        return curate(instructions=None, **keys)(place)

    return make


def in_recipe(*settings: str) -> Callable[[Place], Call]:
    return lambda place: place.alignloop("plan", *place.recipe(*settings))


CASES = [
    Case(
        "a weight of no source",
        curate(mix_weights={"row.jsonl": 2}),
        "mix_weights: no row has the source 'row.jsonl'; known: rows.jsonl; did you mean 'rows.jsonl'?",
    ),
    Case("a weight of no tag", curate(mix_by="tag", mix_weights={"x": 2}), "no row has the tag 'x'; known: none"),
    Case(
        "a mix without a row",
        curate(mix_words=1),
        "the mix of instructions has none of the 2 rows: mix_words=1 is too small for a row; expected a larger",
    ),
    Case(
        "a mix of weights 0",
        curate(mix_weights={"rows.jsonl": 0}),
        "has none of the 2 rows: all weights are 0; expected a larger mix_words, or a weight above 0 for one of rows.",
    ),
    *(
        Case(
            f"a mix with the weight {text}",
            in_recipe(f"curate={{mix_weights: {{a: {text}}}}}"),
            f"curate: mix_weights.a={message}: expected a number 0 or more",
        )
        for text, message in (
            ("-0.5", "-0.5"),
            ("null", "None is nothing"),
            ("true", "True is a boolean"),
            ("abc", "'abc' is text"),
        )
    ),
    Case(
        "a mix of a low temperature",
        in_recipe("curate={mix_temperature: 1e-30}"),
        "curate: mix_temperature=1e-30: expected a number 0.01 or more",
    ),
    Case(
        "tags without a mix",
        in_recipe("curate={mix_by: tag}"),
        "curate: mix_by=tag changes nothing without a mix: give mix_weights, mix_temperature, mix_words or mix_tokens",
    ),
    Case(
        "epochs without a mix", in_recipe("curate={max_epochs: 2}"), "curate: max_epochs=2.0 changes nothing without a"
    ),
    Case(
        "variants without synonyms",
        in_recipe("curate={num_variants: 1}"),
        "curate: num_variants and synonyms need each other; set both or neither",
    ),
    Case(
        "phrases without a share",
        in_recipe("curate={phrases: [a]}"),
        "curate: phrases changes nothing without max_phrase_share: the share of the conversations that may have",
    ),
    Case(
        "phrases without a word",
        in_recipe("curate={phrases: [a, ' !!'], max_phrase_share: 0.5}"),
        "curate: phrases=' !!' has no word, so that every row would have it; remove it",
    ),
    Case(
        "no phrases",
        in_recipe("curate={phrases: [], find_phrases: false, max_phrase_share: 0.5}"),
        "curate: max_phrase_share: no phrase is counted: give phrases, or set find_phrases: true",
    ),
    Case(
        "a threshold below 0",
        in_recipe("curate={thresholds: {refusal: -1}}"),
        "curate: thresholds.refusal=-1: expected a number 0 or more or nothing (null)",
    ),
    Case(
        "thresholds that no row meets",
        in_recipe("curate={thresholds: {short_answer: 100, long_answer: 5}}"),
        "curate: thresholds: short_answer=100 is above long_answer=5, so that nothing would be kept; change",
    ),
    Case(
        "a threshold beyond the default of the other end",
        in_recipe("curate={document_rules: [gopher], thresholds: {gopher_max_words: 10}}"),
        "curate: thresholds: gopher_min_words=50 (its default) is above gopher_max_words=10, so that nothing would",
    ),
    *(
        Case(
            f"a rule {name!r} of os",
            in_recipe(f"curate={{row_rules: ['os:{name}']}}"),
            f"defines no function '{name}'",
        )
        for name in ("nofn", "path")
    ),
    *(
        Case(
            f"a language {name!r} in a recipe",
            in_recipe(f"curate={{languages: ['{name}']}}"),
            f"curate: languages: '{name}' is not a language that py3langid knows; expected codes of ISO 639-1, as 'en'",
        )
        for name in ("xx", "1")
    ),
    Case(
        "decontaminate against a device",
        in_recipe("curate={decontaminate_against: [/dev/zero]}"),
        "curate.decontaminate_against: /dev/zero is a device, expected a regular file",
    ),
    Case(
        "synonyms in a device",
        in_recipe("curate={num_variants: 1, synonyms: [/dev/null]}"),
        "curate.synonyms: /dev/null is a device, expected a regular file",
    ),
    Case(
        "synonyms without a word",
        varied(lambda place: place.write("synonyms.txt", "\n")),
        "HERE/synonyms.txt has no synonyms; expected lines with words of one meaning, separated by commas",
    ),
    Case("curate nothing", curate(instructions=None), "curate has nothing to read: give documents, instructions,"),
    Case("curate a missing file", curate(instructions=["gone.jsonl"]), "gone.jsonl does not exist"),
    Case("curate text", curate(["text\n"]), "HERE/rows.jsonl:1 is not a stored row of instructions; expected what"),
    Case("curate other rows", curate([{"text": "a"}]), "rows.jsonl:1 is not a stored row of instructions; expected"),
    Case("curate half a row", curate([{"messages": 3}]), "HERE/rows.jsonl:1 is not a stored row of instructions"),
    Case(
        "curate by a broken rule",
        curate(row_rules=["rules:broken"]),
        "rules:broken raised KeyError: 'a\\nb', on HERE/rows.jsonl:1",
    ),
    Case(
        "curate by a rule that counts",
        curate(row_rules=["rules:number"]),
        "rules:number returned 3; expected a reason as text, or None, on HERE/rows.jsonl:1",
    ),
    Case(
        "curate equal rows",
        curate([dialog("Is it?")] * 3),
        "2 of 3 rows of instructions are dropped (exact_duplicate 2), more than max_dropped=0.5; see dropped.jsonl",
    ),
    Case(
        "curate an unknown language",
        curate(languages=["english"]),
        "languages: 'english' is not a language that py3langid knows; expected codes of ISO 639-1, as 'en'",
    ),
    Case(
        "curate without py3langid",
        without_py3langid,
        "languages: the package py3langid is not installed; install it, as by pip install 'alignloop[data]'",
    ),
    Case(
        "embeddings without a model",
        curate(semantic_duplicates=0.9),
        "semantic_duplicates: embedding_model is missing: the folder of a model that embeds the rows",
    ),
    Case(
        "embeddings by a base that is pretrained later",
        in_recipe("curate={semantic_duplicates: 0.9}", "base_model=null", "pretrain={}", "data.documents=chats.jsonl"),
        "curate: semantic_duplicates: embedding_model is missing: the folder of a model",
    ),
    Case(
        "marks without the mark to keep",
        curate(mark_function="rules:number"),
        "top_mark is missing: mark_function gives the marks, and top_mark is the one that is kept",
    ),
    Case(
        "marks by a broken function",
        curate(mark_function="rules:broken", top_mark=3),
        "rules:broken raised KeyError: 'a\\nb', on HERE/rows.jsonl:1",
    ),
    Case(
        "marks that are text",
        curate(mark_function="rules:text", top_mark=3),
        "rules:text returned '3'; expected a number, or None, on HERE/rows.jsonl:1",
    ),
    Case(
        "a budget of tokens without a tokenizer",
        curate(mix_tokens=9),
        "mix_tokens: tokenizer is missing: the folder of a model whose tokenizer counts them",
    ),
    Case(
        "budgets of words and of tokens",
        curate(mix_tokens=9, mix_words=9, tokenizer="model"),
        "mix_words and mix_tokens are both given: a mix has a budget of words, or of tokens; leave one out",
    ),
    Case(
        "tokens without a chat template",
        curate_with_tokenizer,
        "tokenizer: base has no chat template, which the tokens of instructions depend on; give the model that",
    ),
    Case("no earlier results", curate(earlier_results="gone.bin"), "gone.bin does not exist"),
    Case(
        "earlier results that are rows",
        curate(earlier_results="rows.jsonl"),
        "rows.jsonl is no file of results by row; expected the output `results` of a step of curation",
    ),
    Case("no file of synonyms", varied(lambda place: "gone.txt"), "gone.txt does not exist"),
    Case(
        "synonyms that are not text",
        varied(lambda place: place.write("synonyms.txt", b"\xff\xfe")),
        "HERE/synonyms.txt is not UTF-8 text",
    ),
    Case(
        "a word without a synonym",
        varied(lambda place: place.write("synonyms.txt", "quick, fast\ntown\n")),
        "HERE/synonyms.txt:2: only 'town', expected words of one meaning, separated by commas",
    ),
    Case(
        "an empty path",
        in_recipe("curate={synonyms: ['']}"),
        "curate: synonyms='' is empty text; expected a path",
    ),
    Case("a threshold of no rule", curate(thresholds={"refusl": 3}), "thresholds='refusl' is not one of empty_answer,"),
    Case(
        "a threshold that is text",
        curate(thresholds={"refusal": "x"}),
        "thresholds.refusal='x' is text, expected a number or nothing (null)",
    ),
    Case(
        "curate_sft and a share of the human rows",
        in_recipe("curate_sft={}", "human_share=0.5"),
        "human_share=0.5 takes a part of the human rows, and curate_sft writes them and the winners into one file",
    ),
    Case(
        "curate with a launch",
        in_recipe("curate={launch: {num_processes: 2}}"),
        "curate.launch: this stage is always one process",
    ),
    Case(
        "curate_sft before the rounds",
        in_recipe("by_round={1: {curate: {near_duplicates: 0.9}}}"),
        "by_round.1.curate: curate runs once, before the rounds",
    ),
    Case(
        "paraphrases without a model",
        in_recipe("paraphrase={}"),
        "paraphrase: paraphrase_llm is missing: the language model that writes the paraphrases, as a folder or the "
        "name of an endpoint",
    ),
    Case(
        "paraphrases by a model that is not there",
        in_recipe("paraphrase={paraphrase_llm: gone/nowhere/model}"),
        "paraphrase.paraphrase_llm='gone/nowhere/model' does not exist, neither in HERE nor beside the recipe; no "
        "endpoint of the recipe has this name either",
    ),
    Case(
        "no paraphrase and no language",
        in_recipe("paraphrase={paraphrase_llm: base, num_paraphrases: 0}"),
        "paraphrase: num_paraphrases=0 and no back_translations: nothing is written; set one of them",
    ),
    Case(
        "fewer than no paraphrases",
        in_recipe("paraphrase={paraphrase_llm: base, num_paraphrases: -1}"),
        "paraphrase: num_paraphrases=-1: expected a number 0 or more, at most 100",
    ),
    *(
        Case(
            f"the language {name!r}",
            in_recipe(f"paraphrase={{paraphrase_llm: base, back_translations: [{name!r}]}}"),
            f"paraphrase: back_translations={name!r}: expected the name of a language, as in German",
        )
        for name in ("  ", "de", "9", "German: and be rude")
    ),
    Case(
        "prompts in a language without a name",
        in_recipe("paraphrase={paraphrase_llm: base, prompt_language: '?'}"),
        "paraphrase: prompt_language='?': expected the name of a language, as in German",
    ),
    Case(
        "a language twice",
        in_recipe("paraphrase={paraphrase_llm: base, back_translations: [German, german]}"),
        "paraphrase: back_translations='German' is listed twice; expected other languages than that of the prompts, "
        "each once",
    ),
    Case(
        "a translation from English into English",
        in_recipe("paraphrase={paraphrase_llm: base, back_translations: [English]}"),
        "paraphrase: back_translations='English' is prompt_language too; expected other languages than that",
    ),
    Case(
        "an evaluation set of paraphrases that has no prompts",
        in_recipe("paraphrase={paraphrase_llm: base, decontaminate_against: [pairs.csv]}"),
        "paraphrase.decontaminate_against",
    ),
    *(
        Case(
            f"links of variants that are {what}",
            lambda place, content=content: place.stage(
                "paraphrase",
                prompts=[place.write("prompts.jsonl", [{"prompt": "Is it?"}])],
                paraphrase_llm="base",
                earlier_variants=[place.write("links.jsonl", content) if content is not None else "gone.jsonl"],
            ),
            says,
        )
        for what, content, says in (
            ("rows", [{"text": "a"}], "HERE/links.jsonl has no links of variants; expected the variants.jsonl that"),
            ("not there", None, "gone.jsonl"),
        )
    ),
]
