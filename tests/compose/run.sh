#!/usr/bin/env bash
# Builds docker-compose.yml, runs it, and shows that it keeps its promises:
#
#   1. three workers come up healthy, and `requester submit` is answered
#   2. 100 requests, one worker killed meanwhile: each is answered or interrupted, none hangs
#   3. a worker process that crashes is restarted by the policy
#   4. Prometheus scrapes every worker
#   5. nats-server restarts: workers go on
#   6. `stop worker` drains: what runs is finished, exit code 0
#
#   tests/compose/run.sh [OVERRIDE.yml]
#
# Needs `docker compose` and an engine (DOCKER_HOST). It is a project of its own on free host
# ports: a stack that runs already is left alone. CALL_HOME_NETWORKS must hold the network of
# the containers, if that is not a private one.
set -euo pipefail

override=()
[ $# -eq 0 ] || override=(-f "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")")
cd "$(dirname "$0")/../.."

unset ENGINE ENDPOINT WORKERS SLOTS LOG_LEVEL SHUTDOWN_BUDGET STOP_GRACE_PERIOD
export COMPOSE_PROJECT_NAME=dialback-test-$$ NATS_PORT=0 NATS_MONITOR_PORT=0 PROMETHEUS_PORT=0
compose() { docker compose --env-file /dev/null -f docker-compose.yml ${override[@]+"${override[@]}"} "$@"; }
say() { printf '\n[%3ds] %s\n' "$SECONDS" "$*"; }
die() { say "FAILED: $*"; exit 1; }

figures=$(mktemp)
finish() {
  local code=$?
  trap - EXIT
  if [ $code -ne 0 ]; then
    compose ps -a || true
    compose logs --no-color --tail 40 worker || true
  fi
  compose --profile '*' down -v --remove-orphans --timeout 5 >/dev/null 2>&1 || true
  rm -f "$figures"
  [ $code -ne 0 ] || say "all as promised"
  exit $code
}
trap finish EXIT

up() { compose --progress quiet up --no-build --wait --scale worker=3; }
state() { docker inspect --format "$1" "$2"; }

# requests OPTIONS...: run the requests; at `mark` do what at_mark says
requests() {
  compose run --rm --no-deps -T --entrypoint python requester - "$@" <tests/compose/hundred_requests.py \
    | while IFS= read -r line; do
        printf '  %s\n' "$line"
        case $line in
          mark) at_mark </dev/null ;;
          figures*) printf '%s\n' "${line#figures }" >"$figures" ;;
        esac
      done
}
figure() { sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" "$figures"; }

say "1. build, and start three workers"
compose build --quiet worker
up
[ "$(compose ps -q worker | wc -l)" -eq 3 ] || die "not three workers"
tokens=$(compose run --rm --no-deps -T requester submit demo.backend.generate '{"prompt": "hi", "tokens": 3}') \
  || die "submit was not answered; is the containers' network in CALL_HOME_NETWORKS?"
[ "$(printf '%s\n' "$tokens" | grep -c token)" -eq 3 ] || die "submit printed: $tokens"

say "2. 100 requests, one worker killed meanwhile"
victim=$(compose ps -q worker | head -1)
at_mark() { docker kill "$victim" >/dev/null; printf '  killed one worker\n'; }
requests --requests 100 --mark-ended 20 || die "a request hung or was lost"
printf '  complete %s, interrupted %s, hung %s\n' "$(figure complete)" "$(figure interrupted)" "$(figure hung)"
[ $(($(figure interrupted) + $(figure replaced_workers))) -gt 0 ] || die "the kill hit no request"

say "3. a worker crashes: the restart policy starts it again"
up
victim=$(compose ps -q worker | head -1)
docker exec "$victim" python -c '
import os, pathlib, signal
for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    pid = int(entry.parent.name)
    if pid not in (1, os.getpid()) and b"worker\0run" in entry.read_bytes():
        os.kill(pid, signal.SIGKILL)
' || true
for _ in $(seq 120); do
  [ "$(state '{{.RestartCount}} {{.State.Health.Status}}' "$victim")" != "1 healthy" ] || break
  sleep 0.5
done
[ "$(state '{{.RestartCount}} {{.State.Health.Status}}' "$victim")" = "1 healthy" ] || die "not restarted"
printf '  restarted once, healthy again\n'

say "4. Prometheus scrapes every worker"
compose exec -T worker python -c '
import json, time, urllib.parse, urllib.request
def ask(query):
    url = "http://prometheus:9090/api/v1/query?query=" + urllib.parse.quote(query)
    with urllib.request.urlopen(url, timeout=5) as reply:
        return {r["metric"].get("instance", ""): float(r["value"][1]) for r in json.load(reply)["data"]["result"]}
for _ in range(120):
    up = ask("up{job=\"dialback-worker\"} == 1")
    if len(up) == 3:
        break
    time.sleep(0.5)
print("  up:", *sorted(up))
completed = ask("sum(max_over_time(dialback_outcomes_total{outcome=\"completed\"}[15m]))").get("", 0)
print(f"  requests completed, over all workers: {completed:g}")
raise SystemExit(len(up) != 3 or not completed)
' || die "not all workers are scraped"

say "5. nats-server restarts: the workers go on"
compose --progress quiet restart nats
up
requests --requests 30 --tokens 10 || die "not all answered after the restart"
[ "$(figure complete)" -eq 30 ] || die "not all complete after the restart"

say "6. stop drains: 30 running requests are finished"
at_mark() { compose --progress quiet stop worker; printf '  stopped\n'; }
requests --requests 30 --tokens 60 --mark-begun 30 || die "a request was lost in the drain"
[ "$(figure complete)" -eq 30 ] || die "not all complete after the drain"
for worker in $(compose ps -aq worker); do
  code=$(state '{{.State.ExitCode}}' "$worker")
  printf '  exit code %s\n' "$code"
  [ "$code" -eq 0 ] || die "a worker did not drain cleanly"
done
