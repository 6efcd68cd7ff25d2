"""Multiple choice: the answer that the policy gives the highest probability, as lm-evaluation-harness counts it.

Rows are those of MMLU (question, choices, answer), of ARC (question, choices: {text, label}, answerKey) or of HellaSwag
(ctx, endings, label). The question is a user turn under the policy's chat template, and each choice is the turn that
answers it, without the end token. `multiple_choice_normalised` divides a log-probability by the choice's characters, so
that a long choice is not at a disadvantage.
"""

from collections.abc import Sequence

from data_schemas.errors import WrongValue
from data_schemas.formats import describe
from data_schemas.rows import Message
from data_schemas.sources import SourceValue
from engine.judging.shared_scoring import ScoringSettings, SharedScorer, in_groups
from engine.models.loading import identity_of, load_causal
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime.stage import Stage
from engine.tasks.grades import Grade, Points
from engine.tasks.questions import ChoiceQuestion, Fields, asked, read, text_in
from engine.tokens.template import encode_answer

# Shapes: C = choices of a question.
NAME = "multiple_choice"
NORMALISED = "multiple_choice_normalised"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_choices(
    files: Sequence[SourceValue], *, count: int | None = None, by_letter: bool = False
) -> list[ChoiceQuestion]:
    """The questions. With `by_letter` the question lists the choices, and their letters are compared. Raises DataError
    for a row in none of the three forms."""
    return read(files, _lettered if by_letter else question_of, count=count)


def question_of(raw: Fields) -> ChoiceQuestion:
    """Raises WrongValue for a row in none of the three forms."""
    text = text_in(raw, "question", "ctx", "prompt")
    given, labels = raw.get("choices", raw.get("endings")), None
    if isinstance(given, dict):
        given, labels = given.get("text"), given.get("label")
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(one, str) and one.strip() for one in given):
        raise WrongValue("choices", describe(given), "a list of at least two texts")
    answer = next((raw[name] for name in ("answer", "answerKey", "label") if raw.get(name) is not None), None)
    return ChoiceQuestion(NAME, asked(text), given, _right(answer, given, labels))


def _right(answer: object, choices: Sequence[str], labels: object) -> int:
    """The index of the right choice, given as a number from 0, a label, a letter, or the choice's text."""
    if isinstance(labels, list) and answer in labels:
        return labels.index(answer)
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and answer.strip().isdigit():
        answer = int(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(answer.upper())
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise WrongValue("answer", describe(answer), f"a number from 0 to {len(choices) - 1}, a letter, or a choice")


def _lettered(raw: Fields) -> ChoiceQuestion:
    question = question_of(raw)
    lines = [f"{LETTERS[place]}. {choice}" for place, choice in enumerate(question.choices)]
    text = "\n".join([question.prompt.prompt[0].content, *lines, "Answer with the letter only."])
    return ChoiceQuestion(NAME, asked(text), list(LETTERS[: len(lines)]), question.right)


def choose(stage: Stage, questions: Sequence[ChoiceQuestion], policy: str, settings: ScoringSettings) -> list[Grade]:
    """The grade of each question, in order, by the policy in a folder. Raises StageError where memory is full."""
    if not questions:
        return []
    tokenizer = load_policy_tokenizer(policy)
    rows: list[tuple[list[int], list[int]]] = []
    for question in questions:
        for choice in question.choices:
            prompt, answer = encode_answer(
                tokenizer, question.prompt.prompt, [Message(role="assistant", content=choice)]
            )
            rows.append((prompt, answer[:-1]))  # without the end token
    model = load_causal(policy, dtype=settings.dtype)
    model.to(settings.device)  # pyright: ignore[reportArgumentType]
    scorer = SharedScorer(model.eval(), is_reward_model=False)
    sums = in_groups(
        stage,
        "choices",
        rows,
        scorer.log_prob_sums,
        batch_size=settings.batch_size,
        content=("choices", identity_of(policy), settings.dtype),
        doing="comparing choices",
    )
    in_order = iter(sums)
    return [grade(question, [next(in_order) for _ in question.choices]) for question in questions]


def grade(question: ChoiceQuestion, log_probs_C: Sequence[float]) -> Grade:
    """The grade by the log-probabilities of the choices, in nats."""
    per_character_C = [value / len(text) for value, text in zip(log_probs_C, question.choices, strict=True)]
    best, best_normalised = _argmax(log_probs_C), _argmax(per_character_C)
    points = {
        NAME: Points(float(best == question.right)),
        NORMALISED: Points(float(best_normalised == question.right)),
    }
    return Grade(NAME, question.question_id, points, question.choices[best])


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
