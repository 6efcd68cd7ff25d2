"""A real vLLM for tests: they run where ALIGNLOOP_TEST_VLLM names the interpreter of an environment with vLLM."""

import os
from typing import Any

import pytest

REAL = os.environ.get("ALIGNLOOP_TEST_VLLM", "")
needs_vllm = pytest.mark.skipif(not REAL, reason="ALIGNLOOP_TEST_VLLM names no interpreter with vLLM")
KEYS: dict[str, Any] = {  # of a section that generates
    "engine": "vllm",
    "use_cpu": True,
    "vllm": {"python": REAL, "gpu_memory_utilization": 0.1},
}
