"""vLLM's side of benchmarks/speed.py, run by the interpreter of its own environment: the standard library and vllm.

PYTHON benchmarks/speed/vllm_side.py JOB     # JOB: base, prompt_ids, answers, … as JSON

It starts once, writes all answers for each line of its input, and prints a JSON line of them. In between its processes
are stopped: even idle, its worker would take a tenth of a core from the other sides.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.loads(sys.argv[1])
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
    # Else it keeps a core for itself: with two it is half as fast.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")  # else each start compiles anew: its cache is not for a CPU
    import vllm

    prompts: list[Any] = [{"prompt_token_ids": ids} for ids in json.loads(Path(job["prompt_ids"]).read_text())]
    engine = vllm.LLM(model=job["base"], dtype=job["dtype"], enable_prefix_caching=True, seed=1)
    sampling = vllm.SamplingParams(
        n=job["answers"], temperature=job["temperature"], top_p=1.0, max_tokens=job["max_new_tokens"]
    )
    try:
        for _ in sys.stdin:
            signal_others(signal.SIGCONT)
            engine.reset_prefix_cache()  # of the prompts, which were there before
            started = time.perf_counter()
            written = engine.generate(prompts, sampling, use_tqdm=False)
            seconds = time.perf_counter() - started
            lengths = [len(answer.token_ids) for request in written for answer in request.outputs]
            found = {"seconds": seconds, "rows": len(lengths), "tokens": sum(lengths), "dtype": job["dtype"]}
            signal_others(signal.SIGSTOP)
            print(json.dumps(found | {"vllm": vllm.__version__}), flush=True)
    finally:
        signal_others(signal.SIGCONT)


def signal_others(number: signal.Signals) -> None:
    """To all other processes of this group, which are those that vLLM has started."""
    for each in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, ProcessLookupError):
            pid = int(each.name)
            if pid != os.getpid() and os.getpgid(pid) == os.getpgrp():
                os.kill(pid, number)


if __name__ == "__main__":  # its engine is a process that imports this file
    main()
