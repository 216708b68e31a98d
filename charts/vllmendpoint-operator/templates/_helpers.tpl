{{- define "vllmendpoint.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* Truncated so that the name with the longest suffix is still a valid DNS label. */}}
{{- define "vllmendpoint.fullname" -}}
{{- $name := include "vllmendpoint.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- regexReplaceAll "[-.]+$" (default $full .Values.fullnameOverride | trunc 50) "" -}}
{{- end }}

{{/* A Service name is a DNS label that starts with a letter, but a release name may be 2024 or 1.5. */}}
{{- define "vllmendpoint.serviceName" -}}
{{- $name := include "vllmendpoint.fullname" . | replace "." "-" -}}
{{- regexMatch "^[a-z]" $name | ternary $name (printf "operator-%s" $name) -}}
{{- end }}

{{- define "vllmendpoint.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "vllmendpoint.fullname" .) "default") .Values.serviceAccount.name -}}
{{- end }}

{{- define "vllmendpoint.workerRoleName" -}}
{{- include "vllmendpoint.fullname" . }}-worker
{{- end }}

{{/* Do not change these labels: the selector of a Deployment is immutable, and the NetworkPolicies of workers select the
operator's pods by them. */}}
{{- define "vllmendpoint.selectorLabels" -}}
app.kubernetes.io/name: {{ include "vllmendpoint.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The chart's own labels take precedence over the user's, because a duplicate key is invalid. */}}
{{- define "vllmendpoint.labels" -}}
{{- $own := include "vllmendpoint.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "vllmendpoint" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- merge $own (default dict .Values.commonLabels) | toYaml -}}
{{- end }}

{{- define "vllmendpoint.podLabels" -}}
{{- merge (include "vllmendpoint.selectorLabels" . | fromYaml) (default dict .Values.podLabels) (default dict .Values.commonLabels) | toYaml -}}
{{- end }}

{{/* Takes (dict "image" ... "root" $). */}}
{{- define "vllmendpoint.image" -}}
{{- $registry := default .image.registry .root.Values.global.imageRegistry -}}
{{- with $registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .root.Chart.AppVersion .image.tag }}{{ end }}
{{- end }}

{{- define "vllmendpoint.imagePullSecrets" -}}
{{- with concat (default list .Values.global.imagePullSecrets) (default list .Values.imagePullSecrets) | uniq -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Rules of the operator's role. Every verb is used. */}}
{{- define "vllmendpoint.rules" -}}
{{- $child := list "get" "list" "watch" "create" "patch" "delete" | toJson -}}
# The operator watches VLLMEndpoints and writes only their status.
- apiGroups: [serving.vllmendpoint.dev]
  resources: [vllmendpoints]
  verbs: [list, watch]
- apiGroups: [serving.vllmendpoint.dev]
  resources: [vllmendpoints/status]
  verbs: [patch]
# Required for owner references with blockOwnerDeletion.
- apiGroups: [serving.vllmendpoint.dev]
  resources: [vllmendpoints/finalizers]
  verbs: [update]
# Objects of endpoints: watched, read before they are created, applied (patch; create for a new object) and deleted.
- apiGroups: [""]
  resources: [configmaps, persistentvolumeclaims, serviceaccounts, services]
  verbs: {{ $child }}
- apiGroups: [apps]
  resources: [controllerrevisions, deployments]
  verbs: {{ $child }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: {{ $child }}
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: {{ $child }}
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: {{ $child }}
# The only role that the operator may bind without having its permissions.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [{{ empty .Values.watchNamespaces | ternary "clusterroles" "roles" }}]
  resourceNames: [{{ include "vllmendpoint.workerRoleName" . | quote }}]
  verbs: [bind]
# The operator patches an annotation of pods so that the kubelet refreshes the settings volume immediately.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* Permissions that Dynamo's Kubernetes discovery needs in the pods of workers and frontends. The pod owns its
DynamoWorkerMetadata, so no permission to delete is needed. */}}
{{- define "vllmendpoint.workerRules" -}}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [nvidia.com]
  resources: [dynamoworkermetadatas]
  verbs: [list, watch, create, patch]
{{- if empty .Values.watchNamespaces }}
# A virtual resource. The admission policy identifies workers by this permission, because their ServiceAccount may have
# any name.
- apiGroups: [serving.vllmendpoint.dev]
  resources: [workers]
  verbs: [run]
{{- end }}
{{- end }}
