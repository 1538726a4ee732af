#!/usr/bin/env bash
# Runs packaging/rrlb.service under a live systemd and checks what it promises.
#
#     cargo build && sudo packaging/test-systemd.sh [target/debug/rrlb]
#
# systemd is process 1 of namespaces made for this test (processes, mounts, network, control groups), on a throw-away
# overlay of this machine's files: nothing of it is seen outside, no network is needed, and everything is gone at the end.
# Needed: Linux with cgroup 2 and overlayfs, root, systemd 250 or newer (not running, only installed), curl, openssl and
# Python 3; with dnsmasq DNS discovery is tested too. Takes about a minute, half of it WatchdogSec=. Prints each command with
# what it said, then `ok` or `FAILED`; exits with 1 where something failed, and with 77 where the machine cannot run it.
set -u
here=$(cd "$(dirname "$0")" && pwd)

skip() {
  echo "SKIPPED: $*" >&2
  exit 77
}

# -- outside: a control group and namespaces ------------------------------------------------------------------------------

outside() {
  local binary=${1:-$here/../target/debug/rrlb} tool cgroup2 group
  [ "$(uname)" = Linux ] || skip "this is not Linux"
  [ "$(id -u)" = 0 ] || skip "only root can make the namespaces"
  [ -x "$binary" ] || skip "there is no $binary; build it (cargo build) or name another"
  [ -x /lib/systemd/systemd ] || skip "systemd is not installed"
  for tool in unshare pivot_root systemctl systemd-analyze useradd runuser curl openssl ss pgrep python3; do
    command -v $tool >/dev/null || skip "$tool is missing"
  done
  cgroup2=$(findmnt -t cgroup2 -n -o TARGET | head -n 1)
  [ -n "$cgroup2" ] || skip "cgroup 2 is not mounted"
  work=$(mktemp -d)
  group=$cgroup2/rrlb-test-$$
  mkdir "$group" 2>/dev/null || skip "no control group can be made in $cgroup2"
  # Written here, used inside: the overlay does not reach other file systems.
  install -m 755 "$binary" "$work/rrlb"
  install -m 755 "$here/test-systemd.sh" "$work/test"
  install -m 644 "$here/rrlb.service" "$work/"
  : >"$work/report"
  trap 'finish "$group"' EXIT
  trap 'exit 130' INT TERM
  (
    echo "$BASHPID" >"$group/cgroup.procs" || exit 1
    exec unshare --mount --propagation private --cgroup --uts --ipc --net --pid --fork --kill-child \
      "$work/test" --boot "$work"
  ) >"$work/boot" 2>&1 </dev/null &
  machine=$!
  tail -n +1 -f --pid="$machine" "$work/report" 2>/dev/null &
  while [ ! -e "$work/result" ] && kill -0 "$machine" 2>/dev/null; do sleep 0.2; done
  kill -9 "$machine" 2>/dev/null
  wait 2>/dev/null
  if [ ! -e "$work/result" ]; then
    cat "$work/boot" >&2
    skip "systemd did not come up in namespaces of its own (what it said is above)"
  fi
  exit "$(cat "$work/result")"
}

finish() {
  [ -z "${machine:-}" ] || kill -9 "$machine" 2>/dev/null
  wait 2>/dev/null
  for _ in {1..50}; do
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -d "$1" ] || break
    sleep 0.1
  done
  rm -rf "$work"
}

# -- inside, before systemd: files ----------------------------------------------------------------------------------------

