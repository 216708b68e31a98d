"""Examples of the fields of a spec for ``docs/reference.md``. Tests apply each of them."""

from typing import Final

__all__ = ["SPEC_EXAMPLES"]

SPEC_EXAMPLES: Final = {
    "model": """\
model:
  uri: hf://meta-llama/Llama-3.1-8B-Instruct
  revision: main
  name: llama
  type: Chat
  tokenSecretRef: {name: hugging-face, key: token}
""",
    "engine": """\
engine:
  args: ["--max-model-len", "8192", "--tensor-parallel-size", "2"]
  config:
    inline: {gpu-memory-utilization: 0.85}
""",
    "prefill": """\
prefill:
  replicas: 2
  engine:
    args: ["--max-num-batched-tokens", "16384"]
  resources:
    limits: {nvidia.com/gpu: 2}
  podTemplate:
    spec:
      nodeSelector: {gpu: h100}
""",
    "worker": """\
worker:
  image: registry.example.com/vllmendpoint/worker:1
  imagePullSecrets:
    - name: registry
  resources:
    requests: {cpu: "4", memory: 32Gi}
    limits: {nvidia.com/gpu: 2}
  env:
    - {name: HF_ENDPOINT, value: "https://hub.example.com"}
    - name: HTTPS_PROXY
      valueFrom:
        configMapKeyRef: {name: proxy, key: url}
  envFrom:
    - secretRef: {name: s3}
  serviceAccountName: reads-my-bucket
  sharedMemorySize: 16Gi
  startupTimeoutSeconds: 3600
  podTemplate:
    spec:
      nodeSelector: {gpu: h100}
""",
    "cache": """\
cache:
  volumeClaimTemplate: {size: 100Gi, storageClassName: shared, accessModes: [ReadWriteMany]}
""",
    "healthCheck": """\
healthCheck:
  mode: Enforce
  payload: {prompt: "The capital of France is", max_tokens: 8, temperature: 0}
  expect: {regex: "Paris"}
  periodSeconds: 30
  timeoutSeconds: 5
  failureThreshold: 2
  successThreshold: 1
  restartAfterSeconds: 600
""",
    "handlers": """\
handlers:
  script:
    inline: |
      async def health_check(request):
          return {"status": "healthy"}
  ping: model:health_check
""",
    "frontend": """\
frontend:
  mode: Managed
  replicas: 2
  routing: {mode: LeastLoaded, sessionAffinitySeconds: 600}
  migrationLimit: 3
  resources:
    requests: {cpu: "1", memory: 1Gi}
  podTemplate:
    spec:
      priorityClassName: serving
""",
    "strategy": """\
strategy:
  rollingUpdate: {maxUnavailable: 0, maxSurge: 25%}
""",
}
"""YAML by the name of the field. Each is a part of a spec that may only lack ``model``."""
