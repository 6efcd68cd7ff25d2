"""The alignment benchmark: its scores, controls, intervals and table, worked out by hand."""

import json

import numpy as np
import pytest

from benchmarks.alignment import checkable, controls, run


def prompt_with(*constraints: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(["Describe rain.", *constraints])}]


@pytest.mark.parametrize(
    ("constraint", "kept", "broken"),
    [
        ("Use at most 12 words.", "Rain is wet.", "Rain " * 13),
        ("Use at least 25 words.", "Rain " * 25, "Rain " * 24),
        ("Answer in exactly 2 sentences.", "Rain is wet. It falls!", "Rain is wet and falls."),
        ("Do not use any commas.", "Rain is wet.", "Rain, it is wet."),
        ("Include the word quiet.", "Rain is Quiet.", "Rain is quieter."),
        ("Include a number in digits.", "Rain falls 3 times.", "Rain falls three times."),
        ("Speak of yourself as I.", "I like rain.", "My rain is wet, if Ice is."),
        ("Speak to the reader as you.", "You like rain.", "Your rain is wet."),
    ],
)
def test_every_constraint_is_checked(constraint, kept, broken):
    assert checkable.score(prompt_with(constraint), kept, True) == 1.0
    assert checkable.score(prompt_with(constraint), broken, True) == 0.0


def test_the_score_is_the_share_of_constraints_kept_by_an_answer_to_the_question():
    both = prompt_with("Do not use any commas.", "Speak of yourself as I.")
    assert checkable.score(both, "Rain is wet.", True) == 0.5
    assert checkable.score(both, "I say that rain is wet.", True) == 1.0
    assert checkable.score(both, "I say that rain is wet.", False) == 0.0  # truncated
    assert checkable.score(both, "I say that snow is cold.", True) == 0.0  # about another topic
    assert checkable.score(both, "I rain", True) == 0.0
    with pytest.raises(ValueError, match=r"no known constraint in 'Describe rain\.'"):
        checkable.score(prompt_with(), "Rain is wet.", True)


def test_prompts_are_checkable_and_ask_about_other_things_in_evaluation(tmp_path):
    checkable.make(tmp_path, seed=3, num_prompts=80, num_evaluation_prompts=40)
    texts = {}
    for name, count in (("prompts", 80), ("evaluation_prompts", 40)):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        texts[name] = [row["prompt"][0]["content"] for row in rows]
        assert len(set(texts[name])) == count
    for text in texts["prompts"] + texts["evaluation_prompts"]:
        instructions = [constraint.instruction for constraint, _ in checkable.constraints_of(text)]
        assert 1 <= len(instructions) <= 2
        assert not all(words in " ".join(instructions) for words in checkable.EXCLUSIVE)
        sentences = [constraint.instruction.format(value) for constraint, value in checkable.constraints_of(text)]
        assert sum(map(len, sentences)) + len(sentences) == len(text) - text.index(min(sentences, key=text.index)) + 1
        assert all(sentence in text for sentence in sentences)
    held_out = checkable.TOPICS[: checkable.HELD_OUT]
    assert not any(f" {topic}." in text or f" {topic} is" in text for topic in held_out for text in texts["prompts"])


def test_controls_are_independent_of_the_gold_score_or_invert_it():
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    other = [{"role": "user", "content": "What is the capital of Italy?"}]
    assert controls.swapped(prompt, "Paris.", True) == -controls.gold(prompt, "Paris.", True) != 0
    assert controls.hashed(prompt, "Paris.", True) == controls.hashed(other, "Paris.", False)
    assert controls.shuffled(prompt, "Paris.", True) == controls.shuffled(prompt, "Paris.", True)
    assert controls.shuffled(prompt, "Paris.", True) != controls.shuffled(other, "Paris.", True)
    labels = [controls.hashed(prompt, str(number), True) for number in range(2000)]
    assert min(labels) >= -1 and max(labels) <= 1 and abs(np.mean(labels)) < 0.05


def test_a_pooled_interval_resamples_prompts_within_each_seed():
    """Differences between seeds do not widen the interval: without spread within a seed it is a point."""
    assert run.pooled_interval(np.array([[0.1] * 9, [0.5] * 9])) == pytest.approx((0.3, 0.3, 0.3))
    noise = np.random.default_rng(1).normal(0.0, 1.0, (4, 400))
    mean, low, high = run.pooled_interval(noise)
    # The mean of 1,600 draws has standard deviation 1/40.
    assert low == pytest.approx(mean - 1.96 / 40, abs=0.01) and high == pytest.approx(mean + 1.96 / 40, abs=0.01)


def test_the_table_compares_with_round_0_and_with_the_full_recipe():
    full, less = np.array([[[0.0, 0.2], [0.4, 0.6]]]), np.array([[[0.0, 0.2], [0.2, 0.4]]])
    lines = run.table({run.FULL: full, "no DPO": less})
    assert lines[0] == "|  | round 0 | round 1 | gain over round 0 | against the full recipe |"
    assert lines[2] == "| full recipe | 0.100 | 0.500 | +0.400 [+0.400, +0.400] | - |"
    assert (
        lines[3] == "| no DPO | 0.100 | 0.300 | +0.200 [+0.200, +0.200] | -0.200 [-0.200, -0.200], 0 of 1 seeds above |"
    )


def test_the_verdict_names_what_differs_beyond_its_interval():
    noise = np.random.default_rng(2).normal(0.0, 0.1, (2, 2, 400))
    scores = dict.fromkeys(run.ABLATIONS | run.CONTROLS, noise)
    assert run.verdict(scores).splitlines()[-1] == "- Controls that improved: none."
    last = np.array([0.0, 1.0])[None, :, None]
    scores |= {"no DPO": noise - 0.2 * last, "no NLL term": noise + 0.2 * last, "hash of the text": noise + 0.3 * last}
    assert run.verdict(scores).splitlines() == [
        "- Worse than the full recipe after the last round: no DPO.",
        "- Better than the full recipe after the last round: no NLL term.",
        "- Not distinguishable from the full recipe after the last round: no formatting mask, no rejection sampling, "
        "reward model not refitted.",
        "- Controls that improved: hash of the text.",
    ]