boot() {
  set -e
  local work=$1 base=$1/base root=$1/base/root device unit
  mount -t tmpfs -o mode=755 tmpfs "$(mkdir -p "$base" && echo "$base")"
  mkdir "$base/upper" "$base/overlay" "$root"
  mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/overlay" overlay "$root"
  mount -t proc proc "$root/proc"
  mount --bind "$root/proc/sys" "$root/proc/sys"
  mount -o remount,bind,ro "$root/proc/sys"
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
  done
  mkdir "$root/dev/shm" "$root/dev/pts"
  mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  # This machine's services stay out: only these units, and no generators.
  for device in generators environment-generators; do
    mount -t tmpfs tmpfs "$root/lib/systemd/system-$device" 2>/dev/null || true
  done
  mkdir -p "$root/units" "$root/rrlb-test"
  for unit in basic.target multi-user.target shutdown.target sockets.target network.target network-online.target \
    nss-lookup.target systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
    cp "/lib/systemd/system/$unit" "$root/units/"
  done
  printf '[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\nAfter=systemd-journald.service\n' \
    >"$root/units/sysinit.target"
  cat >"$root/units/check.service" <<'UNIT'
[Service]
Type=oneshot
StandardOutput=append:/rrlb-test/report
StandardError=inherit
TimeoutStartSec=infinity
ExecStart=/rrlb-test/test --check
UNIT
  mount --bind "$work" "$root/rrlb-test"

  # As the unit's first lines tell an operator.
  cp "$work/rrlb.service" "$root/units/"
  chroot "$root" useradd --system --shell /usr/sbin/nologin rrlb
  install -m 755 "$work/rrlb" "$root/usr/bin/rrlb"
  install -d -m 750 -g "$(chroot "$root" id -g rrlb)" "$root/etc/rrlb"
  rm -rf "$root/var/log/journal" "$root/etc/resolv.conf"
  echo "nameserver 127.0.0.1" >"$root/etc/resolv.conf"
  cd "$root"
  pivot_root . .
  umount -l .
  exec env -i container=rrlb-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    SYSTEMD_UNIT_PATH=/units /lib/systemd/systemd --system --unit=check.service --log-target=journal-or-kmsg --show-status=0
}

# -- inside, as a service of that systemd: the checks ---------------------------------------------------------------------

failures=0

title() { printf '\n== %s\n' "$*"; }

# Runs a command and prints it with what it said.
show() {
  echo "\$ $*"
  "$@" 2>&1 | sed 's/^/    /'
  return "${PIPESTATUS[0]}"
}

# check WHAT COMMAND...: whether the command succeeds.
check() {
  local what=$1
  shift
  if "$@"; then echo "ok      $what"; else
    echo "FAILED  $what ($*)"
    failures=$((failures + 1))
  fi
}

is() { [ "$1" = "$2" ] || { echo "        is '$1', should be '$2'"; return 1; }; }
not() { ! "$@"; }
has() { case $1 in *"$2"*) ;; *) echo "        '$2' is not in '$1'"; return 1 ;; esac; }
property() { systemctl show -P "$1" rrlb; }
state() { echo "$(property ActiveState)/$(property SubState)"; }

# within SECONDS COMMAND...: waits until it succeeds.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { "$@"; return 1; }
    sleep 0.05
  done
}
is_now() { is "$($1)" "$2"; }
answers() { is "$(curl -s --max-time 5 "$1")" "$2"; }
log_has() { journalctl -q -o cat -u rrlb | grep -qF "$1"; }
status_is() { is "$(property StatusText)" "$1"; }
main() { property MainPID; }
main_is_not() { [ "$(main)" != "$1" ] && [ "$(main)" != 0 ]; }

# One request after the other, on connections of their own and on one that is kept.
start_load() {
  rm -f /tmp/load.*
  (while [ ! -e /tmp/load.end ]; do
    curl -s -o /dev/null --max-time 20 -w '%{http_code} %{errormsg}\n' http://127.0.0.1/ || true
  done >/tmp/load.close) &
  (while [ ! -e /tmp/load.end ]; do
    curl -s -k -o /dev/null --max-time 20 -w '%{http_code} %{errormsg}\n' 'https://127.0.0.1/[1-50]' || true
  done >/tmp/load.keep) &
}
nothing_failed() {
  touch /tmp/load.end
  within 30 not pgrep -x curl
  local all failed
  all=$(cat /tmp/load.close /tmp/load.keep | wc -l)
  failed=$(cat /tmp/load.close /tmp/load.keep | grep -cv '^200 ')
  echo "        $all requests, $failed failed"
  grep -hv '^200 ' /tmp/load.close /tmp/load.keep | sort | uniq -c | head -n 5
  [ "$all" -gt 0 ] && [ "$failed" = 0 ]
}

