"""Whether fine-tuning is needed: every candidate answers, one judge compares, and the table and the verdict follow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_schemas.assessment import Assessment
from data_schemas.rows import Prompt
from engine.judging.llm_judge import LLMJudge, LLMJudgeArguments
from engine.judging.scoring import FunctionScorer
from engine.models.loading import check_is_policy
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, Policy, SamplingSettings
from engine.tasks.candidates import Measures, answer, asked_of
from engine.tasks.panel import ComparingPanel, Panel, ScoringPanel, TaskPanel
from engine.tasks.questions import Question
from engine.tasks.verdict import Assessed, rows, text_table, verdict

FUNCTION_SECONDS = 60.0  # that a call of the judge's function may take


def policies_of(assessment: Assessment) -> dict[str, Policy]:
    """The policy of every candidate. Raises UserError where a folder has no model that answers."""
    policies: dict[str, Policy] = {}
    for name, candidate in assessment.candidates.items():
        if candidate.model:
            load_policy_tokenizer(candidate.model)
            check_is_policy(candidate.model)
            policies[name] = Policy(candidate.model, name)
        else:
            policies[name] = Policy.of(str(candidate.endpoint), assessment.endpoints, name=name)
    return policies


@dataclass
class Assessor:
    """One assessment; `report` does it."""

    stage: Stage
    assessment: Assessment
    policies: Mapping[str, Policy]
    prompts: Sequence[Prompt]
    questions: Sequence[Question]  # of the prompts, where a task judges
    sampling: GenerationArguments
    show: Callable[[str], None]  # tells the user what happens
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    measures: dict[str, Measures] = field(default_factory=dict)

    def report(self) -> list[str]:
        """What was compared by whom, the table, and the verdict. Raises UserError and StageError as the engines do."""
        settings = SamplingSettings.of(self.sampling, purpose="assess")
        given = {name: asked_of(candidate, self.prompts) for name, candidate in self.assessment.candidates.items()}
        for name, policy in self.policies.items():
            self.show(f"{name}: {len(self.prompts)} instructions")
            self.answers[name], self.measures[name] = answer(
                self.stage,
                policy,
                self.prompts,
                given[name],
                settings,
                gpu_hour_price=self.assessment.gpu_hour_price,
            )
        panel = self.panel()
        assessed = [self.assessed(name, panel) for name in self.policies]
        against = f"wins against {self.assessment.compared_with}, judged by {panel.title}"
        title = f"{len(self.prompts)} instructions, {against}"
        return [title, text_table(rows(assessed)), verdict(assessed, panel.compare)]

    def panel(self) -> Panel:
        judge = self.assessment.judge
        if judge.task:
            return TaskPanel(f"the checks of {judge.task}", self.questions, self.answers)
        if judge.function:
            scorer = FunctionScorer(self.stage, judge.function, FUNCTION_SECONDS)
            return ScoringPanel(judge.function, scorer, self.answers)
        keys: dict[str, Any] = {**vars(self.sampling), "rubric": judge.rubric}
        return ComparingPanel(LLMJudge.of(self.stage, LLMJudgeArguments(**keys), str(judge.llm)), self.answers)

    def assessed(self, name: str, panel: Panel) -> Assessed:
        candidate, baseline = self.assessment.candidates[name], self.assessment.compared_with
        return Assessed(
            name=name,
            is_endpoint=candidate.endpoint is not None,
            training_cost=candidate.training_cost,
            score=panel.score(name),
            wins=None if name == baseline else panel.compare(name, baseline),
            characters=float(np.mean([len(one.text) for one in self.answers[name]])),
            measures=self.measures[name],
        )
