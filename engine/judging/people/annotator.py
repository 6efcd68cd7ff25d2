"""People as the annotator: of every prompt, or of those on which a model that judged first is least sure.

A prompt is doubtful where the model gave no winner, where its voters disagree, or where a second opinion, a reward
model, prefers the other answer; after those, the smallest margins come first. On all others the model's verdict stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_schemas.people import Label
from data_schemas.rows import STRENGTHS
from engine.judging.annotators import Annotator, Judgement
from engine.judging.comparison import Metric
from engine.judging.people.agreement import people_metrics, share
from engine.judging.people.asking import PeopleArguments, PeopleRow, ask_people
from engine.judging.scoring import RewardModelScorer, score_by_prompt
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer

# Shapes: N = answers of one prompt.


@dataclass(frozen=True)
class Candidate:
    """Two answers to a prompt that people may compare."""

    place: int  # of the prompt
    pair: tuple[int, int]  # the answers; the first is the one that the model prefers, where one judged
    doubt: float = 1.0  # share of those who judged against the model's verdict; 1 where it gave none
    margin: tuple[float, int] = (0.0, 0)  # of the model: difference of the scores, then level of the strength


@dataclass
class PeopleAnnotator:
    """People, alone or after a model."""

    stage: Stage
    people: Sequence[str]
    overlap: float
    budget: int | None
    seed: int
    rubric: str
    keep_unfinished: bool
    first: Annotator | None = None  # the model that judges first
    second_opinion: RewardModelScorer | None = None
    labels: dict[str, Mapping[str, Label]] = field(default_factory=dict)  # of each row, after the call
    agreements: list[bool] = field(default_factory=list)  # of people with the model, where both have a winner

    @classmethod
    def of(
        cls,
        stage: Stage,
        arguments: PeopleArguments,
        *,
        rubric: str | None,
        keep_unfinished: bool,
        first: Annotator | None,
        second_opinion: RewardModelScorer | None,
    ) -> "PeopleAnnotator":
        return cls(
            stage,
            arguments.people or [],
            arguments.people_overlap,
            arguments.people_budget,
            arguments.seed,
            rubric or "",
            keep_unfinished,
            first,
            second_opinion,
        )

    def __call__(self, answers: Sequence[Sequence[Answer]]) -> list[Judgement]:
        """Raises WaitingForPeople until all labels are there, and DataError for a file that is of no use."""
        judgements = self.first(answers) if self.first else [Judgement([0.0] * len(group)) for group in answers]
        chosen = self._choose(answers, judgements)
        rows = [
            PeopleRow(answers[one.place][0].prompt, *(answers[one.place][i].text for i in sorted(one.pair)))
            for one in chosen
        ]
        asked = (
            ask_people(self.stage, rows, self.people, overlap=self.overlap, seed=self.seed, rubric=self.rubric)
            if rows
            else {}
        )
        for one, row in zip(chosen, rows, strict=True):
            self.labels[row.id] = asked[row.id]
            before = judgements[one.place]
            judgements[one.place] = judgement_of(len(before.scores_N), sorted(one.pair), asked[row.id])
            if self.first and one.margin[0] > 0 and not judgements[one.place].dropped:
                best, worst = one.pair
                scores_N = judgements[one.place].scores_N
                if scores_N[best] != scores_N[worst]:
                    self.agreements.append(scores_N[best] > scores_N[worst])
        return judgements

    def _choose(self, answers: Sequence[Sequence[Answer]], judgements: Sequence[Judgement]) -> list[Candidate]:
        """The candidates that people compare, the most doubtful first."""
        second = [None] * len(answers)
        if self.second_opinion is not None:
            second = score_by_prompt(self.second_opinion, "second-opinion", answers)
        found = [
            candidate_of(place, group, judgement, opinion_N, keep_unfinished=self.keep_unfinished)
            for place, (group, judgement, opinion_N) in enumerate(zip(answers, judgements, second, strict=True))
        ]
        candidates = [one for one in found if one is not None]
        if self.first is None:
            return candidates
        return sorted(candidates, key=lambda one: (-one.doubt, one.margin, one.place))[: self.budget]

    def metrics(self) -> dict[str, Metric]:
        """What the people did, how far they agree, and with the model where one judged first."""
        shares = {"people_agree_with_model": share(self.agreements)} if self.first else {}
        return people_metrics(self.labels) | shares


def candidate_of(
    place: int,
    answers: Sequence[Answer],
    judgement: Judgement,
    opinion_N: Sequence[float] | None,
    *,
    keep_unfinished: bool,
) -> Candidate | None:
    """The best and the worst answer to a prompt by the model's judgement, or the first two different ones without a
    verdict. None where there are no two answers that could form a pair."""
    distinct = {answer.text.strip(): i for i, answer in reversed(list(enumerate(answers))) if answer.text.strip()}
    left = sorted(distinct.values())
    if len(left) < 2:
        return None
    scores_N = judgement.scores_N
    order = sorted(left, key=lambda i: -scores_N[i])
    pair = (order[0], order[-1])
    if not keep_unfinished and not any(answers[i].ended for i in pair):
        return None
    best, worst = pair
    if judgement.dropped or scores_N[best] == scores_N[worst]:
        return Candidate(place, pair)
    doubt = judgement.disagreement(best, worst) or 0.0
    if opinion_N is not None and opinion_N[best] < opinion_N[worst]:
        doubt = 1.0
    strength = (judgement.strengths or {}).get(pair)
    level = len(STRENGTHS) - STRENGTHS.index(strength) if strength else 0
    return Candidate(place, pair, doubt, (scores_N[best] - scores_N[worst], level))


def judgement_of(num_answers: int, pair: Sequence[int], labels: Mapping[str, Label]) -> Judgement:
    """The judgement of people on a pair (one, other) of a prompt's answers: the mean of their levels, 4 to -4.

    Without a label it is dropped as `skipped`, at a mean of 0 as a tie. `votes_VN` has the people, where several did.
    """
    one, other = pair
    given = {name: level for name, label in labels.items() if (level := label.level) is not None}
    scores_N = [0.0] * num_answers
    if not given:
        return Judgement(scores_N, dropped="skipped", ranked=pair)
    level = sum(given.values()) / len(given)
    scores_N[one], scores_N[other] = level / 2, -level / 2
    strength = STRENGTHS[len(STRENGTHS) - max(1, round(abs(level)))]
    votes_VN = [
        [vote / 2 if i == one else -vote / 2 if i == other else 0.0 for i in range(num_answers)]
        for vote in given.values()
    ]
    winner = "one" if level > 0 else "other"
    edits = [label.edited for label in labels.values() if label.edited and label.verdict == winner]
    return Judgement(
        scores_N,
        strengths={(one, other): strength, (other, one): strength},
        votes_VN=votes_VN if len(given) > 1 else None,
        ranked=pair,
        edited={one if level > 0 else other: edits[0]} if edits and level else {},
    )
