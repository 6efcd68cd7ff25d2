"""The curves of a training step."""

import json

import pytest

from pipeline.report.page.curves import MAX_POINTS, read_curves, thinned


def curves_of(tmp_path, *rows):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return read_curves(path)


def test_the_marked_step_is_the_saved_one_where_it_is_known(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(f'{{"step": {step}, "eval_loss": {loss}}}\n' for step, loss in ((0, 1.0), (5, 2.0), (9, 3.0)))
    )
    assert read_curves(path).best_step == 0
    assert read_curves(path, saved_step=5).best_step == 5  # keep: best_by_accuracy or last
    assert read_curves(path, saved_step=7).best_step == 0  # not of these numbers


def test_training_and_held_out_rows_are_two_curves_with_their_accuracy(tmp_path):
    curves = curves_of(
        tmp_path,
        {"step": 0, "eval_loss": 0.75, "eval_accuracy": 0.5},
        {"step": 1, "loss": 0.5, "accuracy": 0.625},
        {"step": 2, "eval_loss": 0.25, "eval_accuracy": 0.75},
    )
    assert curves.eval_loss == [(0, 0.75), (2, 0.25)] and curves.loss == [(1, 0.5)]
    assert curves.second == "accuracy"
    assert curves.second_train == [(1, 0.625)] and curves.second_eval == [(0, 0.5), (2, 0.75)]
    assert curves.evaluations[1] == {"step": 2, "eval_loss": 0.25, "eval_accuracy": 0.75}
    assert curves.best_step == 2


def test_a_step_that_a_resumed_run_logged_again_counts_once(tmp_path):
    curves = curves_of(tmp_path, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0}, {"step": 2, "loss": 0.5})
    assert curves.loss == [(1, 1.0), (2, 0.5)]


def test_values_that_are_not_finite_and_damaged_lines_are_left_out_and_counted(tmp_path):
    damaged = ['{"step": 4, "lo', "[1]", '{"loss": 1}', '{"step": NaN, "loss": 1}', '{"step": true, "loss": 1}']
    curves = curves_of(tmp_path, {"step": 1, "loss": float("nan")}, {"step": 2, "eval_loss": float("inf")}, *damaged)
    assert curves.is_empty and curves.num_not_finite == 2


def test_without_a_file_there_are_no_curves(tmp_path):
    assert read_curves(tmp_path / "metrics.jsonl").is_empty


def test_rl_does_not_overfit_by_the_noise_of_its_rewards(tmp_path):
    def remark_of(*rewards: float) -> str:
        rows = [{"step": step, "eval_loss": -reward, "eval_reward": reward} for step, reward in enumerate(rewards)]
        return curves_of(tmp_path, {"step": 1, "reward": 0.5}, *rows).remark

    assert remark_of(0.25, 0.5, 0.375) == ""
    assert remark_of(0.5, 0.25) == "The held-out reward never rose above its value at the start, 0.5."


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.0, 0.5, 0.75], "overfits: the held-out loss was lowest at step 10 (0.5) and rose to 0.75 by step 20"),
        ([1.0, 0.5, 0.504], ""),  # less than 1 % above the lowest
        ([1.0, 0.75, 0.5], ""),
        ([0.5, 0.75, 1.0], "never fell below its value at the start, 0.5"),
        ([1.0], ""),
    ],
)
def test_overfitting_is_reported_in_words(tmp_path, losses, words):
    remark = curves_of(
        tmp_path, *({"step": 10 * number, "eval_loss": loss} for number, loss in enumerate(losses))
    ).remark
    assert words in remark and bool(words) == bool(remark)


def test_a_long_curve_keeps_its_spike():
    points = [(float(step), 1.0) for step in range(10_000)]
    points[5_003] = (5_003.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS and (5_003.0, 99.0) in kept
    assert kept == sorted(kept)


def test_the_table_of_many_evaluations_has_the_first_the_best_and_the_last(tmp_path):
    losses = [1.0] * 100
    losses[37] = 0.5
    curves = curves_of(tmp_path, *({"step": step, "eval_loss": loss} for step, loss in enumerate(losses)))
    steps = [row["step"] for row in curves.listed()]
    assert steps == sorted({*range(0, 100, 4), 37, 99})
