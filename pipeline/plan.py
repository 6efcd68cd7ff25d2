"""The plan of a run: a recipe becomes a list of steps. Planning runs nothing and reads no data. Read this file first,
then foundation.py, what is planned before the rounds.

`make_plan` describes the training loop: the data and the base model, the first policy, then the rounds. An input of a
step is a reference to an output of an earlier step, so the fingerprint of every step (a hash of its keys and inputs) is
known before anything runs. "The best policy so far" is a reference to the evaluation that ranks the policies; the
runner looks up the model when it starts the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_schemas.errors import ConfigError
from pipeline.builder import Plan
from pipeline.foundation import Foundation, plan_base, plan_data, plan_data_and_base, plan_judge, plan_pretraining
from pipeline.recipe.names import Section
from pipeline.recipe.resolved import Recipe
from pipeline.steps import (
    BestPolicy,
    EvaluationFolder,
    Inputs,
    Model,
    Output,
    Reference,
    Split,
    Step,
    split_of,
    training_inputs,
)


@dataclass
class Progress:
    """What the rounds so far have produced."""

    policies: list[Output]  # the first one is that of round 0
    trained: list[Output] = field(default_factory=list)  # what rounds have trained, before an average with the best
    tasks: list[str] = field(default_factory=list)  # the evaluation on tasks of each policy
    evaluations: list[str] = field(default_factory=list)  # the evaluation step of each policy
    preferences: list[Split] = field(default_factory=list)  # batches of preference pairs, the most recent one last
    winners: list[Split] = field(default_factory=list)  # batches of rejection sampling's winners, likewise
    candidates: list[Output] = field(default_factory=list)  # all its answers with their scores, likewise
    reward_model: Output | None = None

    @property
    def best(self) -> list[Output | BestPolicy]:
        """The best policy so far and, after round 0, the second best. Without evaluations, the newest ones."""
        if not self.evaluations:
            return [*reversed(self.policies[-2:])]
        return [BestPolicy(self.evaluations[-1], rank=rank) for rank in range(min(2, len(self.policies)))]


def make_plan(recipe: Recipe) -> list[Step]:
    """All steps in the order they run.

    Raises ConfigError for a key that the plan sets itself, a required key without a value, values that are not
    supported together, and a round that trains no policy.
    """
    plan = Plan(recipe)
    if recipe.stages is None:
        plan_loop(plan)
    else:
        plan_one_pass(plan, recipe.stages)
    return plan.used_steps()


def plan_loop(plan: Plan) -> None:
    """A run with rounds: data, base model and judge, the first policy, and the rounds."""
    recipe, foundation = plan.recipe, plan_data_and_base(plan)
    first_policy = foundation.base
    if recipe.first_sft:
        inputs = {"model_name_or_path": foundation.base, **training_inputs([foundation.instructions])}
        first_policy = plan.train("sft", 0, inputs)
    progress = Progress([first_policy], [first_policy])
    tasks = plan_tasks(plan, 0, progress)
    if foundation.evaluation:
        progress.evaluations.append(plan.evaluate(0, first_policy, {**foundation.evaluation, **tasks}))
    if recipe.has_preferences and recipe.rounds:
        # The data set must have training pairs, unless a named annotator adds pairs in round 1.
        optional = recipe.names_annotator(1)
        progress.preferences.append(plan.split("preferences", optional=optional))
    for number in range(1, recipe.rounds + 1):
        plan_round(plan, number, foundation, progress)


def plan_one_pass(plan: Plan, stages: Sequence[str]) -> None:
    """A run without rounds: the stages that the recipe lists, each once, on the data of the recipe."""
    is_judged = "evaluate_policy" in stages and plan.recipe.has_judge
    data = plan_data(plan, is_evaluated=is_judged, is_pretrained="pretrain" in stages)
    if set(stages) == {"pretrain"}:
        plan_pretraining(plan, None if plan.recipe.base_model is None else Model(plan.recipe.base_model))
        return
    base = policy = plan_base(plan)
    if "sft" in stages:
        inputs = {"model_name_or_path": base, **training_inputs([plan.split("instructions")])}
        policy = plan.train("sft", None, inputs)
    pairs = training_inputs([plan.split("preferences")])
    reward_model = None
    if "reward_model" in stages:
        reward_model = plan.train("reward_model", None, {"model_name_or_path": base, **pairs})
    if "dpo" in stages:
        policy = plan.train("dpo", None, {"model_name_or_path": policy, **pairs})
    if "rl" in stages:
        inputs = rl_inputs(plan, None, policy, plan.split("prompts"), reward_model)
        policy = Output(plan.add("rl", inputs=inputs), "model")
    tasks = plan_tasks(plan, None, Progress([policy])) if "evaluate_tasks" in stages else {}
    if is_judged:
        plan.evaluate(None, policy, {**plan_judge(plan, data, base), **tasks})
    elif "evaluate_policy" in stages:
        plan.sample_answers(policy, data)


def plan_curation_for_sft(plan: Plan, number: int, splits: Sequence[Split], base: Output) -> Output:
    """Adds the step that curates what SFT is trained on in a round, winners and human rows together. Returns its
    rows."""
    inputs: dict[str, Reference | list[Reference]] = {"instructions": [split.train for split in splits]}
    before = f"round-{number - 1}.curate_sft"
    if any(step.name == before for step in plan.steps):  # most rows are the same human ones: only new ones are read
        inputs["earlier_results"] = Output(before, "results")
    keys = {"keep_results": True}  # in the last round too: with `rounds` raised it is still the same step
    return Output(plan.add_curation("curate_sft", number, inputs, base, base, keys), "instructions.train")


def rl_inputs(
    plan: Plan, round_number: int | None, policy: Output | BestPolicy, prompts: Split, reward_model: Output | None
) -> Inputs:
    """What RL reads. The newest reward model is its reward, unless the section has `reward_model: null`."""
    takes_none = plan.recipe.section("rl", round_number or 0).keys.get("reward_model", "") is None
    reward = {"reward_model": reward_model} if reward_model and not takes_none else {}
    return {"model_name_or_path": policy, "train_data": prompts.train, "eval_data": prompts.validation, **reward}


def plan_tasks(plan: Plan, number: int | None, progress: Progress) -> Inputs:
    """Adds the evaluation of the newest policy on standard benchmarks, if the recipe has a section for it. Returns what
    its other evaluation reads of it, whose gate compares it with the best policy so far."""
    if not plan.recipe.evaluates_tasks:
        return {}
    first = EvaluationFolder(progress.tasks[0]) if progress.tasks else None
    progress.tasks.append(plan.evaluate_tasks(number, progress.policies[-1], {"first": first}))
    return {"tasks": [EvaluationFolder(name) for name in progress.tasks]}


def rank_by(plan: Plan, number: int, reward_model: Output | None) -> Inputs:
    """The reward models of rejection sampling: the newest one; with `vote`, its variants in place of their average."""
    if reward_model is None:
        return {}
    votes = plan.recipe.section("rejection_sampling", number).keys.get("vote") is not None
    first, *others = plan.parts_of(reward_model) if votes else [reward_model]
    return {"reward_model": first, **({"other_reward_models": others} if others else {})}


def earlier_scores(plan: Plan, section: Section, number: int, progress: Progress) -> Inputs:
    """The answers that rejection sampling has scored so far, where a section draws the hardest prompts first."""
    is_by_difficulty = plan.recipe.section(section, number).keys.get("prompt_order") == "hardest_first"
    return {"earlier_candidates": progress.candidates} if is_by_difficulty and progress.candidates else {}


def plan_dpo(plan: Plan, number: int, start: Output | BestPolicy, progress: Progress) -> Output:
    """DPO in a round, on the most recent batches of pairs, and of older ones on a smaller share.

    `start` is the SFT model of the round, or the best policy so far.
    """
    recipe = plan.recipe
    reference = {"reference_model": progress.policies[0]} if recipe.dpo_reference == "first" else {}
    models = {"model_name_or_path": start, **reference}
    batches = [variant.dpo_batches for variant in recipe.section("dpo", number).variants]
    data = [progress.preferences[-num_batches:] for num_batches in batches]
    shares = [[round(recipe.dpo_batch_decay**age, 12) for age in reversed(range(len(splits)))] for splits in data]
    keys = [{"train_data_shares": given if min(given) < 1 else None} for given in shares]
    return plan.train_variants("dpo", number, inputs=[models | training_inputs(splits) for splits in data], keys=keys)


def plan_round(plan: Plan, number: int, foundation: Foundation, progress: Progress) -> None:
    """Adds the steps of one round to the plan, and what they produce to `progress`.

    Raises ConfigError where the round trains no new policy.
    """
    recipe, stages_of_round = plan.recipe, plan.recipe.stages_of_round(number)
    best_two = progress.best  # round 0 has one policy
    best = best_two[0]

    # A named annotator compares answers from round 1 on; else the newest reward model does, and round 1 has no step.
    if "annotate" in stages_of_round and (recipe.names_annotator(number) or progress.reward_model):
        policies = best_two if recipe.annotate_policies == "best_two" else [best]
        if recipe.asks_people_second(number) and recipe.names_annotator(number):
            judges = {"second_opinion": progress.reward_model}
        else:
            judges = {} if recipe.names_annotator(number) else {"annotator_models": progress.reward_model}
        inputs = {**foundation.prompts, "policies": policies, **judges}
        inputs |= earlier_scores(plan, "annotate", number, progress)
        annotate = plan.add("annotate", number, inputs=inputs, keys={"round": number})
        progress.preferences.append(split_of(annotate, "pairs"))

    # The reward model is trained on all pairs so far, in every round or only in the first.
    if "reward_model" in stages_of_round and (recipe.refit_reward_model or progress.reward_model is None):
        start = best if recipe.reward_model_from == "best" else foundation.reward_base
        inputs = {"model_name_or_path": start, **training_inputs(progress.preferences)}
        # Its tokenizer and template may be others than those of the policies whose answers it reads.
        reads_others = recipe.reward_base and "other_contract" not in recipe.section("reward_model", number).keys
        keys = {"other_contract": True} if reads_others else {}
        progress.reward_model = plan.train("reward_model", number, inputs, keys)

    policy: Output | BestPolicy = best  # the model that the round trains further
    if recipe.dpo_comes_first(number):
        policy = plan_dpo(plan, number, policy, progress)

    if "rejection_sampling" in stages_of_round:
        sampled = best_two if policy == best else [policy, best]
        policies = sampled if recipe.sampling_policies == "best_two" else sampled[:1]
        reward_models = rank_by(plan, number, progress.reward_model)
        scores = earlier_scores(plan, "rejection_sampling", number, progress)
        inputs = {**foundation.prompts, "policies": policies, **reward_models, **scores}
        sampling = plan.add("rejection_sampling", number, inputs=inputs, keys={"round": number})
        progress.winners.append(split_of(sampling, "winners"))
        progress.candidates.append(Output(sampling, "candidates"))

    if "sft" in stages_of_round:
        start = {"model_name_or_path": policy if recipe.sft_from == "best" else foundation.base}
        winners = progress.winners[-recipe.sft_batches :] if "rejection_sampling" in stages_of_round else []
        shares = [variant.human_share for variant in recipe.section("sft", number).variants]
        data = [[*winners, foundation.instructions] if share else winners for share in shares]
        keys = [{"train_data_shares": [1.0] * len(winners) + [s] if 0 < s < 1 else None} for s in shares]
        inputs = [start | training_inputs(splits) for splits in data]
        if recipe.section("curate_sft", number).is_in_file:  # all variants are then trained on the same rows
            curated = plan_curation_for_sft(plan, number, data[0], foundation.base)
            inputs = [of_variant | {"train_data": curated} for of_variant in inputs]
        policy = plan.train_variants("sft", number, inputs=inputs, keys=keys)

    if "dpo" in stages_of_round and not recipe.dpo_comes_first(number):
        policy = plan_dpo(plan, number, policy, progress)

    # RL goes on from that policy; its rewards are the round's reward model, functions, or both.
    if "rl" in stages_of_round:
        prompts = plan.split("prompts")
        inputs = rl_inputs(plan, number, policy, prompts, progress.reward_model)
        policy = Output(plan.add("rl", number, inputs=inputs, keys={"round": number}), "model")

    if policy == best or isinstance(policy, BestPolicy) or policy in progress.trained:
        raise ConfigError(
            f"{recipe.path}: round {number} trains no new policy: {recipe.key_of_stages(number)} has "
            "neither rejection_sampling with sft, nor dpo, nor rl"
        )
    progress.trained.append(policy)
    if recipe.average_with_best:
        policy = plan.average_with_best(number, best, policy)
    progress.policies.append(policy)
    tasks = plan_tasks(plan, number, progress)
    if foundation.evaluation is None:
        return
    named = [Model(name) for name in recipe.named_reward_models(number)]
    annotates = "annotate" in stages_of_round and not recipe.names_annotator(number)
    reads = any(recipe.takes_reward_model(name, number) for name in ("rejection_sampling", "rl"))
    newest = progress.reward_model if annotates or reads or "reward_model" in stages_of_round else None
    inputs = {
        **foundation.evaluation,
        **tasks,
        "first_policy": progress.policies[0],
        "proxy_model": newest or next(iter(named), None),  # what the round optimises
        "previous": [EvaluationFolder(name) for name in progress.evaluations],
    }
    progress.evaluations.append(plan.evaluate(number, policy, inputs))
