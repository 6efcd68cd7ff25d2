"""A stage's process without a GPU keeps the memory that it frees, and its garbage collections skip imported modules."""

import platform
import subprocess
import sys

import pytest

KEPT = """
import os, torch
from pathlib import Path
from engine.runtime import process
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
torch.cuda.device_count = lambda: {gpus}
process.keep_memory()
torch.ones(1)
before = resident()
torch.ones(64 << 20)  # 256 MiB, freed at once
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
@pytest.mark.parametrize(("gpus", "is_kept"), [(0, True), (1, False)])
def test_freed_memory_is_kept_without_a_gpu(gpus, is_kept):
    words = [sys.executable, "-c", KEPT.format(gpus=gpus)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 200) == is_kept, done.stdout


FROZEN = """
import gc
from engine.runtime import stage
stage._run = lambda *given: print(gc.get_freeze_count(), len(gc.get_objects())) or 0
stage.run_stage("prepare_base", (), None, words=["--model_name_or_path", "m", "--output_dir", "o"])
"""


def test_garbage_collections_do_not_visit_imported_modules(tmp_path):
    words = [sys.executable, "-c", FROZEN]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    frozen, others = map(int, done.stdout.split())
    assert frozen > 5 * others, "nearly all objects that exist when a stage starts belong to its modules"