# One request that is under way for this many seconds, and has begun when this returns.
ask_slowly() {
  curl -s --max-time 30 "http://127.0.0.1/slow?$1" >/tmp/slow &
  slow=$!
  within 5 asked_slowly
}
asked_slowly() { ss -Htn state established dport = :9002 | grep -q .; }

certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$1" \
    -addext "subjectAltName=DNS:localhost" -keyout /etc/rrlb/new.key -out /etc/rrlb/new.pem 2>/dev/null
  chgrp rrlb /etc/rrlb/new.key /etc/rrlb/new.pem
  chmod 640 /etc/rrlb/new.key /etc/rrlb/new.pem
  mv /etc/rrlb/new.key /etc/rrlb/site.key
  mv /etc/rrlb/new.pem /etc/rrlb/site.pem
}
served_name() { openssl s_client -connect 127.0.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -subject; }

configuration() {
  cat >/etc/rrlb/rrlb.yaml <<'YAML'
version: 1
threads: 2
upgrade_sock: /run/rrlb/upgrade.sock
admin: { socket: /run/rrlb/admin.sock }
state_file: /var/lib/rrlb/state.json
access_log: { path: /var/log/rrlb/access.log }
metrics: { address: 127.0.0.1:9145 }
grace_period_seconds: 5
certificates:
  site: { cert: site.pem, key: site.key }
listeners:
  - address: 0.0.0.0:80
  - address: 0.0.0.0:443
    tls: { certificates: [site] }
upstreams:
  app:
    backends: [127.0.0.1:9001]
    health_check: { type: tcp, interval: 200ms }
  slow: { backends: [127.0.0.1:9002] }
  named: { backends: ["app.test:9001"] }
  found: { discover: { dns: "app.test:9001", refresh: 1s } }
  listed: { discover: { file: backends.yaml, refresh: 100ms } }
routes:
  - { match: { path: /named }, upstream: named }
  - { match: { path: /found }, upstream: found }
  - { match: { path: /listed }, upstream: listed }
  - { match: { path: /slow }, upstream: slow }
  - { upstream: app }
YAML
  chgrp rrlb /etc/rrlb/rrlb.yaml
  chmod 640 /etc/rrlb/rrlb.yaml
}

# Origins: rrlb itself, as a service without the sandbox, and one that answers after a few seconds.
origins() {
  mkdir -p /tmp/origin
  cat >/tmp/origin/rrlb.yaml <<'YAML'
version: 1
listeners: [{ address: 0.0.0.0:9001 }]
routes: [{ respond: { body: "hello\n" } }]
YAML
  systemd-run -q --unit=origin /usr/bin/rrlb -c /tmp/origin/rrlb.yaml
  systemd-run -q --unit=slow-origin /usr/bin/env python3 -c '
import http.server, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "6"); self.end_headers()
        time.sleep(float(self.path.partition("?")[2] or 0)); self.wfile.write(b"slowly")
http.server.ThreadingHTTPServer(("127.0.0.1", 9002), Slow).serve_forever()'
  has_dns=
  if command -v dnsmasq >/dev/null; then
    has_dns=yes
    systemd-run -q --unit=dns dnsmasq -k --conf-file=/dev/null --no-resolv --no-hosts --listen-address=127.0.0.1 --bind-interfaces \
      --address=/app.test/127.0.0.1
  fi
  within 10 answers http://127.0.0.1:9001/ hello
}

