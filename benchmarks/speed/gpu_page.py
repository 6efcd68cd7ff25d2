"""Writes docs/benchmarks-gpu.md from what the GPU benchmark has measured so far."""

from collections.abc import Sequence

from benchmarks.speed.gpu_parts import BARS, GPU, Part, Scale
from benchmarks.speed.measure import Values

MAX_CHARACTERS = 200  # of an error in a cell
KINDS = {"dpo": "DPO", "reward": "reward model", "sft": "SFT"}


def text_of(page: Values, parts: Sequence[Part], scale: Scale) -> str:
    """The page. A part without a result is a row that says so."""
    about, results = page.get("about") or {}, page["parts"]
    versions = ", ".join(f"{name} {version}" for name, version in page["versions"].items())
    device = about.get("device", "an unknown device")
    facts = [
        f"driver {about['driver']}" if about.get("driver") else "",
        f"CUDA {about['cuda']}" if about.get("cuda") else "",
        f"{about['memory_gib']:.0f} GiB" if about.get("memory_gib") else "",
    ]
    lines = [
        "# How fast is it on a GPU?",
        "",
        f"Written by `{page['command']}` (`make bench-gpu`) on {page['date']},",
        f"on {', '.join(filter(None, [device, *facts]))}, with {versions}.",
        "",
    ]
    if scale is not GPU:
        lines += ["**From tiny models on a CPU: these numbers mean nothing.**", ""]
    if "prepare" in results:
        return "\n".join([*lines, f"The inputs could not be written: {results['prepare']['failed']}", ""])
    lines += [INTRODUCTION, "", *speed_table(page, parts), "", *peak_lines(page), ""]
    lines += ["## Lengths of the rows", "", *length_table(page), ""]
    lines += ["## Attention of one layer", "", ATTENTION, "", *attention_table(results, parts), ""]
    lines += ["## Is it right?", "", *check_lines(results, parts), ""]
    return "\n".join(lines)


INTRODUCTION = """\
Weights are random and in bfloat16, and so are the gradients and the two moments of AdamW, on all sides; activations are
kept. TRL is used as its commands build it, in the best stock configuration with what is installed. All sides get the
same rows, and a step sees all rows of its set. A rate is that of the median step; the first step, in which kernels are
compiled, is left out. *Own tokens* count the shared beginning of two answers once and no padding. Utilisation is the
share of the device's published peak in bfloat16: **6N** counts six operations for each weight and own token, **causal**
what the loss needs (the head for its own tokens only, and the visible half of attention), and **hardware** what is
executed, with padding and masked pairs of tokens. DPO's reference is computed before training; *with the reference*
adds its time."""

ATTENTION = """\
Forward and backward of one layer's attention on a micro-batch of the first set, packed: pairs that share their prompts,
and dialogs. *Difference* is the largest one of the output and the gradients to SDPA in float32, as a share of the
largest value. `varlen_attn` is torch's; training does not use it."""


def speed_table(page: Values, parts: Sequence[Part]) -> list[str]:
    head = (
        "model | method | rows | side | rows/s | with the reference | own tokens/s | 6N | causal | hardware | GiB | bar"
    )
    lines = [f"| {head} | bar |", "|---|---|---|---|" + "---:|" * 7 + "---|"]
    for part in parts:
        if part.function != "train":
            continue
        job, values = part.job, page["parts"].get(part.name, {"failed": "not measured yet"})
        side = f"{'ours' if job['is_ours'] else 'TRL'}, `{job['attention']}`" + (f", {job['way']}" * bool(job["way"]))
        row = [job["model"], KINDS[job["kind"]], job["set"], side]
        if "failed" in values:
            row += ["failed: " + _cell(values["failed"]), *[""] * 7]
        else:
            if job["is_ours"] and not values["is_packed"]:
                row[3] += ", **rows were padded**"
            reference, peak = values["rows_per_s_with_reference"], _peak(page)
            row += [
                f"{values['rows_per_s']:.2f}",
                f"{reference:.2f}" if reference else "",
                f"{values['tokens_per_s']:.0f}",
            ]
            row += [f"{values['flops_per_s'][name] / peak:.1%}" for name in ("6N", "causal", "hardware")]
            row += [f"{values['gpu_gib']:.0f}" if values["gpu_gib"] else "", bar_of(job, values, peak)]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def bar_of(job: Values, values: Values, peak: float) -> str:
    """The bar of our side with the largest model, and whether it is reached; empty where there is none."""
    bar = BARS.get((job["set"], job["kind"]))
    if bar is None or not job["is_ours"] or job["model"] != GPU.models[0]:
        return ""
    what, least = bar
    got = values["rows_per_s"] if what == "rows_per_s" else values["flops_per_s"][what] / peak
    unit = f"≥ {least} pairs/s" if what == "rows_per_s" else f"≥ {least:.0%} causal"
    return f"{unit}: {'reached' if got >= least else '**missed**'}"


