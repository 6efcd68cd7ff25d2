"""vLLM's side of the speed benchmark. It imports only the standard library and vllm.

    PYTHON benchmarks/speed/vllm_side.py JOB

PYTHON is the interpreter of vLLM's environment, JOB is JSON with base, prompt_ids, answers and the settings. It loads
the model once. For each line of its input it generates all answers and prints one line of JSON. In between its
processes are stopped, because even an idle worker takes a tenth of a core from the other sides.
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
    # Otherwise vLLM reserves a core: with two cores it is half as fast.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")  # it would compile at each start: the cache is not for a CPU
    import vllm

    prompts: list[Any] = [{"prompt_token_ids": ids} for ids in json.loads(Path(job["prompt_ids"]).read_text())]
    engine = vllm.LLM(model=job["base"], dtype=job["dtype"], enable_prefix_caching=True, seed=1)
    sampling = vllm.SamplingParams(
        n=job["answers"], temperature=job["temperature"], top_p=1.0, max_tokens=job["max_new_tokens"]
    )
    try:
        for _ in sys.stdin:
            signal_others(signal.SIGCONT)
            engine.reset_prefix_cache()  # the prompts were there in an earlier run
            started = time.perf_counter()
            outputs = engine.generate(prompts, sampling, use_tqdm=False)
            seconds = time.perf_counter() - started
            lengths = [len(answer.token_ids) for request in outputs for answer in request.outputs]
            values = {"seconds": seconds, "rows": len(lengths), "tokens": sum(lengths), "dtype": job["dtype"]}
            signal_others(signal.SIGSTOP)
            print(json.dumps(values | {"vllm": vllm.__version__}), flush=True)
    finally:
        signal_others(signal.SIGCONT)


def signal_others(number: signal.Signals) -> None:
    """Sends a signal to all other processes of this process group, which vLLM has started."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, ProcessLookupError):
            pid = int(entry.name)
            if pid != os.getpid() and os.getpgid(pid) == os.getpgrp():
                os.kill(pid, number)


if __name__ == "__main__":  # vLLM's engine is a process that imports this file
    main()
