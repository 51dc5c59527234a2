# The environment is made by the steps of scripts/setup.sh, in its order; a test compares them.
#   docker build --target cpu  --tag longtake:0.1.0-cpu .
#   docker build --target cuda --tag longtake:0.1.0-cuda .
# For wheels from elsewhere: --build-arg PIP_INDEX_URL=…; for a cpu image without CUDA's libraries:
# --build-arg PIP_EXTRA_INDEX_URL=… (PyTorch's index of CPU wheels).

FROM python:3.11.15-slim-trixie AS environment
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/longtake
RUN python -m venv --clear .venv
COPY pyproject.toml requirements.lock ./
# hadolint ignore=DL3013
RUN .venv/bin/python -m pip install --upgrade pip
# First and alone: an unpinned torch, drawn in by something else, would be another and far larger one.
RUN .venv/bin/python -m pip install "$(grep '^torch==' requirements.lock)"
RUN .venv/bin/python -m pip install --requirement requirements.lock
COPY . .
RUN .venv/bin/python -m pip install --no-deps --editable . \
    && .venv/bin/python -m compileall -q -j 0 -x '/\.venv/' .

FROM python:3.11.15-slim-trixie AS runtime
# wget: the operator's probes. Debian keeps no old versions, so that a pinned one could not be built again.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 longtake \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/longtake --shell /usr/sbin/nologin longtake
# Root's, so that nobody in the container can change it. Written is below /tmp, /dev/shm, $HOME and what is mounted.
COPY --from=environment /opt/longtake /opt/longtake
ENV PATH=/opt/longtake/.venv/bin:$PATH \
    HOME=/home/longtake \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/longtake
EXPOSE 8000
CMD ["longtake", "serve", "--host", "0.0.0.0"]

FROM runtime AS cpu
USER 10001:10001

# torch brings CUDA's libraries, the node the driver; Triton compiles the launchers of its kernels with a C compiler.
FROM runtime AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# Which GPUs is for the device plugin to say; that there be no default keeps a pod without one from seeing all.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
