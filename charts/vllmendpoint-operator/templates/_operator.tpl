{{/* Settings of the operator, as environment variables. */}}
{{- define "vllmendpoint.env" -}}
- name: VLLMENDPOINT_IDENTITY
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: VLLMENDPOINT_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: VLLMENDPOINT_OPERATOR_NAME
  value: "{{ .Release.Namespace }}/{{ .Release.Name }}"
- name: VLLMENDPOINT_NAMESPACES
  value: {{ join "," (default list .Values.watchNamespaces) | quote }}
- name: VLLMENDPOINT_POD_LABELS
  value: "app.kubernetes.io/name={{ include "vllmendpoint.name" . }},app.kubernetes.io/instance={{ .Release.Name }}"
- name: VLLMENDPOINT_WORKER_IMAGE
  value: {{ include "vllmendpoint.image" (dict "image" .Values.worker.image "root" .) | quote }}
- name: VLLMENDPOINT_FRONTEND_IMAGE
  value: {{ include "vllmendpoint.image" (dict "image" .Values.frontend.image "root" .) | quote }}
- name: VLLMENDPOINT_FIXED_USER
  value: {{ include "vllmendpoint.openshift" . | empty | quote }}
- name: VLLMENDPOINT_ADDITIONAL_INGRESS
  value: {{ default list .Values.networkPolicy.additionalIngress | toJson | quote }}
- name: VLLMENDPOINT_WORKER_ROLE_KIND
  value: {{ empty .Values.watchNamespaces | ternary "ClusterRole" "Role" | quote }}
- name: VLLMENDPOINT_WORKER_ROLE_NAME
  value: {{ include "vllmendpoint.workerRoleName" . | quote }}
- name: VLLMENDPOINT_LEASE_NAME
  value: {{ include "vllmendpoint.fullname" . | quote }}
- name: VLLMENDPOINT_LEASE_SECONDS
  value: {{ int64 .Values.leaseSeconds | quote }}
- name: VLLMENDPOINT_MAX_CONCURRENT_RECONCILES
  value: {{ int64 .Values.maxConcurrentReconciles | quote }}
- name: VLLMENDPOINT_RESYNC_SECONDS
  value: {{ int64 .Values.resyncSeconds | quote }}
- name: VLLMENDPOINT_LOG_LEVEL
  value: {{ .Values.log.level | quote }}
- name: VLLMENDPOINT_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
{{- end }}

{{/* Environment variable -> what the user sets instead. Each variable is also a flag, such as --log-level. */}}
{{- define "vllmendpoint.settings" -}}
VLLMENDPOINT_IDENTITY: its value is the pod's name
VLLMENDPOINT_NAMESPACE: use helm's --namespace
VLLMENDPOINT_OPERATOR_NAME: its value is the release's namespace and name
VLLMENDPOINT_NAMESPACES: use the value watchNamespaces
VLLMENDPOINT_POD_LABELS: use the value nameOverride
VLLMENDPOINT_WORKER_IMAGE: use the value worker.image
VLLMENDPOINT_FRONTEND_IMAGE: use the value frontend.image
VLLMENDPOINT_FIXED_USER: use the value openshift
VLLMENDPOINT_ADDITIONAL_INGRESS: use the value networkPolicy.additionalIngress
VLLMENDPOINT_WORKER_ROLE_KIND: use the value watchNamespaces
VLLMENDPOINT_WORKER_ROLE_NAME: use the value fullnameOverride
VLLMENDPOINT_LEASE_NAME: use the value fullnameOverride
VLLMENDPOINT_LEASE_SECONDS: use the value leaseSeconds
VLLMENDPOINT_MAX_CONCURRENT_RECONCILES: use the value maxConcurrentReconciles
VLLMENDPOINT_RESYNC_SECONDS: use the value resyncSeconds
VLLMENDPOINT_LOG_LEVEL: use the value log.level
VLLMENDPOINT_LOG_FORMAT: use the value log.format
{{- end }}

{{/* "true" on OpenShift, else empty. */}}
{{- define "vllmendpoint.openshift" -}}
{{- $found := .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- if eq (toString .Values.openshift) "auto" | ternary $found (eq (toString .Values.openshift) "true") -}}
true
{{- end -}}
{{- end }}

