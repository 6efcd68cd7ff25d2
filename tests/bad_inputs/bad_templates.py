"""Bad chat templates, judges and records, given to the stages that read them, and chats that cannot be opened."""

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_schemas.artifact import Artifact
from data_schemas.rows import Message
from engine.tokens import rendering
from engine.tokens.template import encode_dialog, encode_turns
from tests.bad_inputs.bad_models import KEYS, Spoil, annotate, as_it_is, change, model, of_model, sft
from tests.bad_inputs.bad_rows import ANSWER, USER
from tests.bad_inputs.cases import Call, Case, Place

LOOK_AHEAD = "{% for m in messages %}{{ m.content }}{% if loop.last %}!{% endif %}<|im_end|>{% endfor %}"
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no\nsystem') }}{% endif %}"
    "{{ m.content }}<|im_end|>{% endfor %}"
)
COUNTING = "{% for m in messages %}{{ loop.length }}{{ m.role }}{{ m.content }}<|endoftext|>{% endfor %}"
CHATTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MEASURING = CHATTING.replace("{{ m.content }}", "{{ m.content | length }}: {{ m.content }}")
NAMING = CHATTING.replace("{{ m.content }}", "{{ 'f ' if m.role == 'assistant' }}{{ m.content }}")
FIRST_TOOL = "{% for t in (tools or [])[:1] %}{{ t.function.name }}{% endfor %}" + CHATTING
LOOPING = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}


