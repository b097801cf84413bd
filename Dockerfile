# The torch wheels bring CUDA, so a slim base is enough; `docker run --gpus all` brings the driver.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

LABEL org.opencontainers.image.title="distillation-bench" \
      org.opencontainers.image.description="A knowledge-distillation experiment on Fashion-MNIST" \
      org.opencontainers.image.licenses="MIT"

# The data set is a Debian package: a run needs no network. Unpinned: every file is checked against
# its digest whenever it is read. The compiler is for --compile.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends dataset-fashion-mnist g++ \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.lock ./
RUN python -m pip install --no-cache-dir --require-hashes -r requirements.lock

# Whatever uid runs it, and with a read-only root file system, everything that libraries want to
# write goes to /tmp; USER and LOGNAME stand in for a uid that has no name here.
ENV HOME=/tmp USER=distill LOGNAME=distill MPLCONFIGDIR=/tmp/matplotlib MPLBACKEND=Agg \
    XDG_CACHE_HOME=/tmp/cache TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTEST_ADDOPTS="-p no:cacheprovider" \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY pyproject.toml *.md LICENSE *.py ./
COPY common ./common
COPY tests ./tests
COPY benchmarks ./benchmarks
COPY results ./results
RUN useradd --uid 10001 --no-create-home distill \
 && mkdir runs report && chmod 1777 runs report
USER 10001

STOPSIGNAL SIGTERM
CMD ["python", "train_student.py"]
