{{- define "actserve.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "actserve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The pods that serve: all of them, or the first of each group. */}}
{{- define "actserve.serving" -}}
{{ include "actserve.selector" . }}
{{- if gt (int .Values.nodes) 1 }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- end }}
{{- end }}

{{- define "actserve.labels" -}}
{{ include "actserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "actserve.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "actserve.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{/* A digest wins over a tag, which may be put on another image. */}}
{{- define "actserve.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.image.variant) -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- end -}}
{{- end }}

{{/* Not empty where callers reach the server by TLS. */}}
{{- define "actserve.tls" -}}
{{- with or .Values.tls.secretName .Values.settings.tls_cert }}{{ . }}{{ end -}}
{{- end }}

{{/* Loading 1 GiB of weights over a slow network takes half a minute, what else a start takes a quarter
of an hour at most. */}}
{{- define "actserve.startupSeconds" -}}
{{- .Values.probes.startupSeconds | default (add 900 (mul 30 .Values.modelGiB)) -}}
{{- end }}

{{/* A ring takes 64 MiB, and each pair has two more engines; the rest is for vLLM, whose processes, one
for each GPU, talk through it. */}}
{{- define "actserve.sharedMemory" -}}
{{- $settings := .Values.settings -}}
{{- $pairs := add (len ($settings.nla | default list)) (len ($settings.nla_loadable | default list)) (empty $settings.nla_folder | ternary 0 1) -}}
{{- .Values.sharedMemory.size | default (printf "%dGi" (add 1 .Values.gpus $pairs)) -}}
{{- end }}

{{/* What every probe has in common. It ends within the question, so that a probe may add a service. */}}
{{- define "actserve.probe" -}}
timeoutSeconds: {{ .Values.probes.timeoutSeconds }}
periodSeconds: {{ .Values.probes.periodSeconds }}
grpc:
  port: {{ .Values.probes.port }}
{{- end }}

{{/* What calls come by. Meshes and gateways are told the protocol; with TLS they see no more than that. */}}
{{- define "actserve.servicePorts" -}}
- name: grpc
  port: {{ .Values.service.grpcPort }}
  targetPort: grpc
  {{- if not (include "actserve.tls" .) }}
  appProtocol: kubernetes.io/h2c
  {{- end }}
{{- with .Values.service.httpPort }}
- name: http
  port: {{ . }}
  targetPort: http
  appProtocol: {{ empty (include "actserve.tls" $) | ternary "http" "https" }}
{{- end }}
{{- end }}
