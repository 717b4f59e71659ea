{{/* Names are fixed: sidecars, CustomResourceDefinitions and the control plane know each other by them. */}}

{{- define "weft.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Labels of an object: (dict "root" $ "component" "control-plane"). */}}
{{- define "weft.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: weft
{{ include "weft.selector" . }}
{{- end }}

{{- define "weft.selector" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "weft.sidecar" -}}
{{- if ne .Values.injection.sidecar "Auto" -}}
{{ .Values.injection.sidecar }}
{{- else if semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version -}}
Native
{{- else -}}
Classic
{{- end -}}
{{- end }}

{{/* The spec of MeshConfig. */}}
{{- define "weft.meshConfig" -}}
{{- $spec := deepCopy .Values.meshConfig.spec -}}
{{- if and .Values.jaeger.enabled (not (hasKey $spec "tracing")) -}}
{{- $otlp := dict "grpc" (printf "weft-jaeger.%s.svc:4317" .Release.Namespace) -}}
{{- $_ := set $spec "tracing" (dict "provider" (dict "otlp" $otlp) "sampling" .Values.jaeger.sampling) -}}
{{- end -}}
{{- toYaml $spec -}}
{{- end }}

{{/* What the restricted Pod Security Standard asks for: of a pod, and of a container. */}}
{{- define "weft.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "weft.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods of a component may run: (dict "root" $ "component" … "values" .Values.…). */}}
{{- define "weft.scheduling" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "weft.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "weft.selector" . | nindent 8 }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Labels and annotations of pods. */}}
{{- define "weft.podMetadata" -}}
labels:
  {{- include "weft.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: weft
  {{- if .root.Values.metrics.scrapeAnnotations }}
  prometheus.io/scrape: "true"
  prometheus.io/port: "15014"
  prometheus.io/path: /metrics
  {{- end }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
