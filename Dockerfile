# The image has the CUDA compiler, since DeepSpeed builds its optimizer kernels at their first use.
#   docker build -t alignloop .
#   docker run --gpus all --ipc=host -v "$PWD/runs:/work/runs" alignloop run demo
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv git \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 alignloop && mkdir /app /work && chown alignloop /app /work
USER alignloop
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH PIP_NO_CACHE_DIR=1

# Libraries first, since they change less often than the code.
COPY --chown=alignloop constraints.txt pyproject.toml README.md ./
RUN python3 -m venv .venv && pip install --constraint constraints.txt torch==2.13.0
COPY --chown=alignloop . .
RUN pip install --constraint constraints.txt --editable .

WORKDIR /work
ENTRYPOINT ["alignloop"]
CMD ["--help"]