def record(folder: Path, **said: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {
        "stage": "sft",
        "step": "",
        "recipe_version": 1,
        "keys": {},
        "inputs": {},
        "outputs": {},
        "files": {},
        "metrics": {},
    }
    Artifact(**made | said).write(folder)


def of_template(template: str, *dialog: Any, stage: str = "sft") -> Callable[[Place], Call]:
    """Rows of one dialog for a model with this template."""

    def make(place: Place) -> Call:
        (model(place) / "chat_template.jinja").write_text(template)
        row: dict[str, Any] = {"messages": [USER, ANSWER, *dialog]}
        if stage == "dpo":
            row = {"prompt": [USER], "chosen": [*dialog], "rejected": [ANSWER]}
        place.write("rows.jsonl", [row])
        return place.stage(stage, **KEYS[stage](place) | {"train_data": ["rows.jsonl"]})

    return make


def asked_with_a_system_turn(place: Place) -> Call:
    (model(place) / "chat_template.jinja").write_text(NO_SYSTEM)
    prompts = place.write("asked.jsonl", [{"prompt": [{"role": "system", "content": "s"}, USER]}])
    return place.stage("annotate", **annotate(place, prompts=[prompts]))


def of_words(folder: Path) -> None:
    """Replaces the tokenizer by one with a token for each word."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"xqj": 0, "<|endoftext|>": 1}, unk_token="xqj"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>").save_pretrained(folder)


def of_base(
    template: Any, spoil: Spoil = as_it_is, *, named: str = "given.jinja", corpus: str = "", **keys: Any
) -> Callable[[Place], Call]:
    """prepare_base with a template and a corpus from files."""

    def make(place: Place) -> Call:
        spoil(model(place, kind="tiny_base"))
        if corpus:
            place.write("corpus.txt", corpus)
            keys["extend_tokenizer"] = ["corpus.txt"]
        place.patch.setattr(rendering, "MAX_SECONDS", 0.2)
        if template is not None:
            place.write("given.jinja", template)
        return place.stage("prepare_base", model_name_or_path="model", chat_template=named, **keys)

    return make


def of_turns(template: str, answer: Message, *tools: str) -> Callable[[Place], Call]:
    """A question and its answer as tokens, with tools of these names."""

    def make(place: Place) -> Call:
        tokenizer = copy.deepcopy(place.shared("tokenizer"))
        tokenizer.chat_template = template
        functions = [{"type": "function", "function": {"name": name}} for name in tools]
        return place.function(encode_turns, tokenizer, [Message(role="user", content="q"), answer], tools=functions)

    return make


def of_one_sequence(place: Place) -> Call:
    """A dialog of two answers where one sequence is needed, as for an answer of DPO with several turns."""
    tokenizer = copy.deepcopy(place.shared("tokenizer"))
    tokenizer.chat_template = LOOK_AHEAD
    turns = [Message(role="user", content="q"), Message(role="assistant", content="a")]
    return place.function(encode_dialog, tokenizer, [*turns, *turns])


def of_two_contracts(place: Place) -> Call:
    model(place)
    record(place.folder / "made", contract={"chat_template": "another"}, stage="rejection_sampling")
    place.write("made/winners.jsonl", [{"messages": [USER, ANSWER]}])
    return place.stage("sft", **sft(place, train_data=["made/winners.jsonl"]))


def of_damaged_rows(place: Place) -> Call:
    model(place)
    place.write("step/artifact.json", "{")
    place.write("step/rows.jsonl", [{"messages": [USER, ANSWER]}])
    return place.stage("sft", **sft(place, train_data=["step/rows.jsonl"]))


def of_a_damaged_policy(place: Place) -> Call:
    model(place, "step/model")
    place.write("step/artifact.json", "{")
    return place.stage("annotate", **annotate(place, policies=["step/model"]))


def of_earlier(answers: Any = None, **metrics: Any) -> Callable[[Place], Call]:
    """evaluate_policy with an earlier evaluation."""

    def make(place: Place) -> Call:
        model(place)
        keys = annotate(place)
        (place.folder / "earlier").mkdir()
        if metrics:
            record(place.folder / "earlier", metrics=metrics)
        if answers is not None:
            place.write("earlier/answers.jsonl", answers)
        return place.stage(
            "evaluate_policy",
            model_name_or_path="model",
            prompts=keys["prompts"],
            max_new_tokens=2,
            judge_function="scores:same",
            previous=["earlier"],
        )

    return make


def answers_with(*, score: float = 0.0, spread: float = 0.0) -> list[Any]:
    candidate = {"text": "a", "k": 0, "num_tokens": 1, "ended": True, "score": score}
    return [{"prompt": [USER], "prompt_id": "p", "group_id": "g", "candidates": [candidate], "spread": spread}]


def of_policies_as_judges(place: Place) -> Call:
    model(place)
    return place.stage("annotate", **annotate(place) | {"annotator_function": None, "annotator_models": ["model"]})


def rejection_sampling(**keys: Any) -> Callable[[Place], Call]:
    """The reward model has a new score head: here no answer is chosen by its scores."""

    def make(place: Place) -> Call:
        model(place)
        config = model(place, "rewards") / "config.json"
        config.write_text(config.read_text().replace("LlamaForCausalLM", "LlamaForSequenceClassification"))
        given = annotate(place)
        return place.stage(
            "rejection_sampling",
            policies=["model"],
            prompts=given["prompts"],
            reward_model="rewards",
            max_new_tokens=2,
            num_answers=2,
            **keys,
        )

    return make


def chat(*words: str) -> Callable[[Place], Call]:
    def make(place: Place) -> Call:
        from commands import chat as program

        model(place)
        place.patch.setattr(sys, "argv", ["chat.py", *words, "--use_cpu"])
        return program.main

    return make


CASES = [
    # -- templates
    Case("template that is not there", of_base(None), "chat_template='given.jinja' is neither a file nor one of"),
    Case("template that is too long a name", of_base(None, named="x" * 300), "is neither a file nor one of chatml"),
    Case("template that is not text", of_base(b"\xff"), "chat_template='given.jinja' is not UTF-8 text"),
    Case("template that is empty", of_base(""), "model has no chat template; set prepare_base.chat_template (chatml,"),
    Case("template that is not Jinja", of_base("{% for"), "the chat template refuses a dialog of user, assistant: "),
    Case("template that divides by zero", of_base("{{ 1 // 0 }}"), "the chat template refuses a dialog of user,"),
    Case("template that writes nothing", of_base("hello"), "the chat template leaves out the content of an assistant"),
    Case("template without an end token", of_base(NO_END), "the chat template closes an assistant turn without a"),
    Case(
        "template that looks ahead",
        of_base(COUNTING),
        "chat template: the chat template renders turn 2 in another way than it asks for it: the generation prompt",
    ),
    Case("template that refuses a row", of_template(NO_SYSTEM), "row 1: the chat template refuses a dialog of system,"),
    Case(
        "template that looks ahead in a row",
        of_one_sequence,
        "the chat template renders earlier turns differently once more turns follow them, so a dialog with 4 turns",
    ),
    Case("template that refuses a prompt", asked_with_a_system_turn, "the chat template refuses a dialog of system,"),
    Case(
        "template that shouts",
        of_template(CHATTING.replace("m.content", "m.content | upper")),
        "train row 1: the chat template leaves out the content of turn 1: set on_bad_row: set_aside",
    ),
    Case(
        "template that measures",
        of_template(MEASURING, ANSWER | {"content": "other"}, stage="dpo"),
        "train row 1: formatting and content of turn 2 can't be told apart: with other content",
    ),
    Case(
        "template without tool calls",
        of_template(CHATTING, USER, CALL),
        "train row 1: the chat template leaves out the tool calls of turn 4: set on_bad_row: set_aside",
    ),
    Case(
        "template that writes a call in its header",
        of_template(NAMING, CALL, stage="dpo"),
        "train row 1: turn 2 has no content between its header and its termination",
    ),
    Case(
        "template without tools",
        of_turns(CHATTING, Message(role="assistant", content="a"), "f"),
        "the chat template leaves out the tools (f): set on_bad_row: set_aside",
    ),
    Case(
        "template with one tool",
        of_turns(FIRST_TOOL, Message(role="assistant", content="a"), "f", "stars"),
        "the chat template leaves out the tool 'stars': set on_bad_row: set_aside",
    ),
    Case(
        "answer that says nothing",
        of_turns(CHATTING, Message.model_construct(role="assistant", content="")),
        "turn 2 would train its end token only: the chat template writes nothing of it",
    ),
    Case("template that loops", of_base(LOOPING), "the chat template takes more than 0.2 seconds for one dialog; set"),
    Case("template that explodes", of_base("{{ 'a' * 3000000000 }}"), "takes more than 2 GiB of memory for one dialog"),
    Case("template that is random", of_base("{{ range(9) | random }}"), "the chat template is random: it renders the"),
    Case(
        "template that writes an address",
        of_base(CHATTING + "{{ messages[0].items }}"),
        "the chat template renders the same dialog differently each time; set another chat_template",
    ),
    Case(
        "template that joins lines",
        of_template(CHATTING.replace("m.content", "m.content.split() | join(' ')"), USER, ANSWER | {"content": "a\nb"}),
        "train row 1: the chat template changes the white space within the content of turn 4: set on_bad_row",
    ),
    Case("template that computes a power", of_base("{{ 9 ** 9 }}"), "the chat template computes a power (**), which"),
    Case(
        "template that reads the clock",
        of_base("{% set f = '%d' %}{{ strftime_now(f) }}"),
        "the chat template reads the clock (strftime_now) in a way that can't be replaced by a fixed date; set",
    ),
    Case(
        "corpus without a number of tokens",
        of_base(CHATTING, extend_tokenizer=["rows.txt"]),
        "extend_tokenizer and num_new_tokens need each other; set both or neither",
    ),
    Case(
        "corpus that repeats nothing",
        of_base(CHATTING, corpus="xqj", num_new_tokens=5),
        "extend_tokenizer has repeated pieces for 0 new tokens, expected num_new_tokens=5: give more texts, or fewer",
    ),
    Case(
        "tokenizer of whole words",
        of_base(CHATTING, of_words, corpus="xqj xqj", num_new_tokens=1),
        "extend_tokenizer: model has a WordLevel tokenizer, expected byte-level BPE, as Llama 3, Qwen and SmolLM2 have",
    ),
    Case("date that is none", of_base(CHATTING, template_date="now"), "template_date='now': expected a date as YYYY-"),
    Case(
        "template without a system role",
        of_base(NO_SYSTEM.replace("im_end", "endoftext"), needs_system_role=True),
        "rejection_sampling.system_prompts puts system messages before the prompts, but the chat template refuses",
    ),
    Case(
        "rows beyond the model's positions",
        of_model("sft", change("config.json", max_position_embeddings=8)),
        "rows are longer than the model's 8 positions, the longest has",
    ),
    Case("template whose turns do not end", of_template(NO_END), "train row 1: turn 2 does not end in the end token"),
    # -- answers and their judges
    Case(
        "judge that gives text",
        of_model("annotate", as_it_is, annotator_function="scores:text"),
        "gave 'good', expected a finite number",
    ),
    Case(
        "judge that gives infinity",
        of_model("annotate", as_it_is, annotator_function="scores:infinite"),
        "gave inf, expected a finite number",
    ),
    Case(
        "judge that raises",
        of_model("annotate", as_it_is, annotator_function="scores:raises"),
        "raised KeyError: 'a\\nb'",
    ),
    Case(
        "judge that takes too long",
        of_model("annotate", as_it_is, annotator_function="scores:slow", function_timeout=0.1),
        "took longer than function_timeout=0.1 seconds",
    ),
    Case(
        "toy world's judge of another question",
        of_model("annotate", as_it_is, annotator_function="toy_world.gold:gold"),
        "raised ValueError: the toy world has no such question: 'question ",
    ),
    Case("answers that are all alike", of_model("annotate", as_it_is), "no pair is left of 2 prompts:"),
    Case("policy as a judge", of_policies_as_judges, "model is not a reward model, expected the model of a step rewa"),
    Case("answers that never end", rejection_sampling(), "no answer is kept of 4: unfinished 2; see max_new_tokens,"),
    Case("answers that never end, by quartile", rejection_sampling(keep_by="top_quartile"), "no answer is kept of 4:"),
    # -- records
    Case("rows of another contract", of_two_contracts, "train_data made/winners.jsonl was made with another contract"),
    Case("record beside the rows is damaged", of_damaged_rows, "step/artifact.json is not a record ("),
    Case("record beside the policy is damaged", of_a_damaged_policy, "step/artifact.json is not a record ("),
    Case("evaluation without a record", of_earlier(), "earlier holds no finished evaluation"),
    Case("evaluation by another judge", of_earlier(judge="gold"), "earlier was judged by gold, this one by"),
    Case("evaluation without answers", of_earlier(judge="scores:same"), "earlier/answers.jsonl does not exist"),
    Case(
        "evaluation of other prompts",
        of_earlier([], judge="scores:same"),
        "earlier has other prompts or another num_answers: not comparable",
    ),
    Case(
        "evaluation whose answers are no rows",
        of_earlier([{"text": "a"}], judge="scores:same"),
        "earlier/answers.jsonl:1: prompt: found nothing, expected a value (not a stored Candidates)",
    ),
    Case(
        "evaluation with a score that is nan",
        of_earlier(answers_with(score=math.nan), judge="scores:same"),
        "earlier/answers.jsonl:1: candidates.0.score: found nan, expected a finite number (not a stored Candidates)",
    ),
    Case(
        "evaluation with an endless spread",
        of_earlier(answers_with(spread=math.inf), judge="scores:same"),
        "earlier/answers.jsonl:1: spread: found inf, expected a finite number (not a stored Candidates)",
    ),
    # -- chat
    Case("chat without a prompt", chat("model", "--prompt", " "), "--prompt is empty"),
    Case("chat that is too cold", chat("model", "--temperature", "-1"), "--temperature=-1.0: expected a number 0 or"),
    Case("chat with no model", chat("gone", "--prompt", "hi"), "gone has no tokenizer that can be read"),
]
