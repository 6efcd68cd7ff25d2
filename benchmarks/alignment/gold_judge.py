"""An LLM judge of the demo's world, as a server on loopback: it knows gold, errs, and prefers the first answer.

    python -m benchmarks.alignment.gold_judge        # prints its address, and serves until it is ended

It answers the questions of an LLM judge (engine/judging/verdicts.py) through an OpenAI-compatible chat interface. Of
NOISE of all pairs its opinion is the wrong way round, in both orders, and of ORDER_BIAS of all questions it names the
answer that is shown first, whatever it thinks. Both are drawn by a hash of the texts, so that a repeated question has
the same verdict. With these shares, both orders agree on 70 % of the pairs with different gold scores (GPT-4: 65 % of
those of MT-Bench; Zheng et al., arXiv 2306.05685), and 71 % of its verdicts on them name the better answer.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from toy_world.gold import gold

NOISE = 0.2
ORDER_BIAS = 0.3
MODEL = "gold-with-noise-1"
LEVELS = (1.0, 0.5, 0.25)  # differences of the gold score from which an answer is better by level 4, 3 and 2
PARTS = {"request": "request", "A": "answer A", "B": "answer B"}


def verdict(question: str, *, noise: float = NOISE, order_bias: float = ORDER_BIAS) -> str:
    """The code of the judge's verdict on a question, as in [[A:3]] or [[tie]]."""
    texts = {name: _part(question, title) for name, title in PARTS.items()}
    preferred = preference(texts["request"], texts["A"], texts["B"], noise=noise)
    if _drawn("order", question) < order_bias:
        return f"[[A:{max(1, preferred)}]]"
    return "[[tie]]" if not preferred else f"[[{'A' if preferred > 0 else 'B'}:{abs(preferred)}]]"


def preference(request: str, one: str, other: str, *, noise: float = 0.0) -> int:
    """From 4, `one` is significantly better by the gold score of the texts, over 0, equal, to -4; the wrong way round
    for a share `noise` of the pairs, in any order. Whether an answer ended by itself is not seen."""
    prompt = [{"role": "user", "content": request}]
    difference = gold(prompt, one, True) - gold(prompt, other, True)
    if not difference:
        return 0
    level = next((4 - place for place, least in enumerate(LEVELS) if abs(difference) >= least), 1)
    is_wrong = _drawn("noise", request, *sorted((one, other))) < noise
    return level if (difference > 0) != is_wrong else -level


def _part(question: str, name: str) -> str:
    found = re.search(rf"<{name} (\w+)>\n(.*)\n</{name} \1>", question, re.DOTALL)
    assert found, "no question of an LLM judge"
    return found[2]


def _drawn(*texts: str) -> float:
    """A number in [0, 1) by a hash of the texts."""
    return int(hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8], 16) / 2**32


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps(_completion(request)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _completion(request: Mapping[str, Any]) -> dict[str, Any]:
    text = f"Both answers were compared with the facts.\n{verdict(request['messages'][-1]['content'])}"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 20},
    }


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
