"""The alignment benchmark: its scores, controls, intervals and table, worked out by hand."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import yaml

from benchmarks.alignment import checkable, controls, curation, headroom, real_model, report, run, temperature
from tests.stage_runs import run_here
from tests.toy_rows import write_jsonl
from toy_world.make import make


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
    for name, counts in (("prompts", {"trained": 80}), ("evaluation_prompts", {"trained": 20, "transfer": 20})):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        texts[name] = [row["prompt"][0]["content"] for row in rows]
        assert Counter(row["tag"] for row in rows) == counts
        assert len(set(texts[name])) == sum(counts.values())
        for row in rows:
            kinds = {constraint.is_held_out for constraint, _ in checkable.constraints_of(row["prompt"][0]["content"])}
            assert kinds == {row["tag"] == "transfer"}
    for text in texts["prompts"] + texts["evaluation_prompts"]:
        instructions = [constraint.instruction for constraint, _ in checkable.constraints_of(text)]
        assert 1 <= len(instructions) <= 2
        assert not all(words in " ".join(instructions) for words in checkable.EXCLUSIVE)
        sentences = [constraint.instruction.format(value) for constraint, value in checkable.constraints_of(text)]
        assert sum(map(len, sentences)) + len(sentences) == len(text) - text.index(min(sentences, key=text.index)) + 1
        assert all(sentence in text for sentence in sentences)
    held_out = checkable.TOPICS[: checkable.HELD_OUT]
    assert not any(f" {topic}." in text or f" {topic} is" in text for topic in held_out for text in texts["prompts"])


def test_one_round_of_the_real_model_has_the_prompts_of_all_rounds():
    recipe = yaml.safe_load((report.ROOT / real_model.RECIPE).read_text())
    counts = [recipe["rounds"] * recipe[stage]["num_prompts"] for stage in ("annotate", "rejection_sampling")]
    assert real_model.settings()[real_model.ONE] == [
        "rounds=1",
        "by_round={}",
        f"annotate.num_prompts={counts[0]}",
        f"rejection_sampling.num_prompts={counts[1]}",
    ]


def test_the_page_of_the_real_model_has_the_kinds_of_constraints_apart(tmp_path, monkeypatch):
    """Runs of two rounds and of one, whose scores are known: one prompt of each kind."""
    monkeypatch.setattr(real_model, "RUNS", tmp_path)
    scores = {real_model.SEVERAL: [(0.1, 0.2), (0.3, 0.2), (0.5, 0.4)], real_model.ONE: [(0.1, 0.2), (0.6, 0.1)]}
    launched = []

    def finish(settings, *, recipe):
        name = next(name for name, keys in real_model.settings().items() if settings[1:] == keys)
        launched.append((settings[0], recipe))
        steps = []
        for number, values in enumerate(scores[name]):
            evaluation = tmp_path / "checkable" / f"round-{number}.evaluate_policy-{len(launched)}"
            evaluation.mkdir(parents=True)
            rows = [
                {"tag": tag, "candidates": [{"score": value}]}
                for tag, value in zip(("trained", "transfer"), values, strict=True)
            ]
            (evaluation / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            steps.append({"stage": "evaluate_policy", "folder": evaluation.name})
        (tmp_path / "checkable" / "summary.json").write_text(json.dumps({"state": "done", "steps": steps}))

    monkeypatch.setattr(real_model, "alignloop", finish)
    real_model.main("model", [real_model.SEVERAL, real_model.ONE], tmp_path)
    assert launched == [("base_model=model", real_model.RECIPE)] * 2
    lines = [line for line in (tmp_path / "alignment-real-model.md").read_text().splitlines() if line.startswith("|")]
    trained, transfer = real_model.KINDS.values()
    assert lines[2:] == [
        f"| the loop | {trained} | 0.100 | 0.300 | 0.500 | +0.400 [+0.400, +0.400] | - |",
        f"| the loop | {transfer} | 0.200 | 0.200 | 0.400 | +0.200 [+0.200, +0.200] | - |",
        f"| {real_model.ONE} | {trained} | 0.100 | 0.600 |  | +0.500 [+0.500, +0.500] | +0.100 [+0.100, +0.100] |",
        f"| {real_model.ONE} | {transfer} | 0.200 | 0.100 |  | -0.100 [-0.100, -0.100] | -0.300 [-0.300, -0.300] |",
    ]


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
    assert report.pooled_interval(np.array([[0.1] * 9, [0.5] * 9])) == pytest.approx((0.3, 0.3, 0.3))
    noise = np.random.default_rng(1).normal(0.0, 1.0, (4, 400))
    mean, low, high = report.pooled_interval(noise)
    # The mean of 1,600 draws has standard deviation 1/40.
    assert low == pytest.approx(mean - 1.96 / 40, abs=0.01) and high == pytest.approx(mean + 1.96 / 40, abs=0.01)


def test_an_interval_over_seeds_is_students_t_of_their_means():
    # Means 0.1 and 0.5: standard error 0.2, and t of one degree of freedom is 12.706.
    found = report.seeds_interval(np.array([[0.1] * 9, [0.5] * 9]))
    assert found == pytest.approx((0.3, 0.3 - 2.5412, 0.3 + 2.5412))
    assert report.seeds_interval(np.array([[0.1, 0.2]])) is None


def test_the_table_compares_with_round_0_and_with_the_full_recipe_on_the_seeds_of_both():
    full = {0: np.array([[0.0, 0.2], [0.4, 0.6]]), 1: np.array([[0.0, 0.2], [0.8, 1.0]])}
    less = {1: np.array([[0.0, 0.2], [0.2, 0.4]])}
    lines = report.table({report.FULL: full, "no DPO": less})
    assert lines[0] == (
        "|  | seeds | round 0 | round 1 | gain over round 0 | against the full recipe: over prompts | over seeds |"
    )
    assert lines[2] == "| full recipe | 2 | 0.100 | 0.700 | +0.600 [+0.600, +0.600] | - | - |"
    assert lines[3] == (
        "| no DPO | 1 | 0.100 | 0.300 | +0.200 [+0.200, +0.200] | -0.600 [-0.600, -0.600], 0 of 1 seeds above | - |"
    )


def noise_with(last: float, *, spread: float = 0.0) -> dict[int, np.ndarray]:
    """Scores of three seeds, [2, 400], where the last round is higher by `last`, and by `spread` more in each seed."""
    noise = np.random.default_rng(2).normal(0.0, 0.1, (3, 2, 400))
    noise[:, 1] += last + spread * np.arange(3)[:, None]
    return dict(enumerate(noise))


def test_the_verdict_names_what_differs_beyond_both_intervals():
    scores = {
        report.FULL: noise_with(0.1),
        "no DPO": noise_with(-0.1),
        "DPO alone": noise_with(0.3, spread=0.001),
        "no rejection sampling": noise_with(0.0, spread=0.3),  # 0.3 higher, but the seeds disagree
        "swapped pairs": noise_with(0.0),
        "hash of the text": noise_with(0.3),
    }
    assert report.verdict(scores).splitlines() == [
        "- The full recipe's mean over the seeds rises in every round. No round of a seed falls beyond its interval.",
        "- Worse than the full recipe after the last round: no DPO.",
        "- Better than the full recipe after the last round: DPO alone.",
        "- Not distinguishable from the full recipe after the last round: no rejection sampling.",
        "- Controls that improved: hash of the text.",
    ]


def test_differences_by_round_are_starred_where_prompts_and_seeds_agree():
    """Above in round 1 with both seeds; in round 2 above with one and below with the other, which the interval over
    prompts does not see. One batch has fewer rounds, and a control no place here."""
    full = {seed: np.zeros((3, 40)) for seed in (0, 1)}
    ahead = {
        seed: np.stack([np.zeros(40), np.full(40, 0.1 + 0.001 * seed), np.full(40, 0.3 - 0.5 * seed)]) for seed in full
    }
    batch = {seed: np.zeros((2, 40)) for seed in full}
    lines = report.differences_by_round(
        {report.FULL: full, "DPO alone": ahead, report.ONE_BATCH: batch, "shuffled labels": ahead}
    )
    assert lines[0] == "|  | seeds | round 1 | round 2 |"
    assert lines[2:] == ["| DPO alone | 2 | +0.100 [+0.100, +0.100]* | +0.050 [+0.050, +0.050] |"]
    assert report.differences_by_round({report.FULL: full, report.ONE_BATCH: batch}) == []


def test_a_variation_of_fewer_rounds_is_compared_by_its_last_one():
    scores = {report.FULL: {0: np.array([[0.0], [0.2], [0.5]])}, "DPO of one batch": {0: np.array([[0.0], [0.4]])}}
    line = report.table(scores)[-1]
    assert line.startswith("| DPO of one batch | 1 | 0.000 | 0.400 | - | +0.400 [+0.400, +0.400] | -0.100 [")


def test_a_round_that_falls_is_named():
    falls = {0: np.array([[0.0] * 9, [0.5] * 9, [0.4] * 9]), 1: np.array([[0.0] * 9, [0.5] * 9, [0.6] * 9])}
    assert report.climb(falls) == (
        "- The full recipe's mean over the seeds does not rise in round 2. Beyond its interval below the best policy "
        "before it, which the gate keeps: round 2 of seed 0."
    )


@pytest.fixture
def one_finished_seed(tmp_path, monkeypatch):
    """Runs with two seeds, of which the first is finished."""
    monkeypatch.setattr(report, "RUNS", tmp_path)
    for seed, state in ((0, "done"), (1, "failed")):
        folder = tmp_path / f"alignment-{seed}"
        (folder / "summaries").mkdir(parents=True)
        steps = []
        for number in range(2):
            evaluation = folder / f"round-{number}.evaluate_policy-x"
            evaluation.mkdir()
            candidates = [{"score": 0.2 * number}, {"score": 0.4 * number}]
            (evaluation / "answers.jsonl").write_text(json.dumps({"candidates": candidates}) + "\n")
            numbers = {"kl_to_first": 4.0 * number, "gold_mean": 0.3 * number, "proxy_mean": 1.0}
            room = {"judge_mean": 0.3 * number, "best_by_judge": 0.9, "best_by_proxy": 0.25, "proxy_accuracy": 0.56}
            (evaluation / "artifact.json").write_text(json.dumps({"metrics": numbers | room}))
            steps.append({"stage": "evaluate_policy", "folder": evaluation.name})
        summary = {"state": state, "steps": [{"stage": "sft", "folder": "round-0.sft-x"}, *steps]}
        for name in (report.FULL, report.STALE):
            (folder / "summaries" / f"{name}.json").write_text(json.dumps(summary))
    return tmp_path


def test_only_finished_runs_are_reported(one_finished_seed, monkeypatch):
    assert {seed: found.tolist() for seed, found in report.scores_of(report.FULL, [0, 1, 2]).items()} == {
        0: [[0.0], [pytest.approx(0.3)]]
    }
    drawn = []
    monkeypatch.setattr(report, "draw", lambda scores, path: drawn.append((list(scores), path.name)))
    report.report(list(run.SETTINGS), [0, 1], one_finished_seed / "docs")
    text = (one_finished_seed / "docs" / "alignment.md").read_text()
    said = "1 rounds raise the mean gold score from 0.000 to 0.300"
    assert f"{said} (the loop with the first round's reward model throughout: 0.300)." in " ".join(text.split())
    assert "runs 1 rounds with 1 seeds" in text and "| full recipe | 1 | 0.000 | 0.300 | +0.300" in text
    assert "| reward model not refitted: accuracy | 1 | 0.560 |\n| its best of 4 above one answer | | -0.050 |" in text
    assert "| gold's best of 4 above one answer | | +0.600 |" in text
    assert drawn == [([report.FULL, report.STALE], "alignment.svg")]


def test_the_plot_has_the_rounds_and_the_curves_over_kl(one_finished_seed):
    report.draw(
        {name: report.scores_of(name, [0]) for name in (report.FULL, report.STALE)}, one_finished_seed / "a.svg"
    )
    assert "<svg" in (one_finished_seed / "a.svg").read_text()


def test_dirty_rows_are_half_the_worlds_and_curation_finds_the_others(tmp_path):
    curation.dirty(tmp_path, seed=1, num_instructions=200, num_documents=1, num_prompts=1)
    make(tmp_path / "clean", seed=1, num_instructions=200, num_documents=1, num_prompts=1)
    clean = (tmp_path / "clean" / "instructions.jsonl").read_text().splitlines()
    dirty = (tmp_path / "instructions.jsonl").read_text().splitlines()
    assert len(dirty) == 400
    assert set(clean) <= set(dirty)
    rules = {"dialog_rules": ["empty_answer", "looping_answer", "broken_html", "refusal"], "max_dropped": 0.6}
    record = run_here("curate", tmp_path / "out", instructions=[tmp_path / "instructions.jsonl"], **rules)
    kept = (tmp_path / "out" / "instructions.train.jsonl").read_text().splitlines()
    noise = sum(record.metrics[f"dropped_{rule}"] for rule in rules["dialog_rules"])
    assert noise == pytest.approx(80, abs=8)  # an answer of two words, repeated, may be no loop
    assert len(set(clean) - set(kept)) < 30  # rows that people wrote twice, or a disguised copy with a lower hash


def test_the_table_of_curation_has_the_paired_difference(tmp_path, monkeypatch):
    monkeypatch.setattr(curation, "RUNS", tmp_path)
    for seed in (0, 1):
        for name, scores in ((curation.RAW, [0.1, 0.3]), (curation.CURATED, [0.2 + seed / 10, 0.4 + seed / 10])):
            steps = curation.folder_of(seed, name) / "steps"
            (steps / "round-0.evaluate_policy").mkdir(parents=True)
            groups = [{"candidates": [{"score": score}, {"score": score}]} for score in scores]
            write_jsonl(steps / "round-0.evaluate_policy" / "answers.jsonl", groups)
            step = steps / ("curate" if name == curation.CURATED else "prepare_data")
            step.mkdir()
            rows = 100 if name == curation.RAW else 60
            (step / "artifact.json").write_text(json.dumps({"metrics": {"instructions.train": rows}}))
    raw, curated, _, verdict = curation.table([0, 1])[2:]
    assert raw == "| raw rows | 100 | 0.200 |"
    assert curated == "| curated rows | 60 | 0.350 |"
    assert verdict.startswith("Curated above raw: +0.150 [+0.150, +0.150] over prompts, ")
    assert verdict.endswith("2 of 2 seeds above.")


def test_the_best_of_n_is_the_mean_over_all_ways_to_draw_n_answers():
    generator = np.random.default_rng(0)
    by_PN, values_PN = generator.normal(size=(2, 3, 6))
    for n in (1, 2, 5, 6):
        drawn = list(itertools.combinations(range(6), n))
        expected = [
            np.mean([row[max(some, key=by.__getitem__)] for some in drawn])
            for by, row in zip(by_PN, values_PN, strict=True)
        ]
        assert headroom.best_of(n, by_PN, values_PN) == pytest.approx(expected)


def test_a_vote_takes_the_most_frequent_of_n_answers():
    texts, values_PN = [["a", "b", "b", "c", "a", "a"]], np.array([[1.0, 5.0, 5.0, 7.0, 1.0, 1.0]])
    assert headroom.voted(3, texts, values_PN).tolist() == [3.0]  # of b, and of a
    assert headroom.voted(6, texts, values_PN).tolist() == [1.0]
    assert headroom.voted(1, texts, values_PN) == pytest.approx([20 / 6])


def test_the_page_of_the_headroom_has_both_reward_models(tmp_path, monkeypatch):
    """The stale one prefers the worse answers, the other one the better ones."""
    monkeypatch.setattr(headroom, "RUNS", tmp_path)
    monkeypatch.setattr(headroom, "gold", lambda prompt, answer, ended: float(answer))
    monkeypatch.setattr(headroom, "run", lambda seeds: None)
    folder = tmp_path / "headroom-0"
    folder.mkdir()
    for name, sign in ((headroom.STALE, -1), (headroom.REFITTED, 1)):
        answers = [{"text": str(value), "ended": True, "score": sign * value} for value in range(headroom.NUM_ANSWERS)]
        write_jsonl(folder / f"{name}.jsonl", [{"prompt": [], "candidates": answers}] * 2)
    headroom.main([0, 1], tmp_path)
    page = (tmp_path / headroom.PAGE).read_text()
    assert "Seeds: 1." in page and "| 1 | 0.00 | 63.500 | +0.00 | 63.500 | +0.00 | 63.500 | 63.500 |" in page
    last = f"| 128 | {math.log(128) - 127 / 128:.2f} | 0.000 | +63.50 | 127.000 | +63.50 | 0.000 | 127.000 |"
    assert last in page and "Its peak is at n = 1" in page
    assert "- Best of 128, the last round's above round 1's: +127.000 [+127.000, +127.000]." in page
    assert (tmp_path / headroom.PLOT).read_text().startswith("<?xml")


def test_the_page_of_temperatures_has_the_policies_of_every_round_and_the_controls(tmp_path, monkeypatch):
    """Of two seeds, with two held-out prompts: the recipe rises at the served temperature, and a control does not."""
    monkeypatch.setattr(temperature, "gold", lambda prompt, answer, ended: float(answer))
    monkeypatch.setattr(temperature, "run", lambda seeds: None)
    for module in (temperature, report):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    for seed, name in itertools.product((0, 1), (report.FULL, "shuffled labels")):
        folder, rounds = report.run_folder(seed, name), range(4)
        (folder / "summaries").mkdir(parents=True)
        steps = [
            {"name": f"round-{number}.{stage}", "stage": stage, "folder": f"round-{number}.{stage}-0"}
            for number in rounds
            for stage in ("dpo", "evaluate_policy")
        ]
        content = {"state": "done", "steps": steps, "rounds": [{"policy": f"round-{number}.dpo"} for number in rounds]}
        (folder / "summaries" / f"{name}.json").write_text(json.dumps(content))
        for number in rounds:
            level = 0.1 * number if name == report.FULL else -0.1 * number
            scored = [{"candidates": [{"score": level}]}] * 2
            (folder / f"round-{number}.evaluate_policy-0").mkdir()
            write_jsonl(folder / f"round-{number}.evaluate_policy-0" / "answers.jsonl", scored)
            for degree in temperature.TEMPERATURES:
                file = temperature.answers_file(seed, folder / f"round-{number}.dpo-0", degree)
                file.parent.mkdir(exist_ok=True)
                answers = [{"text": str(0.5 + level), "ended": True}, {"text": str(0.7 + level), "ended": True}]
                write_jsonl(file, [{"prompt": [], "candidates": answers}] * 2)
    stopped = report.run_folder(0, "swapped pairs") / "summaries" / "swapped pairs.json"
    stopped.write_text(json.dumps({"state": "stopped", "steps": [], "rounds": [{"policy": "round-0.sft"}]}))
    temperature.main([0, 1, 2], tmp_path)
    page = (tmp_path / temperature.PAGE).read_text()
    assert "| full recipe | 1 | 2 | 0.000 | 0.100 | 0.200 | 0.300 | +0.300 [+0.300, +0.300] |" in page
    assert "| full recipe | 0.6 | 2 | 0.600 | 0.700 | 0.800 | 0.900 | +0.300 [+0.300, +0.300] |" in page
    assert "| shuffled labels | 0 | 2 | 0.600 | 0.500 | 0.400 | 0.300 | -0.300 [-0.300, -0.300] |" in page
    assert "rises in every round. No round of a seed falls beyond its interval." in page
    assert "swapped pairs" not in page
    assert "full recipe +0.100 [+0.100, +0.100]" in page and "Controls that improved: none." in page
