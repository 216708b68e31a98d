# Four images: operator, worker (GPU, on NVIDIA's Dynamo image), worker-cpu (the same worker, vLLM on CPU) and frontend.
# Dependencies come from uv.lock, in a layer below our code, so that a change of our code creates one small layer. After the
# dependencies, each image checks what our code relies on (hack/check_image.py), as an arbitrary user of the group 0, which is
# how OpenShift runs containers. BuildKit repeats this check if our code changes; buildah only if the dependencies do.
# To build behind a private CA: docker build --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt ...
ARG BASE=docker.io/library/debian:bookworm-slim
ARG GPU_BASE=nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.6.1
ARG UV=ghcr.io/astral-sh/uv:0.13.9

# WORKDIR has no effect here, but buildah does not remove the working container of a stage without steps.
FROM ${UV} AS uv
WORKDIR /

# vLLM needs libnuma1. tini reaps the orphaned processes of a killed engine.
FROM ${BASE} AS python
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates libnuma1 python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log

# The locked requirements of each image, with hashes, in separate files: a change elsewhere in the lock does not invalidate
# an image's layer of dependencies. Nor does a change of which package requires another (--no-annotate).
FROM python AS lock
COPY --from=uv /uv /usr/local/bin/uv
COPY pyproject.toml uv.lock /src/
COPY crds/pyproject.toml /src/crds/
COPY operator/pyproject.toml /src/operator/
COPY worker/pyproject.toml /src/worker/
COPY worker/cpu /src/worker/cpu
RUN cd /src \
    && export="uv export --quiet --frozen --no-dev --no-emit-workspace --no-header --no-annotate --python /usr/bin/python3" \
    && $export --package vllmendpoint-operator -o /operator/requirements.txt \
    && $export --package vllmendpoint-worker --extra cpu -o /worker/requirements.txt \
    && $export --package vllmendpoint-worker --only-group gpu -o /extra/requirements.txt \
    && $export --package vllmendpoint-worker --only-group frontend --prune aiohttp --prune certifi --prune kubernetes \
        --prune pyzmq --prune redis --prune tqdm --prune transformers --prune zstandard -o /frontend/requirements.txt \
    && mkdir /worker/worker && cp -r worker/cpu /worker/worker/

# Our code in a separate folder, with its metadata because vLLM finds our stat logger by entry point. A .pth file adds the
# folder to the path of the image's Python; a PYTHONPATH in a pod's env does not undo that.
FROM python AS code
COPY --from=uv /uv /usr/local/bin/uv
COPY LICENSE /src/
COPY crds /src/crds
ENV UV_OFFLINE=1 UV_NO_CACHE=1 UV_PYTHON=/usr/bin/python3 UV_COMPILE_BYTECODE=1

FROM code AS operator-code
COPY operator /src/operator
RUN uv pip install --no-deps --target /app /src/crds /src/operator

FROM code AS worker-code
COPY worker /src/worker
RUN uv pip install --no-deps --target /app /src/crds /src/worker


FROM python AS operator
COPY --from=lock /operator /opt/locked
RUN --mount=type=bind,from=lock,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
    && cd /opt/locked \
    && uv venv --python /usr/bin/python3 /opt/venv \
    && uv pip install --python /opt/venv --no-deps --link-mode copy --compile-bytecode -r requirements.txt \
    && echo /app > "$(echo /opt/venv/lib/python3*/site-packages)/vllmendpoint.pth"
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=operator-code /app /app
WORKDIR /app
USER 65532:65532
ENTRYPOINT ["/usr/bin/tini", "--", "python3", "-m", "vllmendpoint_operator"]
LABEL org.opencontainers.image.title="vllmendpoint-operator" \
      org.opencontainers.image.description="Operator for VLLMEndpoint resources" \
      org.opencontainers.image.licenses="Apache-2.0"


# Dynamo's frontend without vLLM, torch and transformers, which only its option --dyn-chat-processor needs. haproxy is Debian's
# package for a proxy in front of Dynamo's HTTP server.
FROM python AS frontend
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
COPY --from=lock /frontend /opt/locked
RUN --mount=type=bind,from=lock,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
    && cd /opt/locked \
    && uv venv --python /usr/bin/python3 /opt/venv \
    && uv pip install --python /opt/venv --no-deps --link-mode copy --compile-bytecode -r requirements.txt \
    && echo /app > "$(echo /opt/venv/lib/python3*/site-packages)/vllmendpoint.pth"
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp USER=frontend PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DO_NOT_TRACK=1
# /app and the lock are mounted, so that the check adds nothing to the image.
USER 1000670000:0
RUN --mount=type=bind,from=worker-code,source=/app,target=/app \
    --mount=type=bind,source=hack/check_image.py,target=/mnt/check_image.py \
    --mount=type=bind,source=uv.lock,target=/mnt/uv.lock \
    ["python3", "/mnt/check_image.py", "frontend", "/mnt/uv.lock"]
