# An image for one GPU or several. It has the CUDA compiler, since DeepSpeed builds its optimizer kernels at their first
# use, and the major CUDA version that torch from PyPI is built for (constraints.txt): DeepSpeed refuses another one.
#   docker build -t alignloop .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD:/work" -v alignloop-cache:/cache \
#       alignloop run demo
# docs/docker.md explains the volumes, and how to build on a base without CUDA.
ARG BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# pip reads these two from the environment, if they are given as --build-arg.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PATH=/app/.venv/bin:$PATH PIP_NO_CACHE_DIR=1
WORKDIR /app

# Libraries first, since they change less often than the code.
COPY constraints.txt pyproject.toml README.md ./
RUN python3 -m venv .venv && pip install --constraint constraints.txt torch==2.13.0
COPY . .
# The code belongs to root, and any user may run it: it is compiled now, since nobody can write there later.
RUN pip install --constraint constraints.txt --editable . && python -m compileall -q -x '[.]venv' .

# What is written at run time is written below /work and /cache. The user may be one without an entry in /etc/passwd,
# who has no home and no name there; libraries that ask for either read these variables.
RUN useradd --uid 10001 --home-dir /cache/home alignloop \
    && install --directory --mode 1777 /work /cache /cache/home
ENV HOME=/cache/home USER=alignloop LOGNAME=alignloop XDG_CACHE_HOME=/cache/xdg \
    HF_HOME=/cache/huggingface TORCH_HOME=/cache/torch TORCH_EXTENSIONS_DIR=/cache/torch-extensions \
    TORCHINDUCTOR_CACHE_DIR=/cache/torch-inductor TRITON_CACHE_DIR=/cache/triton CUDA_CACHE_PATH=/cache/cuda \
    MPLCONFIGDIR=/cache/matplotlib WANDB_CACHE_DIR=/cache/wandb WANDB_CONFIG_DIR=/cache/wandb
USER alignloop

WORKDIR /work
ENTRYPOINT ["alignloop"]
CMD ["--help"]
