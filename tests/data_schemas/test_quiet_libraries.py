"""What libraries print at their import, which a user can do nothing about."""

import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_says_nothing_at_its_import():
    """On a CPU with AVX-512 it warns of a package that only its own 4-bit products would use."""
    words = "import data_schemas, bitsandbytes"
    process = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert process.stderr == ""
