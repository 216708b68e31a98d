{{- define "vllmendpoint.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* Short enough that the longest suffix still makes a DNS label. */}}
{{- define "vllmendpoint.fullname" -}}
{{- $name := include "vllmendpoint.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- regexReplaceAll "[-.]+$" (default $full .Values.fullnameOverride | trunc 50) "" -}}
{{- end }}

{{/* A Service's name is a DNS label that begins with a letter; a release may be called 2024 or 1.5. */}}
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

{{/* Never change: Deployments are selected by them, and workers let such pods reach their reports. */}}
{{- define "vllmendpoint.selectorLabels" -}}
app.kubernetes.io/name: {{ include "vllmendpoint.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The chart's own labels win over the user's: one key twice is not valid. */}}
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

{{/* What the operator may do where it serves endpoints; each verb is one that it uses. */}}
{{- define "vllmendpoint.rules" -}}
{{- $child := list "get" "list" "watch" "create" "patch" "delete" | toJson -}}
# Seen through a watch; only their status is written.
- apiGroups: [serving.vllmendpoint.dev]
  resources: [vllmendpoints]
  verbs: [list, watch]
- apiGroups: [serving.vllmendpoint.dev]
  resources: [vllmendpoints/status]
  verbs: [patch]
# To own children with blockOwnerDeletion.
- apiGroups: [serving.vllmendpoint.dev]
  resources: [vllmendpoints/finalizers]
  verbs: [update]
# The children: watched, looked up before they are made, applied (patch, and create of a new one), pruned.
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
# The one role that it may hand out, without holding its rights.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [{{ empty .Values.watchNamespaces | ternary "clusterroles" "roles" }}]
  resourceNames: [{{ include "vllmendpoint.workerRoleName" . | quote }}]
  verbs: [bind]
# The annotation that makes the kubelet bring new settings at once.
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

{{/* What Dynamo's Kubernetes discovery does in a worker's or frontend's pod; its metadata goes with the pod. */}}
{{- define "vllmendpoint.workerRules" -}}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [nvidia.com]
  resources: [dynamoworkermetadatas]
  verbs: [list, watch, create, patch]
{{- if empty .Values.watchNamespaces }}
# No object: by this the admission policy knows a worker, whatever its service account is called.
- apiGroups: [serving.vllmendpoint.dev]
  resources: [workers]
  verbs: [run]
{{- end }}
{{- end }}
