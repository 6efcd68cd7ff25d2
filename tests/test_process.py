"""A stage's process keeps the memory that it frees, where it has no GPU."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from engine import process
torch.cuda.device_count = lambda: {gpus}
process.keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(30)][-1])  # the first ones find their places
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do as they always do")
@pytest.mark.parametrize(("gpus", "few"), [(0, True), (1, False)])
def test_memory_that_was_freed_is_there_again_without_a_page_fault(gpus, few):
    words = [sys.executable, "-c", FAULTS.format(gpus=gpus)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    pages = (64 << 20) // 4096
    assert (int(done.stdout) < pages / 100) == few, done.stdout
