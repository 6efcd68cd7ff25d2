"""The program that `vllm_process.py` runs with vLLM's interpreter; it needs only the standard library and vLLM.

    python -I vllm_worker.py version    prints {"version": ...} without importing vLLM
    python -I vllm_worker.py serve      JSON lines: reads settings, then requests; writes one message for each

A request is {"answers": [{"prompt": tokens, "temperature": float, "seed": int}, ...], "top_p", "max_tokens", "stop",
"log_probs": bool}, or {"weights": folder}. The message is {"ids": [tokens, ...], "log_probs": [floats, ...] or null},
{"ready": true}, or {"error": text, "at": "import" | "load" | "generate" | "weights"}. Nothing of this project is
imported: that environment has other versions of its dependencies, or none.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import queue
import signal
import sys
import threading
import time

SECONDS_TO_END = 10.0  # for an idle vLLM to end its own processes


def version():
    if importlib.util.find_spec("vllm") is None:
        return {"error": "No module named 'vllm'"}
    packages = importlib.metadata.packages_distributions().get("vllm", [])  # "vllm", or a build of another name
    return {"version": importlib.metadata.version(packages[0]) if packages else "unknown"}


def serve(answers):
    # A scheduler sends them to every process of a job: the stage handles them, and this group must be finished.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    requests = queue.Queue()
    is_busy = threading.Event()
    is_busy.set()
    threading.Thread(target=_read, args=(requests, is_busy), daemon=True).start()
    settings = requests.get()
    if settings is None:
        return
    try:
        vllm = importlib.import_module("vllm")
    except BaseException as error:
        _send(answers, error=_line(error), at="import")
        raise
    try:
        model = vllm.LLM(**settings)
    except BaseException as error:
        _send(answers, error=_line(error), at="load")
        raise
    _send(answers, ready=True)
    while True:
        is_busy.clear()
        request = requests.get()
        if request is None:
            return
        is_busy.set()
        try:
            if "weights" in request:
                model.collective_rpc("reload_weights", kwargs={"weights_path": request["weights"]})
                _send(answers, ready=True)
            else:
                _send(answers, **_generate(vllm, model, request))
        except BaseException as error:
            _send(answers, error=_line(error), at="weights" if "weights" in request else "generate")
            raise


def _generate(vllm, model, request):
    """The tokens of each requested answer, the end token included, and their log-probs."""
    parameters = [
        vllm.SamplingParams(
            temperature=answer["temperature"],
            top_p=request["top_p"],
            seed=answer["seed"],
            max_tokens=request["max_tokens"],
            stop_token_ids=request["stop"],
            detokenize=False,
            logprobs=0 if request["log_probs"] else None,  # 0: of the sampled token alone
        )
        for answer in request["answers"]
    ]
    prompts = [{"prompt_token_ids": answer["prompt"]} for answer in request["answers"]]
    # Prefixes cached by an earlier group would change the shapes of this group's first pass, and so its rounding.
    model.reset_prefix_cache()
    answers = [output.outputs[0] for output in model.generate(prompts, parameters, use_tqdm=False)]
    ids = [list(answer.token_ids) for answer in answers]
    if not request["log_probs"]:
        return {"ids": ids, "log_probs": None}
    pairs = [zip(answer.token_ids, answer.logprobs, strict=True) for answer in answers]
    return {"ids": ids, "log_probs": [[at[token].logprob for token, at in own] for own in pairs]}


def _read(requests, is_busy):
    """Queues requests. The end of stdin means that the stage has ended or died; then this process ends as well."""
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    requests.put(None)
    if not is_busy.is_set():
        time.sleep(SECONDS_TO_END)
    os.killpg(0, signal.SIGKILL)  # also ends the processes that vLLM has started


def _send(answers, **message):
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _line(error):
    text = " ".join(str(error).split())[:1000]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    # What libraries print to stdout goes to stderr, which is the log: stdout is only for messages.
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if sys.argv[1:] == ["version"]:
        _send(stdout, **version())
    else:
        serve(stdout)
