{{- define "ipmasq-agent.fullname" -}}
{{- $name := printf "%s-ipmasq-agent" .Release.Name -}}
{{- if contains "ipmasq-agent" .Release.Name -}}
{{- $name = .Release.Name -}}
{{- end -}}
{{- /* What a DaemonSet is called becomes part of its pods' names and of a label. */ -}}
{{- .Values.fullnameOverride | default $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "ipmasq-agent.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "ipmasq-agent.fullname" .) -}}
{{- end -}}

{{- define "ipmasq-agent.selectorLabels" -}}
app.kubernetes.io/name: ipmasq-agent
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "ipmasq-agent.podLabels" -}}
{{ include "ipmasq-agent.selectorLabels" . }}
app.kubernetes.io/component: node-agent
{{- end -}}

{{- define "ipmasq-agent.labels" -}}
{{ include "ipmasq-agent.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: ipmasq-agent-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "ipmasq-agent.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- with .Values.image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- /* Whether the agent speaks to the API, and so needs its token. */ -}}
{{- define "ipmasq-agent.token" -}}
{{ or (eq .Values.mode "api") .Values.rbac.nodes .Values.rbac.pods }}
{{- end -}}

{{- /* What reads and writes with what is said in planes/registry.py, which the tests ask. */ -}}
{{- define "ipmasq-agent.capabilities" -}}
{{- $backend := .Values.backend -}}
- NET_ADMIN
{{- if or .Values.takeOver (not (has $backend (list "iptables-nft" "nftables" "bpf"))) }}
- NET_RAW
{{- end }}
{{- if or .Values.takeOver (eq $backend "bpf") }}
- BPF
{{- end }}
{{- if eq $backend "bpf" }}
- PERFMON
{{- end }}
{{- end -}}

{{- define "ipmasq-agent.env" -}}
{{- if eq .Values.mode "api" }}
{{- $configMaps := list }}
{{- range concat (list .Values.configMapName) .Values.moreConfigMaps }}
{{- $configMaps = append $configMaps (printf "%s/%s" $.Release.Namespace .) }}
{{- end }}
- name: IPMASQ_CONFIGMAP
  value: {{ join " " $configMaps | quote }}
{{- if .Values.canary.enabled }}
- name: IPMASQ_CANARY_CONFIGMAP
  value: {{ printf "%s/%s-canary" .Release.Namespace .Values.configMapName | quote }}
{{- end }}
{{- if .Values.events.enabled }}
- name: IPMASQ_EVENTS
  value: "true"
{{- end }}
{{- else }}
- name: IPMASQ_CONFIG
  value: /etc/config/ip-masq-agent
{{- end }}
- name: IPMASQ_BACKEND
  value: {{ .Values.backend }}
- name: IPMASQ_BPF_PINS
  value: /run/bpf/ipmasq-agent
- name: IPMASQ_NODE_NAME
  valueFrom:
    fieldRef:
      # As the API server completes it: without, a server-side apply conflicts.
      apiVersion: v1
      fieldPath: spec.nodeName
{{- $address := .Values.http.address }}
{{- $port := int .Values.http.port }}
{{- if or (ne $address "127.0.0.1") (ne $port 9797) }}
- name: IPMASQ_HTTP_ADDRESS
  value: {{ printf "%s:%d" (ternary "[::]" $address (eq $address "::")) $port | quote }}
{{- end }}
{{- if .Values.http.tokenSecret.name }}
- name: IPMASQ_METRICS_TOKEN_FILE
  value: /etc/ipmasq-agent/token
{{- end }}
{{- if .Values.record.enabled }}
- name: IPMASQ_RECORD
  value: /var/log/ipmasq-agent/record
{{- end }}
{{- range $flag, $value := .Values.flags }}
{{- /* A large number is 1e+06 as text. */}}
- name: IPMASQ_{{ $flag | upper | replace "-" "_" }}
  value: {{ ternary ($value | int64) $value (kindIs "float64" $value) | toString | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What of the host a pod of ours sees: name, place in it, path of the host, type. */ -}}
{{- define "ipmasq-agent.hostPaths" -}}
{{- $backend := .Values.backend -}}
{{- if or .Values.takeOver (not (has $backend (list "iptables-nft" "nftables" "bpf"))) }}
- [xtables-lock, /run/xtables.lock, /run/xtables.lock, FileOrCreate]
{{- end }}
- [state, /run/ipmasq-agent, /run/ipmasq-agent, DirectoryOrCreate]
{{- if or .Values.takeOver (eq $backend "bpf") }}
- [bpf, /run/bpf, /sys/fs/bpf, Directory]
{{- end }}
{{- if .Values.record.enabled }}
- [record, /var/log/ipmasq-agent, /var/log/ipmasq-agent, DirectoryOrCreate]
{{- end }}
{{- end -}}

{{- define "ipmasq-agent.volumeMounts" -}}
{{- range include "ipmasq-agent.hostPaths" . | fromYamlArray }}
- name: {{ index . 0 }}
  mountPath: {{ index . 1 }}
{{- end }}
{{- if eq .Values.mode "file" }}
# The directory, not a subPath of it: the kubelet never updates a subPath.
- name: config
  mountPath: /etc/config
  readOnly: true
{{- end }}
{{- if .Values.http.tokenSecret.name }}
- name: token
  mountPath: /etc/ipmasq-agent
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ipmasq-agent.volumes" -}}
{{- range include "ipmasq-agent.hostPaths" . | fromYamlArray }}
- name: {{ index . 0 }}
  hostPath:
    path: {{ index . 2 }}
    type: {{ index . 3 }}
{{- end }}
{{- if eq .Values.mode "file" }}
- name: config
  configMap:
    name: {{ .Values.configMapName }}
    # Without the ConfigMap the file is absent, which means the defaults.
    optional: true
    items:
      - key: config
        path: ip-masq-agent
{{- end }}
{{- with .Values.http.tokenSecret }}
{{- if .name }}
- name: token
  secret:
    secretName: {{ .name }}
    defaultMode: 0400
    items:
      - key: {{ .key }}
        path: token
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What the agent's container and that of `helm test` have in common. */ -}}
{{- define "ipmasq-agent.container" -}}
image: {{ include "ipmasq-agent.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  {{- include "ipmasq-agent.env" . | trim | nindent 2 }}
resources:
  {{- $resources := deepCopy .Values.resources }}
  {{- if eq (dig "limits" "memory" "" $resources) "auto" }}
  {{- $_ := set $resources.limits "memory" (ternary "512Mi" "384Mi" (eq .Values.backend "bpf")) }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop:
      - ALL
    add:
      {{- include "ipmasq-agent.capabilities" . | trim | nindent 6 }}
volumeMounts:
  {{- include "ipmasq-agent.volumeMounts" . | trim | nindent 2 }}
{{- end -}}

{{- /* And their pods. */ -}}
{{- define "ipmasq-agent.pod" -}}
hostNetwork: true
dnsPolicy: Default
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
serviceAccountName: {{ include "ipmasq-agent.serviceAccountName" . }}
automountServiceAccountToken: {{ include "ipmasq-agent.token" . }}
terminationGracePeriodSeconds: 10
securityContext:
  seccompProfile:
    {{- toYaml .Values.seccompProfile | nindent 4 }}
volumes:
  {{- include "ipmasq-agent.volumes" . | trim | nindent 2 }}
{{- end -}}
