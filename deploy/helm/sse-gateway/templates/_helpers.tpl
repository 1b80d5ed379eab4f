{{- define "sse-gateway.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sse-gateway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sse-gateway.labels" -}}
{{ include "sse-gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "sse-gateway.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{/* Maximum seconds after SIGTERM: the delay, the window or the 5 in which another replica takes over, 4 for requests that
are still being answered, and 2 for the last spans. */}}
{{- define "sse-gateway.drain" -}}
{{- add .Values.drain.delay (max .Values.drain.window 5) 4 (ternary 2 0 (hasKey .Values.settings "SSE_GATEWAY_OTLP_ENDPOINT")) -}}
{{- end -}}
