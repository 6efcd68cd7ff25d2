"""Adds steps to a plan: one for each model that a section trains, and none that would repeat an earlier one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data_schemas.curation_rules import is_mix_of_sources
from data_schemas.stage_keys import Keys, Values
from pipeline.averages import average_across_rounds, with_average
from pipeline.recipe.names import Section
from pipeline.recipe.resolved import Recipe
from pipeline.steps import (
    BestPolicy,
    Inputs,
    Model,
    Output,
    Reference,
    Split,
    Step,
    file_of,
    make_step,
    source_steps,
    split_of,
)

CURATED = ("documents", "instructions", "preferences", "prompts")  # kinds of rows, as prepare_data names them
SAMPLES = {"num_prompts": 8, "num_answers": 1}  # what an evaluation without a judge samples


@dataclass
class Plan:
    """The steps so far, in the order they run. A step that would repeat an earlier one is not added again."""

    recipe: Recipe
    steps: list[Step] = field(default_factory=list)
    training_rows: str = "prepare_data"  # the step that writes the rows of the files that are trained on
    training_prompts: str = ""  # the step that adds paraphrases to the prompts among them, if there is one

    def add(
        self,
        section: Section,
        round_number: int | None = None,
        *,
        name: str = "",
        inputs: Inputs,
        keys: Values | None = None,
        without: Sequence[str] = (),
    ) -> str:
        """Adds the step of a section, without some of its keys, and returns its name, or that of an equal earlier
        step."""
        name = name or step_name(section, round_number)
        given = self.recipe.section(section, round_number or 0).keys
        values = {key: value for key, value in given.items() if key not in without}
        step = make_step(self.recipe, section, round_number, name=name, values=values, inputs=inputs, keys=keys or {})
        return self._add_unless_repeated(step)

    def used_steps(self) -> list[Step]:
        """The steps in the order they run, without paraphrases of prompts that no step answers: they would be paid for
        in vain, and `check_unused` reports their section."""
        read = {name for step in self.steps for name in source_steps(step)}
        return [step for step in self.steps if step.name != self.training_prompts or step.name in read]

    @property
    def asks_for_evaluation_prompts(self) -> bool:
        return bool({"evaluation_share", "evaluation_prompts"} & self.recipe.section("data").keys.keys())

    @property
    def mixes_sources(self) -> bool:
        """Whether a curation of the recipe has a mix that needs to know which file each row is from."""
        rounds = range(1, self.recipe.rounds + 1)
        curations = [self.recipe.section("curate"), *(self.recipe.section("curate_sft", number) for number in rounds)]
        return any(section.is_in_file and is_mix_of_sources(section.keys) for section in curations)

    def add_data(self, *, is_evaluated: bool, keeps_sources: bool = False) -> str:
        """Adds the step that prepares the data. Where nothing is judged, no dialog is held out for it. Returns its
        name."""
        keys: Keys = {} if is_evaluated or self.asks_for_evaluation_prompts else {"evaluation_share": 0.0}
        if keeps_sources or self.mixes_sources:
            keys["keep_sources"] = True
        return self.add("data", name="prepare_data", inputs={}, keys=keys)

    def curate_data(self, data: str, tokenizer: Reference | None) -> None:
        """Adds a step that curates the training rows of the files."""
        inputs = {kind: Output(data, f"{kind}.train", optional=True) for kind in CURATED}
        given = self.recipe.base_model
        base = Model(given) if given else None  # one that is pretrained here exists only after curation
        self.training_rows = self.add_curation("curate", None, inputs, base, tokenizer)

    def add_curation(
        self,
        section: Section,
        round_number: int | None,
        inputs: Inputs,
        embedding_model: Reference | None,
        tokenizer: Reference | None,
        keys: Values | None = None,
    ) -> str:
        """Adds a step that curates rows. The models embed them and count their tokens where the section wants it and
        names no other."""
        given = self.recipe.section(section, round_number or 0).keys
        held_out = Output("prepare_data", "evaluation_prompts", optional=True)
        models: dict[str, Reference | None] = {}
        if given.get("semantic_duplicates") and not given.get("embedding_model"):
            models["embedding_model"] = embedding_model
        if given.get("mix_tokens") and not given.get("tokenizer"):
            models["tokenizer"] = tokenizer
        return self.add(section, round_number, inputs={**inputs, "evaluation_prompts": held_out, **models}, keys=keys)

    def paraphrase_prompts(self) -> None:
        """Adds a step that adds paraphrases to the training prompts of the files."""
        keys, of_curation = self.recipe.section("paraphrase").keys, self.recipe.section("curate").keys
        inputs: dict[str, Reference | Sequence[Reference] | None] = {
            "prompts": Output(self.training_rows, "prompts.train"),
            "held_out_prompts": [
                Output("prepare_data", name, optional=True) for name in ("evaluation_prompts", "prompts.validation")
            ],
        }
        if self.training_rows != "prepare_data":
            if of_curation.get("num_variants"):
                inputs["earlier_variants"] = Output(self.training_rows, "variants", optional=True)
            others = of_curation.get("decontaminate_against")
            if others and keys.get("decontaminate_against") is None:
                inputs["decontaminate_against"] = [file_of(value) for value in others]
        self.training_prompts = self.add("paraphrase", inputs=inputs)

    def split(self, kind: str, *, optional: bool = False) -> Split:
        """The rows of the recipe's files of a kind: those to train on, curated and paraphrased if the recipe has
        sections for it, and those that are held out for validation.
        """
        of_data = split_of("prepare_data", kind, optional=optional)
        step = self.training_prompts if kind == "prompts" and self.training_prompts else self.training_rows
        return of_data._replace(train=replace(of_data.train, step=step))

    def train(self, section: Section, round_number: int | None, inputs: Inputs, keys: Values | None = None) -> Output:
        """Adds the steps of a section that trains, with the same inputs and keys for all its variants. Returns its
        model."""
        num_variants = len(self.recipe.section(section, round_number or 0).variants)
        return self.train_variants(
            section, round_number, inputs=[inputs] * num_variants, keys=[keys or {}] * num_variants
        )

    def train_variants(
        self,
        section: Section,
        round_number: int | None,
        *,
        inputs: Sequence[Inputs],
        keys: Sequence[Values] | None = None,
    ) -> Output:
        """Adds the steps of a section that trains, with one entry of `inputs` and of `keys` for each variant.

        Each variant gets a step; where there are several, one more step averages their models. Returns the section's
        model.
        """
        name, resolved = step_name(section, round_number), self.recipe.section(section, round_number or 0)
        keys = keys or [{}] * len(inputs)
        steps = [
            make_step(
                self.recipe,
                section,
                round_number,
                name=f"{name}.{place}",
                values=variant.keys,
                inputs=inputs_of_variant,
                keys=keys_of_variant,
            )
            for place, (variant, inputs_of_variant, keys_of_variant) in enumerate(
                zip(resolved.variants, inputs, keys, strict=True), 1
            )
        ]
        *parts, last = with_average(name, steps, resolved)
        self.steps.extend(parts)
        return Output(self._add_unless_repeated(last), "model")

    def parts_of(self, model: Output) -> list[Output]:
        """The models of the variants whose average this model is; itself where it is not an average."""
        step = next(step for step in self.steps if step.name == model.step)
        parts = step.inputs["models"] if step.stage == "average_models" else [model]
        return [part for part in parts if isinstance(part, Output)]

    def average_with_best(self, round_number: int, best: Output | BestPolicy, trained: Output) -> Output:
        """Adds the step that averages the best policy before a round with the one that the round has trained, and
        returns its model."""
        step = next(step for step in self.steps if step.name == trained.step)
        name, weight = step_name("average", round_number), self.recipe.average_with_best
        average = average_across_rounds(name, round_number, step, [best, trained], [weight, 1.0 - weight])
        return Output(self._add_unless_repeated(average), "model")

    def evaluate(self, round_number: int | None, policy: Output, inputs: Inputs) -> str:
        """Adds the evaluation of a policy and returns the name of its step."""
        inputs = {"model_name_or_path": policy, **inputs}
        return self.add("evaluate_policy", round_number, inputs=inputs, keys={"policy_step": policy.step})

    def evaluate_tasks(self, round_number: int | None, policy: Output, inputs: Inputs) -> str:
        """Adds the evaluation of a policy on standard benchmarks and returns the name of its step."""
        inputs = {"model_name_or_path": policy, **inputs}
        return self.add("evaluate_tasks", round_number, inputs=inputs, keys={"policy_step": policy.step})

    def sample_answers(self, policy: Output, data: str) -> str:
        """Adds an evaluation without a judge, which only writes answers, and returns the name of its step.

        Its prompts are those that are held out: for evaluations where the recipe asks for it, and for validation.
        """
        names = ["evaluation_prompts"] if self.asks_for_evaluation_prompts else []
        prompts = [Output(data, name, optional=True) for name in (*names, "prompts.validation")]
        given = self.recipe.section("evaluate_policy").keys
        keys = {name: value for name, value in SAMPLES.items() if given.get(name) is None}
        inputs = {"model_name_or_path": policy, "prompts": prompts}
        return self.add("evaluate_policy", inputs=inputs, keys=keys | {"policy_step": policy.step})

    def _add_unless_repeated(self, step: Step) -> str:
        for earlier in self.steps:  # a reward model without new pairs is that of the round before
            if replace(earlier, name=step.name, round=step.round) == step:
                return earlier.name
        self.steps.append(step)
        return step.name


def step_name(section: Section, round_number: int | None) -> str:
    """The name of a section's step in a round, as in round-1.dpo, or before the rounds."""
    return section if round_number is None else f"round-{round_number}.{section}"