COPY --from=worker-code /app /app
WORKDIR /app
USER 1000:0
ENTRYPOINT ["/usr/bin/tini", "--", "python3", "-m", "vllmendpoint_worker.frontend"]
LABEL org.opencontainers.image.title="vllmendpoint-frontend" \
      org.opencontainers.image.description="VLLMEndpoint frontend: NVIDIA Dynamo's OpenAI server without an engine" \
      org.opencontainers.image.licenses="Apache-2.0"


# Dynamo, vLLM and torch for machines without a GPU. torch.compile is disabled, because it needs a C++ compiler at the first
# request that samples, and the image has none.
FROM python AS engine-cpu
COPY --from=lock /worker /opt/locked
RUN --mount=type=bind,from=lock,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
    && cd /opt/locked \
    && uv venv --python /usr/bin/python3 /opt/venv \
    && uv pip install --python /opt/venv --no-deps --link-mode copy --compile-bytecode -r requirements.txt \
    && echo /app > "$(echo /opt/venv/lib/python3*/site-packages)/vllmendpoint.pth"
# By default, vLLM binds the engines of all pods on a node to the same cores (cpu_threads.py).
ENV PATH=/opt/venv/bin:$PATH TORCH_COMPILE_DISABLE=1 VLLM_CPU_OMP_THREADS_BIND=nobind
ENV HOME=/tmp USER=worker PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
# /app and the lock are mounted, so that the check adds nothing to the image.
USER 1000670000:0
RUN --mount=type=bind,from=worker-code,source=/app,target=/app \
    --mount=type=bind,source=hack/check_image.py,target=/mnt/check_image.py \
    --mount=type=bind,source=uv.lock,target=/mnt/uv.lock \
    ["python3", "/mnt/check_image.py", "worker", "/mnt/uv.lock"]

# Dependencies of the worker that NVIDIA's image may not have, for each Python version that it may use. google-re2 has one
# compiled module per version, which can be installed side by side; the other packages are pure Python.
FROM python AS extra
COPY --from=lock /extra /opt/locked
RUN --mount=type=bind,from=lock,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
    && for version in 3.11 3.12 3.13; do \
        uv pip install --python /usr/bin/python3 --python-version $version --only-binary :all: --no-deps --link-mode copy \
            --target /opt/$version -r /opt/locked/requirements.txt && mkdir -p /opt/extra && cp -r /opt/$version/. /opt/extra/ \
            || exit 1; \
    done

# NVIDIA's image provides Dynamo, vLLM and torch for GPUs, but no init. Its own packages come first on the path.
FROM ${GPU_BASE} AS engine-gpu
USER root
COPY --from=python /usr/bin/tini-static /usr/bin/tini
COPY --from=extra /opt/extra /opt/extra
# Exec form, because NVIDIA's image runs RUN in a login shell, which may find another python3 than the one in PATH.
RUN ["python3", "-c", "import sysconfig; open(sysconfig.get_path('purelib') + '/vllmendpoint.pth', 'w').write('/app\\n/opt/extra\\n')"]
ENV HOME=/tmp USER=worker PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
USER 1000670000:0
RUN --mount=type=bind,from=worker-code,source=/app,target=/app \
    --mount=type=bind,source=hack/check_image.py,target=/mnt/check_image.py \
    --mount=type=bind,source=uv.lock,target=/mnt/uv.lock \
    ["python3", "/mnt/check_image.py", "worker", "/mnt/uv.lock"]


# The two worker images differ only in the engine. 1000 is the user of NVIDIA's image, and 0 its group, which may write the
# directories of compiled kernels there. USER is set for libraries that look up the user name, because the user has no passwd
# entry. HOME is writable in a container with a read-only root file system.
FROM engine-cpu AS worker-cpu
COPY --from=worker-code /app /app
WORKDIR /app
USER 1000:0
ENTRYPOINT ["/usr/bin/tini", "--", "python3", "-m", "vllmendpoint_worker"]
LABEL org.opencontainers.image.title="vllmendpoint-worker-cpu" \
      org.opencontainers.image.description="VLLMEndpoint worker: NVIDIA Dynamo and vLLM on CPU" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM engine-gpu AS worker
COPY --from=worker-code /app /app
WORKDIR /app
USER 1000:0
ENTRYPOINT ["/usr/bin/tini", "--", "python3", "-m", "vllmendpoint_worker"]
LABEL org.opencontainers.image.title="vllmendpoint-worker" \
      org.opencontainers.image.description="VLLMEndpoint worker: NVIDIA Dynamo and vLLM on GPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
