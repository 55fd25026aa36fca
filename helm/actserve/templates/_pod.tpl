{{/* The pod of a server, or of a machine that computes for one: `computes`. That has the same model and
settings, and neither ports nor secrets of callers. */}}
{{- define "actserve.pod" -}}
{{- $computes := .computes }}
{{- with .root -}}
metadata:
  labels:
    {{- include "actserve.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "actserve.serviceAccount" . }}
  # The server never talks to the Kubernetes API.
  automountServiceAccountToken: false
  # Kubernetes would describe every Service in variables, and for one named actserve
  # ACTSERVE_PORT among them, which is a setting of ours.
  enableServiceLinks: false
  securityContext: {{- toYaml .Values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ add .Values.drainGraceSeconds 30 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  containers:
    - name: server
      image: {{ include "actserve.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- with .Values.args }}
      args: {{- toYaml . | nindent 8 }}
      {{- end }}
      env:
        {{- if gt (int .Values.nodes) 1 }}
        # The operator of LeaderWorkerSets says who serves, and which of its group this is.
        - name: ACTSERVE_NNODES
          value: {{ .Values.nodes | quote }}
        - name: ACTSERVE_NODE_RANK
          value: $(LWS_WORKER_INDEX)
        - name: ACTSERVE_MASTER_ADDR
          value: $(LWS_LEADER_ADDRESS)
        - name: ACTSERVE_MASTER_PORT
          value: "29501"
        # What vLLM's processes call each other by.
        - name: VLLM_HOST_IP
          valueFrom: {fieldRef: {fieldPath: status.podIP}}
        {{- end }}
        {{- if $computes }}
        - name: ACTSERVE_HOST
          value: 127.0.0.1
        {{- else }}
        - name: ACTSERVE_HOST
          value: 0.0.0.0
        # In the names of kept activations, so that a proxy can tell which pod has them.
        - name: ACTSERVE_REPLICA
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: ACTSERVE_PORT
          value: {{ .Values.service.grpcPort | quote }}
        - name: ACTSERVE_HEALTH_PORT
          value: {{ .Values.probes.port | quote }}
        {{- with .Values.service.httpPort }}
        - name: ACTSERVE_HTTP_PORT
          value: {{ . | quote }}
        {{- end }}
        - name: ACTSERVE_METRICS_HOST
          value: 0.0.0.0
        - name: ACTSERVE_METRICS_PORT
          value: {{ .Values.service.metricsPort | quote }}
        - name: ACTSERVE_DRAIN_GRACE_S
          value: {{ .Values.drainGraceSeconds | quote }}
        - name: ACTSERVE_DATA_DIR
          value: /var/lib/actserve/data
        {{- with .Values.storage.databaseUrlSecret }}
        {{- if .name }}
        - name: ACTSERVE_DATABASE_URL
          valueFrom: {secretKeyRef: {name: {{ .name | quote }}, key: {{ .key | quote }}}}
        {{- end }}
        {{- end }}
        {{- with .Values.webhooks.secret }}
        {{- if .name }}
        - name: ACTSERVE_WEBHOOKS
          value: {{ printf "/etc/actserve/webhooks/%s" .key | quote }}
        {{- end }}
        {{- end }}
        {{- if .Values.tls.secretName }}
        - name: ACTSERVE_TLS_CERT
          value: /etc/actserve/tls/tls.crt
        - name: ACTSERVE_TLS_KEY
          value: /etc/actserve/tls/tls.key
        {{- if .Values.tls.clientAuthority }}
        - name: ACTSERVE_TLS_CLIENT_CA
          value: /etc/actserve/tls/ca.crt
        {{- end }}
        {{- end }}
        {{- with .Values.access }}
        {{- if and .secretName .tokens }}
        - name: ACTSERVE_TOKEN_FILE
          value: {{ printf "/etc/actserve/access/%s" .tokens | quote }}
        {{- end }}
        {{- if and .secretName .certificates }}
        - name: ACTSERVE_CERTIFICATE_FILE
          value: {{ printf "/etc/actserve/access/%s" .certificates | quote }}
        {{- end }}
        {{- if and .secretName .tenants }}
        - name: ACTSERVE_TENANT_FILE
          value: {{ printf "/etc/actserve/access/%s" .tenants | quote }}
        {{- end }}
        {{- end }}
        {{- if .Values.insecure }}
        - name: ACTSERVE_INSECURE
          value: "true"
        {{- end }}
        {{- end }}
        - name: ACTSERVE_CACHE_DIR
          value: /var/cache/actserve/actserve
        {{- with .Values.model }}
        - name: ACTSERVE_MODEL
          value: {{ . | quote }}
        {{- end }}
        # Strings as they are, everything else as JSON.
        {{- range $name, $value := .Values.settings }}
        - name: ACTSERVE_{{ upper $name }}
          value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
        {{- end }}
        {{- if .Values.huggingFace.tokenSecret.name }}
        - name: HF_TOKEN
          valueFrom: {secretKeyRef: {name: {{ .Values.huggingFace.tokenSecret.name | quote }}, key: {{ .Values.huggingFace.tokenSecret.key | quote }}}}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.envFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if not $computes }}
      ports:
        - name: grpc
          containerPort: {{ .Values.service.grpcPort }}
        {{- with .Values.service.httpPort }}
        - name: http
          containerPort: {{ . }}
        {{- end }}
        - name: metrics
          containerPort: {{ .Values.service.metricsPort }}
        - name: health
          containerPort: {{ .Values.probes.port }}
      # Until it succeeds the other two do not run.
      startupProbe:
        {{- include "actserve.probe" . | nindent 8 }}
        failureThreshold: {{ max 1 (div (include "actserve.startupSeconds" .) .Values.probes.periodSeconds) }}
      # The server starts a dead engine again by itself, which a restart of the pod would only
      # begin anew, and ends where it cannot; so this asks whether the server is there.
      livenessProbe:
        {{- include "actserve.probe" . | nindent 8 }}
          service: liveness
        failureThreshold: 3
      readinessProbe:
        {{- include "actserve.probe" . | nindent 8 }}
        failureThreshold: 1
      {{- end }}
      resources:
        requests: {{- toYaml .Values.resources.requests | nindent 10 }}
        limits:
          {{- toYaml .Values.resources.limits | nindent 10 }}
          {{- if .Values.gpus }}
          nvidia.com/gpu: {{ .Values.gpus }}
          {{- end }}
      securityContext: {{- toYaml .Values.securityContext | nindent 8 }}
      # The root file system is read-only; the first four are all that the server writes to.
      volumeMounts:
        - name: cache
          mountPath: /var/cache/actserve
        {{- if not $computes }}
        - name: data
          mountPath: /var/lib/actserve
        {{- end }}
        - name: tmp
          mountPath: /tmp
        - name: shared-memory
          mountPath: /dev/shm
        {{- if not $computes }}
        {{- if .Values.tls.secretName }}
        - name: tls
          mountPath: /etc/actserve/tls
          readOnly: true
        {{- end }}
        {{- if .Values.access.secretName }}
        - name: access
          mountPath: /etc/actserve/access
          readOnly: true
        {{- end }}
        {{- if .Values.webhooks.secret.name }}
        - name: webhooks
          mountPath: /etc/actserve/webhooks
          readOnly: true
        {{- end }}
        {{- end }}
        {{- range .Values.folders }}
        - name: {{ printf "folder-%s" .name }}
          mountPath: {{ printf "/srv/actserve/%s" .name }}
          readOnly: true
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: cache
      {{- if .Values.cache.persistence.enabled }}
      persistentVolumeClaim:
        claimName: {{ .Values.cache.persistence.existingClaim | default (printf "%s-cache" (include "actserve.fullname" .)) }}
      {{- else }}
      emptyDir:
        sizeLimit: {{ .Values.cache.ephemeralSize }}
      {{- end }}
    {{- if not $computes }}
    - name: data
      {{- if .Values.storage.persistence.enabled }}
      persistentVolumeClaim:
        claimName: {{ .Values.storage.persistence.existingClaim | default (printf "%s-data" (include "actserve.fullname" .)) }}
      {{- else }}
      emptyDir:
        sizeLimit: {{ .Values.storage.ephemeralSize }}
      {{- end }}
    {{- end }}
    - name: tmp
      emptyDir: {}
    - name: shared-memory
      emptyDir:
        medium: Memory
        sizeLimit: {{ include "actserve.sharedMemory" . }}
    {{- if not $computes }}
    {{- with .Values.tls.secretName }}
    - name: tls
      secret:
        secretName: {{ . | quote }}
    {{- end }}
    {{- with .Values.access.secretName }}
    - name: access
      secret:
        secretName: {{ . | quote }}
    {{- end }}
    {{- with .Values.webhooks.secret }}
    {{- if .name }}
    - name: webhooks
      secret:
        secretName: {{ .name | quote }}
    {{- end }}
    {{- end }}
    {{- end }}
    {{- range .Values.folders }}
    - name: {{ printf "folder-%s" .name }}
      {{- if .claim }}
      persistentVolumeClaim:
        claimName: {{ .claim | quote }}
        readOnly: true
      {{- else }}
      image:
        reference: {{ .image | quote }}
      {{- end }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