def _peak(page: Values) -> float:
    return page["about"]["peak"] or page["peak_measured"]


def peak_lines(page: Values) -> list[str]:
    measured = page["peak_measured"] / 1e12
    if page["about"]["peak"]:
        published = page["about"]["peak"] / 1e12
        return [f"The device's published peak is {published:.0f} TFLOP/s; a large product reaches {measured:.0f}."]
    return [f"The device has no published peak that this program knows; the measured one is {measured:.3g} TFLOP/s."]


def length_table(page: Values) -> list[str]:
    lines = ["| set | rows | mean prompt | mean chosen | mean rejected | own tokens a pair |", "|---|" + "---:|" * 5]
    for name, facts in page["facts"].items():
        cells = [f"{facts['lengths'][column]:.0f}" for column in ("prompt", "chosen", "rejected")]
        own = facts["counts"]["dpo"]["tokens"] / facts["rows"]
        lines.append(f"| {name} | {facts['rows']} | {' | '.join(cells)} | {own:.0f} |")
    return lines


def attention_table(results: Values, parts: Sequence[Part]) -> list[str]:
    values = _result("attention", results, parts)
    if "failed" in values:
        return [f"Failed: {values['failed']}"]
    lines = ["| row | tokens | attention | ms | difference |", "|---|---:|---|---:|---:|"]
    for one in values["attention"]:
        cells = (
            ["failed: " + _cell(one["failed"]), ""] if "failed" in one else [f"{one['ms']:.2f}", f"{one['error']:.1e}"]
        )
        lines.append(f"| {one['row']} | {one['tokens']} | `{one['attention']}` | {' | '.join(cells)} |")
    return lines


def check_lines(results: Values, parts: Sequence[Part]) -> list[str]:
    lines = ["| check | result |", "|---|---|"]
    losses = _result("losses", results, parts)
    for one in losses.get("losses", []):
        name = f"`{one['stage']}`, {one['precision']}, `{one['attention']}`: losses against the CPU's in float32"
        if "failed" in one:
            result = "failed: " + _cell(one["failed"])
        else:
            result = f"{'equal' if one['is_equal'] else '**differ**'}, by at most {one['difference']:.1e} of a loss"
        lines.append(f"| {name} | {result} |")
    if "failed" in losses:
        lines.append(f"| losses against the CPU's | failed: {_cell(losses['failed'])} |")
    resume = _result("resume", results, parts)
    if "failed" in resume:
        result = f"failed: {_cell(resume['failed'])}"
    else:
        difference = "equal" if resume["is_equal"] else f"**differ** by at most {resume['largest_difference']:.1e}"
        result = f"{difference}" + ("" if resume["was_killed"] else " (it had ended before the kill)")
    lines.append(f"| weights of a step that was killed and resumed, against those of an undisturbed one | {result} |")
    demo = _result("demo", results, parts)
    if "failed" in demo:
        result = f"failed: {_cell(demo['failed'])}"
    else:
        means = ", ".join(f"{name} {mean:.3f}" for name, mean in demo["means"].items())
        result = f"{means}; {demo['num_steps']} steps in {demo['seconds']:.0f} s"
    lines.append(f"| the demo's loop on the device, a shorter one: the judge's means | {result} |")
    return lines


def _result(function: str, results: Values, parts: Sequence[Part]) -> Values:
    name = next(part.name for part in parts if part.function == function)
    return results.get(name, {"failed": "not measured yet"})


def _cell(text: str) -> str:
    """A text that does not break its table."""
    return " ".join(text.replace("|", "\\|").split())[:MAX_CHARACTERS]
