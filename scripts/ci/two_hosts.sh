#!/usr/bin/env bash
# Makes two hosts on one machine, for tests that need a network: two network namespaces with a virtual cable.
#   bash scripts/ci/two_hosts.sh up                     makes them; as root, with Debian's iproute2
#   bash scripts/ci/two_hosts.sh on 0 COMMAND...        runs a command on host 0 (10.77.0.1) or 1 (10.77.0.2)
#   bash scripts/ci/two_hosts.sh kill 1                 kills all processes of a host, like a power cut
#   bash scripts/ci/two_hosts.sh down                   removes them
# TWO_HOSTS is the name of the pair, so that several pairs can exist.
set -euo pipefail
name=${TWO_HOSTS:-nfnet}
usage() {
    sed -n '/^#!/d; /^[^#]/q; s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
host() { # of an argument
    [[ ${1:-} = [01] ]] || { echo "error: host '${1:-}': expected 0 or 1" >&2 && usage; }
}
case "${1:-}" in
-h | --help)
    (usage) 2>&1 || true
    ;;
up)
    [ $# -eq 1 ] || usage
    for host in 0 1; do
        ip netns add "$name$host"
    done
    ip link add "$name-0" netns "${name}0" type veth peer name "$name-1" netns "${name}1"
    for host in 0 1; do
        ip -n "$name$host" link set lo up
        ip -n "$name$host" address add "10.77.0.$((host + 1))/24" dev "$name-$host"
        ip -n "$name$host" link set "$name-$host" up
    done
    ;;
on)
    host "${2:-}"
    [ $# -gt 2 ] || usage
    host=$2
    shift 2
    GLOO_SOCKET_IFNAME="$name-$host" exec ip netns exec "$name$host" "$@"
    ;;
kill)
    host "${2:-}"
    [ $# -eq 2 ] || usage
    ip netns pids "$name$2" | xargs --no-run-if-empty kill -KILL
    ;;
down)
    [ $# -eq 1 ] || usage
    for host in 0 1; do
        ip netns pids "$name$host" 2>/dev/null | xargs --no-run-if-empty kill -KILL || true
        ip netns delete "$name$host" 2>/dev/null || true
    done
    ;;
*)
    usage
    ;;
esac
