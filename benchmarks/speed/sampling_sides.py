"""The sides of the speed benchmark that sample answers: our sampler, and transformers' generate()."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.instruments import watching
from benchmarks.speed.training_sides import Job, Values


def prompts_of_call(prompts: Sequence[list[int]], run: int) -> Sequence[list[int]]:
    """The eight prompts of the call that is made in this run, of all calls in the order of the file."""
    calls = [prompts[start : start + 8] for start in range(0, len(prompts), 8)]
    widths = [max(map(len, call)) for call in calls]
    mean = sum(widths) / len(widths)
    nearest = sorted(range(len(calls)), key=lambda call: abs(widths[call] - mean))
    return calls[nearest[run % len(calls)]]


def sampling_generate(job: Job) -> Values:
    """generate() on 8 prompts a call in the order of the file, each with all its answers.

    Calls are independent of one another, so each run makes only one. The first run makes the call whose width is
    nearest to the mean, the second run the next nearest.
    """
    import torch

    from data_schemas.reading import read_rows
    from data_schemas.rows import Prompt
    from engine.models.loading import load_causal, load_tokenizer
    from engine.runtime.process import use_all_cores
    from engine.sampling.answers import end_tokens
    from engine.tokens.template import encode_prompt

    use_all_cores()
    torch.manual_seed(1)
    tokenizer, model = load_tokenizer(job["base"]), load_causal(job["base"], dtype=job["dtype"]).eval()
    pad: Any = tokenizer.pad_token_id
    ends, answers = end_tokens(model, tokenizer), []
    prompts = [encode_prompt(tokenizer, row.prompt) for row in read_rows(Path(job["rows"]), Prompt)]
    with watching() as watch, torch.no_grad():
        rows = prompts_of_call(prompts, job["run"])
        width = max(map(len, rows))
        output = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
            attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
            num_return_sequences=job["answers"],
            do_sample=True,
            temperature=job["temperature"],
            top_k=0,
            top_p=1.0,
            max_new_tokens=job["max_new_tokens"],
            eos_token_id=sorted(ends),
            pad_token_id=pad,
        )
        for row in output[:, width:].tolist():
            end = next((index for index, token in enumerate(row) if token in ends), len(row) - 1)
            answers.append((tokenizer.decode(row[: end + 1], skip_special_tokens=True), end + 1))
    return {
        "seconds": watch.seconds,
        "rows": len(answers),
        "tokens": sum(length for _, length in answers),
        "dtype": job["dtype"],
    }


def sampling_ours(job: Job) -> Values:
    from data_schemas.reading import read_rows
    from data_schemas.rows import Prompt
    from engine.runtime.process import keep_memory, use_all_cores
    from engine.runtime.stage import Stage
    from engine.runtime.tracking import Tracker
    from engine.sampling.answers import Policy, SamplingSettings
    from engine.sampling.sampler import sample_in_turn
    from stages.rejection_sampling import RejectionSamplingArguments

    use_all_cores()
    keep_memory()
    folder = Path(job["folder"])
    prompts = [(row, None) for row in read_rows(Path(job["rows"]), Prompt)]
    arguments = RejectionSamplingArguments(
        prompts=[job["rows"]],
        policies=[job["base"]],
        reward_model="",
        seed=1,
        use_cpu=True,
        dtype=job["dtype"],
        temperature=job["temperature"],
        max_new_tokens=job["max_new_tokens"],
        num_answers=job["answers"],
        generation_batch_size=job["generation_batch_size"],
    )
    stage = Stage("rejection_sampling", folder, {}, Tracker(folder, active=False), is_main=True)
    settings, policies = SamplingSettings.of(arguments, purpose="bench"), [Policy(job["base"], "base")]
    with watching() as watch:
        groups = sample_in_turn(stage, policies, prompts, settings, num_answers=job["answers"])
    answers = [answer for group in groups for answer in group]
    return {
        "seconds": watch.seconds,
        "rows": len(answers),
        "tokens": sum(len(answer.ids) for answer in answers),
        "dtype": job["dtype"],
    }
