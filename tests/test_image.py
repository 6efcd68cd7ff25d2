"""The Dockerfile's base and pins agree. Building the image takes a quarter of an hour, so no test does it."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def cuda_of_base(dockerfile: str) -> str:
    found = re.search(r"^ARG BASE=nvidia/cuda:(\d+)\.\d+\.\d+-devel-", dockerfile, re.MULTILINE)
    assert found, "the base is not nvidia/cuda with the compiler"
    return found[1]


def cuda_of_torch(constraints: str) -> tuple[str, str]:
    """The version of torch, and the major CUDA version that it is built for."""
    found = re.search(r"^# torch (\S+) on PyPI is built for CUDA (\d+)\.", constraints, re.MULTILINE)
    assert found, "constraints.txt does not name the CUDA version of torch"
    return found[1], found[2]


def test_the_base_has_the_cuda_version_that_torch_is_built_for():
    """DeepSpeed refuses to compile its operators under another major version."""
    version, cuda = cuda_of_torch(CONSTRAINTS)
    assert cuda_of_base(DOCKERFILE) == cuda
    assert f"\ntorch=={version}\n" in CONSTRAINTS, "a new torch may be built for another CUDA"
    if torch.version.cuda:  # a CPU build has none
        assert torch.version.cuda.split(".")[0] == cuda


def test_another_cuda_version_would_be_noticed():
    older = DOCKERFILE.replace("nvidia/cuda:13.0.2", "nvidia/cuda:12.8.1")
    assert older != DOCKERFILE and cuda_of_base(older) == "12"


def test_the_image_installs_the_pinned_torch_from_a_base_that_can_be_chosen():
    assert f"torch=={cuda_of_torch(CONSTRAINTS)[0]}" in DOCKERFILE
    assert re.search(r"^FROM \$\{BASE\}$", DOCKERFILE, re.MULTILINE)


def test_any_user_can_write_homes_and_caches():
    """With --user an ordinary user owns nothing in the image, and has no entry in its /etc/passwd."""
    assert re.search(r"install --directory --mode 1777 /work /cache /cache/home", DOCKERFILE)
    environment = DOCKERFILE[DOCKERFILE.index("ENV HOME=") :].split("USER alignloop\n")[0]
    values = dict(re.findall(r"(\w+)=(\S+)", environment))
    folders = {name: value for name, value in values.items() if name not in ("USER", "LOGNAME")}
    assert {"HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR"} <= set(folders)
    assert all(value.startswith("/cache/") for value in folders.values()), folders
    assert values["LOGNAME"] == values["USER"], "getpass.getuser() reads them where there is no entry"
