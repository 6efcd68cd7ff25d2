"""The keys of curation: which rows are read, and what each rule may find."""

from dataclasses import dataclass
from typing import Literal

from data_schemas.sources import SourceValue
from engine.curation.dialog_rules import ANSWER_CHECKS, PROMPT_CHECKS
from engine.curation.document_rules import CHECKS
from engine.curation.phrases import DEFAULT_PHRASES
from engine.runtime.arguments import PlainStageArguments
from engine.runtime.keys import key_field


@dataclass(kw_only=True)
class CurateArguments(PlainStageArguments):
    """The rows and the rules of a curation."""

    documents: list[str] | None = key_field(None, "stored rows to pretrain on", role="rows")
    instructions: list[str] | None = key_field(None, "stored conversations for SFT", role="rows")
    preferences: list[str] | None = key_field(None, "stored preference pairs", role="rows")
    prompts: list[str] | None = key_field(None, "stored prompts to sample from", role="rows")
    evaluation_prompts: list[str] | None = key_field(None, "stored prompts that policies are evaluated on", role="rows")
    decontaminate_against: list[SourceValue] | None = key_field(
        None, "more evaluation sets: files of prompts in any format", role="rows"
    )
    contamination_rules: list[Literal["llama3_exact_prompt", "tulu3_8gram", "near_evaluation_prompt"]] = key_field(
        ["llama3_exact_prompt", "tulu3_8gram", "near_evaluation_prompt"],
        "drop rows whose prompt equals an evaluation prompt or nearly does, or that have most of its words in 8-grams; "
        "[]: none",
        may_be_empty=True,
    )
    contaminated_share: float = key_field(
        0.5, "with tulu3_8gram: the share of an evaluation prompt's words that a row has at most", minimum=0, below=1
    )
    row_rules: list[str] | None = key_field(
        None, "module:function(row), each returns why a row is dropped, or None", role="function"
    )
    document_rules: list[Literal["gopher", "c4", "fineweb"]] = key_field(
        [], "published rules for documents of the web; a document that breaks one is dropped"
    )
    dialog_rules: list[str] = key_field(
        [name for name in (*ANSWER_CHECKS, *PROMPT_CHECKS) if name != "refusal"],
        "rules for conversations, prompts, and the best answers of preference pairs; []: none",
        choices=(*ANSWER_CHECKS, *PROMPT_CHECKS),
        may_be_empty=True,
    )
    thresholds: dict[str, float | None] | None = key_field(
        None,
        "thresholds of rules, as in {refusal: 60, short_answer: null}; a number switches its rule on, null leaves it "
        "out",
        choices=(*ANSWER_CHECKS, *PROMPT_CHECKS, *CHECKS),
        minimum=0,
    )
    languages: list[str] | None = key_field(
        None, "the languages that are kept, by ISO 639-1 codes as en; null: all. Needs the extra data"
    )
    exact_duplicates: bool = key_field(True, "drop rows whose normalised text equals that of another")
    near_duplicates: float | None = key_field(
        0.8,
        "drop rows whose Jaccard similarity in word 5-grams to a better row is this or more; null: none",
        above=0,
        maximum=1,
    )
    semantic_duplicates: float | None = key_field(
        None,
        "drop conversations whose embedding has this cosine or more to that of a better one; null: none",
        above=0,
        maximum=1,
    )
    embedding_model: str | None = key_field(None, "the model whose mean hidden state is the embedding", role="model")
    mask_personal_data: bool = key_field(
        False, "replace e-mail and IP addresses, phone, card and account numbers, and secret keys by masks as <EMAIL>"
    )
    min_score: float | None = key_field(None, "drop rows with a lower reward; null: none")
    top_share: float | None = key_field(
        None, "keep this share of the rows with a reward, the best; 0.25 is the top quartile", above=0, maximum=1
    )
    mark_function: str | None = key_field(
        None,
        "module:function(row) -> a judge's mark of the row, or None; with top_mark",
        role="function",
        omitted_at_default=True,
    )
    top_mark: float | None = key_field(
        None,
        "drop rows with a lower mark, but for those that top_share keeps; a row with this mark stays whatever its "
        "reward: the union of both, as in Llama 3",
        omitted_at_default=True,
    )
    min_difficulty: float | None = key_field(
        None, "drop rows whose prompt's answers have a smaller spread of rewards; null: none", minimum=0
    )
    max_phrase_share: float | None = key_field(
        None,
        "share of the conversations that may have the same phrase; the worst leave first; null: any",
        above=0,
        below=1,
    )
    phrases: list[str] = key_field(
        list(DEFAULT_PHRASES), "with max_phrase_share: the phrases that are counted; []: none", may_be_empty=True
    )
    find_phrases: bool = key_field(
        True, "with max_phrase_share: count also the phrases that a policy uses more often than people"
    )
    mix_by: Literal["source", "tag"] = key_field("source", "what the mix weighs: the rows' files, or their tags")
    mix_weights: dict[str, float] | None = key_field(
        None, "weight of a source or tag in the mix, 0 or more; others have 1"
    )
    mix_temperature: float = key_field(
        1.0,
        "a source of n words or tokens has n^(1/T) of the mix: above 1, small sources have more than their share",
        minimum=0.01,
    )
    mix_words: int | None = key_field(None, "words of the mix; null: as many as the shares allow", minimum=1)
    mix_tokens: int | None = key_field(
        None,
        "tokens of the mix after the chat template; null: as many as the shares allow",
        omitted_at_default=True,
        minimum=1,
    )
    tokenizer: str | None = key_field(
        None,
        "the model whose tokenizer and chat template count tokens, in the mix and in the funnel; null: words are "
        "counted, and with mix_tokens the tokens of the base model",
        role="model",
        omitted_at_default=True,
    )
    max_epochs: float = key_field(1.0, "how often the mix has the rows of a source at most", above=0, maximum=1000)
    keep_results: bool = key_field(
        False,
        "write what the rules for single rows found of the instructions, for a later step's earlier_results",
        omitted_at_default=True,
    )
    earlier_results: str | None = key_field(
        None,
        "results by row of an earlier step, which are taken over for rows that are equal",
        role="rows",
        omitted_at_default=True,
    )
    num_variants: int = key_field(
        0,
        "variants of each prompt by synonyms, insertion, swap and deletion of words (EDA); 0: none",
        minimum=0,
        maximum=100,
    )
    synonyms: list[str] | None = key_field(
        None, "with num_variants: files with words of one meaning in a line, separated by commas", role="rows"
    )
    max_dropped: float = key_field(
        0.5, "the most of a kind's rows that the rules may drop; more is an error", minimum=0, maximum=1
    )