start_and_rights() {
  title "systemctl start"
  check "systemctl start succeeds" show systemctl start rrlb
  show systemctl status --no-pager -l rrlb
  check "the unit is active" is "$(state)" active/running
  check "the status says that it serves" status_is serving
  check "it runs as rrlb" is "$(ps -o user:20= -p "$(main)" | tr -d ' ')" rrlb
  show grep -E '^(Uid|Gid|Groups|Cap(Eff|Amb|Bnd)|NoNewPrivs|Seccomp):' "/proc/$(main)/status"
  check "it has no capability but CAP_NET_BIND_SERVICE" is "$(awk '/^CapEff/ {print $2}' "/proc/$(main)/status")" 0000000000000400
  check "port 80 answers" within 5 answers http://127.0.0.1/ hello
  check "port 443 answers" is "$(curl -sk https://127.0.0.1/)" hello
  check "the log is in the journal" log_has "serving on 0.0.0.0:443"
  show journalctl -q --no-pager -u rrlb -n 20

  title "files, sockets, rights"
  show stat -c '%A %U:%G %n' /run/rrlb /run/rrlb/* /var/lib/rrlb /var/log/rrlb /var/log/rrlb/* /etc/rrlb /etc/rrlb/*
  check "the run-time directory" is "$(stat -c '%a %U:%G' /run/rrlb)" "750 rrlb:rrlb"
  check "the admin socket" is "$(stat -c '%a %U:%G' /run/rrlb/admin.sock)" "660 rrlb:rrlb"
  check "the upgrade socket" is "$(stat -c '%a %U:%G' /run/rrlb/upgrade.sock)" "600 rrlb:rrlb"
  check "the state directory" is "$(stat -c '%a %U:%G' /var/lib/rrlb)" "750 rrlb:rrlb"
  useradd --system --groups rrlb rrlb-operator
  useradd --system rrlb-stranger
  chmod o+rx /etc/rrlb && chmod o+r /etc/rrlb/rrlb.yaml # the file is not what is tested here
  check "a member of group rrlb may ask" show runuser -u rrlb-operator -- rrlb -c /etc/rrlb/rrlb.yaml status
  check "a stranger may not" not show runuser -u rrlb-stranger -- rrlb -c /etc/rrlb/rrlb.yaml status
  chmod o-rwx /etc/rrlb /etc/rrlb/rrlb.yaml
  check "a change is kept in the state file" show rrlb -c /etc/rrlb/rrlb.yaml backend add app extra 127.0.0.2:9001
  check "the state file" is "$(stat -c '%a %U:%G' /var/lib/rrlb/state.json)" "600 rrlb:rrlb"
  check "the access log is written" within 5 test -s /var/log/rrlb/access.log
  mv /var/log/rrlb/access.log /var/log/rrlb/access.log.1
  systemctl kill --kill-who=main -s USR1 rrlb
  check "and opened again after a rotation" within 5 test -e /var/log/rrlb/access.log
}

inside_the_sandbox() {
  title "the sandbox"
  if [ -n "$has_dns" ]; then
    check "a host name is resolved" within 10 answers http://127.0.0.1/named hello
    check "DNS discovery finds backends" within 10 answers http://127.0.0.1/found hello
  else
    echo "skipped: DNS (dnsmasq is missing)"
  fi
  printf -- '- 127.0.0.1:9001\n' >/etc/rrlb/new.yaml
  chgrp rrlb /etc/rrlb/new.yaml
  chmod 640 /etc/rrlb/new.yaml
  mv /etc/rrlb/new.yaml /etc/rrlb/backends.yaml
  check "a list of backends is watched" within 10 answers http://127.0.0.1/listed hello
  check "the certificate is served" is "$(served_name)" "subject=CN = first"
  certificate second
  check "a new certificate is noticed" within 10 is_now served_name "subject=CN = second"
  check "nothing was refused to it" not grep -qi "not permitted\|permission denied" <(journalctl -q -o cat -u rrlb)
}

reload() {
  title "systemctl reload"
  sed -i 's/grace_period_seconds: 5/grace_period_seconds: 6/' /etc/rrlb/rrlb.yaml
  local before
  before=$(main)
  check "systemctl reload succeeds" show systemctl reload rrlb
  check "the same process" is "$(main)" "$before"
  check "the unit is active" is "$(state)" active/running
  check "the status says so" within 5 status_is "serving configuration 2"
  cp -p /etc/rrlb/rrlb.yaml /tmp/good.yaml
  echo "listeners: nowhere" >>/etc/rrlb/rrlb.yaml
  check "systemctl reload of a bad file fails" not show systemctl reload rrlb
  check "the same process" is "$(main)" "$before"
  check "the unit is active" is "$(state)" active/running
  check "the status says so" has "$(property StatusText)" "serving; the last reload failed: /etc/rrlb/rrlb.yaml"
  check "so does the log" log_has "not reloaded"
  show systemctl status --no-pager -l -n 8 rrlb
  check "it goes on serving" answers http://127.0.0.1/ hello
  cp -p /tmp/good.yaml /etc/rrlb/rrlb.yaml
  check "systemctl reload of the good one succeeds" show systemctl reload rrlb
  check "the status says so" within 5 status_is "serving configuration 3"
}

upgrade() {
  local before
  title "rrlb upgrade under load"
  before=$(main)
  install -m 755 /usr/bin/rrlb /usr/bin/rrlb.new && mv /usr/bin/rrlb.new /usr/bin/rrlb
  start_load
  ask_slowly 3
  check "rrlb upgrade succeeds" show rrlb -c /etc/rrlb/rrlb.yaml upgrade
  check "another process is the main one" within 5 main_is_not "$before"
  check "the unit stays active" is "$(state)" active/running
  check "the old process ends" within 20 not test -d "/proc/$before"
  check "the unit stays active" is "$(state)" active/running
  check "no request failed" nothing_failed
  wait $slow
  check "one under way was finished" is "$(cat /tmp/slow)" slowly
  check "systemd has not started it again" is "$(property NRestarts)" 0
  show systemctl status --no-pager -l -n 8 rrlb

  title "an upgrade that fails"
  before=$(main)
  start_load
  printf '#!/bin/sh\necho "no memory" >&2\nkill -SEGV $$\n' >/usr/bin/rrlb.bad
  chmod 755 /usr/bin/rrlb.bad
  cp -p /usr/bin/rrlb /usr/bin/rrlb.good
  mv /usr/bin/rrlb.bad /usr/bin/rrlb
  check "rrlb upgrade to a bad binary fails" not show /usr/bin/rrlb.good -c /etc/rrlb/rrlb.yaml upgrade
  mv /usr/bin/rrlb.good /usr/bin/rrlb
  check "the old process goes on" is "$(main)" "$before"
  check "the unit stays active" is "$(state)" active/running
  check "the status says so" status_is "serving; the last upgrade failed"
  check "no request failed" nothing_failed

  title "ten upgrades by SIGUSR2 under load"
  start_load
  for _ in {1..10}; do
    before=$(main)
    systemctl kill --kill-who=main -s USR2 rrlb
    within 20 main_is_not "$before" && within 20 not test -d "/proc/$before" || break
  done
  check "the unit stays active" is "$(state)" active/running
  check "no request failed" nothing_failed
  check "systemd has not started it again" is "$(property NRestarts)" 0
  show systemctl reload rrlb
  check "the last one takes a reload" status_is "serving configuration 2"
}

deaths() {
  local before
  title "kill -9"
  before=$(main)
  kill -9 "$before"
  check "systemd starts it again" within 10 main_is_not "$before"
  check "it serves" within 10 answers http://127.0.0.1/ hello
  check "with what was changed at run time" has "$(rrlb -c /etc/rrlb/rrlb.yaml backend list app 2>&1)" extra

  title "kill -9 right after an upgrade, while the old process drains"
  before=$(main)
  ask_slowly 20
  show rrlb -c /etc/rrlb/rrlb.yaml upgrade
  before=$(main)
  kill -9 "$before"
  check "systemd starts it again, and does not wait for the old one" within 3 main_is_not "$before"
  check "it serves" within 10 answers http://127.0.0.1/ hello
  journalctl -q --no-pager -u rrlb | grep -A 7 "has died" | sed 's/^/    /'

  title "a process that hangs (WatchdogSec=$(property WatchdogUSec))"
  before=$(main)
  kill -STOP "$before"
  check "the watchdog ends it, and systemd starts another" within 60 main_is_not "$before"
  check "it serves" within 10 answers http://127.0.0.1/ hello
  check "the log says why" log_has "Watchdog timeout"
  journalctl -q --no-pager -u rrlb | grep -A 6 "Watchdog timeout" | sed 's/^/    /'
  systemctl reset-failed rrlb
}

stop() {
  title "systemctl stop"
  ask_slowly 3
  local began=$SECONDS
  check "systemctl stop succeeds" show systemctl stop rrlb
  check "within the grace period" test $((SECONDS - began)) -le 8
  wait $slow
  check "a request under way was finished" is "$(cat /tmp/slow)" slowly
  check "the unit is inactive" is "$(state)" inactive/dead
  check "it ended well" is "$(property Result)/$(property ExecMainStatus)" success/0
  check "the log says that it drained" log_has "drained after"
  check "its sockets are gone" not test -e /run/rrlb

  title "a long grace period"
  mkdir -p /units/rrlb.service.d
  printf '[Service]\nTimeoutStopSec=1\n' >/units/rrlb.service.d/short.conf
  systemctl daemon-reload
  show systemctl start rrlb
  within 10 answers http://127.0.0.1/ hello
  ask_slowly 3
  check "a TimeoutStopSec= below it is extended" show systemctl stop rrlb
  wait $slow
  check "a request under way was finished" is "$(cat /tmp/slow)" slowly
  check "it ended well" is "$(property Result)/$(property ExecMainStatus)" success/0
  rm -r /units/rrlb.service.d
  systemctl daemon-reload
}

bad_starts() {
  title "starts that cannot work"
  cp -p /etc/rrlb/rrlb.yaml /tmp/good.yaml
  echo "listeners: nowhere" >>/etc/rrlb/rrlb.yaml
  check "a bad file fails the start" not show systemctl start rrlb
  check "and is not tried again" is "$(state) $(property NRestarts)" "failed/failed 0"
  cp -p /tmp/good.yaml /etc/rrlb/rrlb.yaml
  sed -i 's/127.0.0.1:9145/127.0.0.1:9001/' /etc/rrlb/rrlb.yaml
  check "so does a used port" not show systemctl start rrlb
  check "and is not tried again" is "$(state) $(property NRestarts)" "failed/failed 0"
  show journalctl -q --no-pager -o cat -u rrlb -n 6
  check "the journal has the reason as an error" grep -q "cannot listen on" <(journalctl -q -o cat -p err -u rrlb)
  cp -p /tmp/good.yaml /etc/rrlb/rrlb.yaml

  title "without an admin API"
  sed -i '/^admin:/d' /etc/rrlb/rrlb.yaml
  show systemctl start rrlb
  sed -i 's/grace_period_seconds: 6/grace_period_seconds: 7/' /etc/rrlb/rrlb.yaml
  check "systemctl reload goes by signal" show systemctl reload rrlb
  check "the status says so" within 5 status_is "serving configuration 2"
  show systemctl stop rrlb
}

check_all() {
  exec 2>&1
  show systemctl --version
  title "systemd-analyze"
  check "systemd-analyze verify has nothing to say" is "$(systemd-analyze verify --man=no /units/rrlb.service 2>&1)" ""
  certificate first
  configuration
  printf -- '[]\n' >/etc/rrlb/backends.yaml
  chgrp rrlb /etc/rrlb/backends.yaml
  chmod 640 /etc/rrlb/backends.yaml
  show systemd-analyze security --no-pager --offline=true --threshold=20 /units/rrlb.service | tail -n 2
  check "systemd-analyze security is below 2.0" systemd-analyze security --offline=true --threshold=20 /units/rrlb.service >/dev/null
  check "the origins run" origins
  start_and_rights
  inside_the_sandbox
  reload
  upgrade
  deaths
  stop
  bad_starts
  printf '\n%s\n' "$([ $failures = 0 ] && echo "all is well" || echo "$failures FAILED")"
}

case ${1:-} in
  --boot) boot "$2" ;;
  --check)
    check_all
    sleep 0.5 # for who reads the report
    echo $((failures > 0)) >/rrlb-test/result.new
    mv /rrlb-test/result.new /rrlb-test/result
    ;;
  *) outside "$@" ;;
esac