{{/* OpenShift assigns the user and group IDs. The ID 65532 is in the range of no namespace. */}}
{{- define "vllmendpoint.podSecurityContext" -}}
{{- $context := deepCopy (default dict .Values.podSecurityContext) -}}
{{- if include "vllmendpoint.openshift" . -}}
{{- range $field := list "runAsUser" "runAsGroup" -}}
{{- if eq (toString (get $context $field)) "65532" -}}
{{- $_ := unset $context $field -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $context -}}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* Fails for a removed value, for a list item that the chart sets itself, and for a duplicate list item. Helm 4 installs
with server-side apply, which rejects duplicate keys without naming the value or the remedy. */}}
{{- define "vllmendpoint.checked" -}}
{{- if not (kindIs "invalid" .Values.concurrency) -}}
{{- fail "concurrency: The value was renamed. Use maxConcurrentReconciles instead." -}}
{{- end -}}
{{- $settings := include "vllmendpoint.settings" . | fromYaml -}}
{{- $own := dict -}}
{{- range include "vllmendpoint.env" . | fromYamlArray -}}
{{- $_ := set $own .name (printf "is set by the chart. Remove it: %s." (get $settings .name)) -}}
{{- end -}}
{{- $flags := dict -}}
{{- range $name, $instead := $own -}}
{{- $_ := set $flags (printf "--%s" (trimPrefix "VLLMENDPOINT_" $name | lower | replace "_" "-")) $instead -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.extraEnv -}}
{{- /* The operator reads environment variables case-insensitively. */ -}}
{{- $names = append $names (hasPrefix "VLLMENDPOINT_" (upper .name) | ternary (upper .name) .name) -}}
{{- end -}}
{{- include "vllmendpoint.unique" (list "extraEnv" "name" $names $own) -}}
{{- $names = list -}}
{{- range .Values.extraArgs -}}
{{- if hasPrefix "--" . -}}
{{- /* Flags, too, are case-insensitive. */ -}}
{{- $names = append $names (splitList "=" . | first | lower) -}}
{{- end -}}
{{- end -}}
{{- include "vllmendpoint.unique" (list "extraArgs" "flag" $names $flags) -}}
{{- $names = list -}}
{{- range .Values.extraVolumes -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $taken := "is a volume of the chart. Choose another name." -}}
{{- include "vllmendpoint.unique" (list "extraVolumes" "name" $names (dict "tmp" $taken)) -}}
{{- $names = list -}}
{{- range .Values.extraVolumeMounts -}}
{{- $names = append $names (clean .mountPath) -}}
{{- end -}}
{{- $taken = "is a mount of the chart. Choose another path." -}}
{{- include "vllmendpoint.unique" (list "extraVolumeMounts" "mountPath" $names (dict "/tmp" $taken)) -}}
{{- $names = list -}}
{{- range .Values.topologySpreadConstraints -}}
{{- $names = append $names (printf "%s, %s" .topologyKey .whenUnsatisfiable) -}}
{{- end -}}
{{- include "vllmendpoint.unique" (list "topologySpreadConstraints" "topologyKey and whenUnsatisfiable" $names dict) -}}
{{- $names = list -}}
{{- range (default dict .Values.resources).claims -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- include "vllmendpoint.unique" (list "resources.claims" "name" $names dict) -}}
{{- end }}

{{/* Fails if a key is duplicated or taken. Argument: (list VALUE FIELD KEYS TAKEN), where TAKEN maps a key to the cause and
the remedy. */}}
{{- define "vllmendpoint.unique" -}}
{{- $value := index . 0 -}}
{{- $field := index . 1 -}}
{{- $taken := index . 3 -}}
{{- $seen := dict -}}
{{- range index . 2 -}}
{{- if hasKey $taken . -}}
{{- fail (printf "%s: The %s %s %s" $value $field . (get $taken .)) -}}
{{- end -}}
{{- if hasKey $seen . -}}
{{- fail (printf "%s: The %s %s is given twice. Remove one." $value $field .) -}}
{{- end -}}
{{- $_ := set $seen . true -}}
{{- end -}}
{{- end }}
