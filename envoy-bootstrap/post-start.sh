#!/bin/bash
# The postStart hook of a classic sidecar: the kubelet starts the application's containers when it ends. It needs what
# stock Envoy's image has.

ready() {
  local status
  exec 3<>/dev/tcp/127.0.0.1/15000 || return
  printf 'GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n' >&3
  read -r _ status _ <&3
  [[ $status == 200 ]]
} 2>/dev/null

until ready; do
  # Then the kubelet starts the sidecar anew, and says so.
  ((SECONDS < 120)) || exit 1
  sleep 0.2
done
