"""vLLM's side of benchmarks/speed.py, run by the interpreter of its own environment: the standard library and vllm.

PYTHON benchmarks/vllm_side.py JOB     # JOB: base, prompt_ids, answers, … as JSON; one JSON line at the end
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    job = json.loads(sys.argv[1])
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
    # Else it keeps a core for itself: with two it is half as fast.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")  # else each start compiles anew: its cache is not for a CPU
    import vllm

    prompts = [{"prompt_token_ids": ids} for ids in json.loads(Path(job["prompt_ids"]).read_text())]
    engine = vllm.LLM(model=job["base"], dtype=job["dtype"], enable_prefix_caching=True, seed=1)
    sampling = vllm.SamplingParams(n=job["answers"], temperature=job["temperature"], top_p=1.0,
                                   max_tokens=job["max_new_tokens"])  # fmt: skip
    started = time.perf_counter()
    found = engine.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    lengths = [len(answer.token_ids) for request in found for answer in request.outputs]
    found = {"seconds": seconds, "rows": len(lengths), "tokens": sum(lengths), "dtype": job["dtype"]}
    print(json.dumps(found | {"vllm": vllm.__version__}))


if __name__ == "__main__":  # its engine is a process that imports this file
    main()
