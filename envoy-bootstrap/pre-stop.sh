#!/bin/bash
# A sidecar's preStop hook: asks callers to go elsewhere, then waits until nothing is in flight (docs/pod-life.md).
# The pod's grace period bounds it. It needs what stock Envoy's image has.

ask() {
  exec 3<>/dev/tcp/127.0.0.1/15000
  printf '%s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n' "$1" >&3
  cat <&3
}

# An HTTP connection without a request is not in flight: its caller finds another one. A TCP connection is.
in_flight() {
  local name value connections=0 http=0 requests=0
  while IFS=': ' read -r name value; do
    case $name in
    listener.*15006.downstream_cx_active) ((connections += value)) ;;
    http.inbound*.downstream_cx_active) ((http += value)) ;;
    http.inbound*.downstream_rq_active) ((requests += value)) ;;
    esac
  done < <(ask 'GET /stats?filter=downstream_(cx|rq)_active$')
  ((requests > 0 || connections > http))
}

ask 'POST /healthcheck/fail' >/dev/null &&
  ask 'POST /drain_listeners?inboundonly&graceful&skip_exit' >/dev/null || exit
while in_flight; do sleep 0.2; done
