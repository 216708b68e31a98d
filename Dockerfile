# Three images: operator, worker (GPU, on NVIDIA's Dynamo image) and worker-cpu (the same worker, vLLM on CPU).
# Dependencies come from uv.lock and lie below our code, so that a change of our code makes one small new layer.
# Behind a CA of your own: docker build --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt ...
ARG BASE=docker.io/library/debian:bookworm-slim
ARG GPU_BASE=nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.6.1
ARG UV=ghcr.io/astral-sh/uv:0.13.9

# WORKDIR does nothing here, but buildah leaves a container behind for every stage that has no step.
FROM ${UV} AS uv
WORKDIR /

# libnuma1 is vLLM's; tini reaps what a killed engine leaves behind.
FROM ${BASE} AS python
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates libnuma1 python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log

# What the lock says for each image, with hashes, in files of their own: a change elsewhere in the lock leaves an image's
# dependencies as they are.
FROM python AS lock
COPY --from=uv /uv /usr/local/bin/uv
COPY pyproject.toml uv.lock /src/
COPY crds/pyproject.toml /src/crds/
COPY operator/pyproject.toml /src/operator/
COPY worker/pyproject.toml /src/worker/
COPY worker/cpu /src/worker/cpu
RUN cd /src \
    && export="uv export --quiet --frozen --no-dev --no-emit-workspace --no-header --python /usr/bin/python3" \
    && $export --package vllmendpoint-operator -o /operator/requirements.txt \
    && $export --package vllmendpoint-worker --extra cpu -o /worker/requirements.txt \
    && $export --package vllmendpoint-worker --only-group gpu -o /extra/requirements.txt \
    && mkdir /worker/worker && cp -r worker/cpu /worker/worker/

# Our own code in a folder of its own (with its metadata: vLLM finds our stat logger by entry point). A .pth file makes
# it known to whatever Python the image has, which a PYTHONPATH in a pod's env would not undo.
FROM python AS code
COPY --from=uv /uv /usr/local/bin/uv
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


# Dynamo, vLLM and torch for a machine without a GPU. There is no C++ compiler, which torch.compile would want at the
# first request that samples.
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
# vLLM would bind the engines of all pods of a node to the same cores (cpu_threads.py).
ENV PATH=/opt/venv/bin:$PATH TORCH_COMPILE_DISABLE=1 VLLM_CPU_OMP_THREADS_BIND=nobind

# What the worker asks for and NVIDIA's image does not promise, for whatever Python that image has: google-re2 is one
# compiled module a version, which lie side by side; the rest is pure Python.
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

# NVIDIA's image brings the same for GPUs, and lacks only an init. What it has itself comes first on the path.
FROM ${GPU_BASE} AS engine-gpu
USER root
COPY --from=python /usr/bin/tini-static /usr/bin/tini
COPY --from=extra /opt/extra /opt/extra
# In exec form: NVIDIA's image makes RUN a login shell, which may find another python3 than its PATH says.
RUN ["python3", "-c", "import importlib.metadata as m, sysconfig; print(m.version('ai-dynamo'), m.version('vllm')); open(sysconfig.get_path('purelib') + '/vllmendpoint.pth', 'w').write('/app\\n/opt/extra\\n')"]


# The two workers differ in the engine alone. 1000 is the user of NVIDIA's image; USER names it for libraries that ask
# who they are (there is no passwd entry), and HOME is where a read-only container may write.
FROM engine-cpu AS worker-cpu
ENV HOME=/tmp USER=worker PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
COPY --from=worker-code /app /app
WORKDIR /app
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--", "python3", "-m", "vllmendpoint_worker"]
LABEL org.opencontainers.image.title="vllmendpoint-worker-cpu" \
      org.opencontainers.image.description="VLLMEndpoint worker: NVIDIA Dynamo and vLLM on CPU" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM engine-gpu AS worker
ENV HOME=/tmp USER=worker PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
COPY --from=worker-code /app /app
WORKDIR /app
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--", "python3", "-m", "vllmendpoint_worker"]
LABEL org.opencontainers.image.title="vllmendpoint-worker" \
      org.opencontainers.image.description="VLLMEndpoint worker: NVIDIA Dynamo and vLLM on GPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
