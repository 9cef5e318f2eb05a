#!/usr/bin/env bash
# Every check of this project, on a Debian machine with Go, as root:
#
#	./test.sh          about ten minutes
#	./test.sh -long    also the tests that take long, more fuzzing, and every port
#
# It installs the Debian packages that are missing and stops at the first thing
# that fails. Nothing is left out because something is missing: that is a
# failure too.
set -euo pipefail
cd "$(dirname "$0")"
exec </dev/null

fuzztime=10s
timeout=5m
case "${1:-}" in
'') ;;
-long)
	export PEERWS_LONG=1
	fuzztime=2m
	timeout=60m
	;;
*)
	echo "usage: $0 [-long]" >&2
	exit 2
	;;
esac

# A bare environment has neither of these. ip, nft and miniupnpd live in sbin.
export PATH="${PATH:-/usr/bin:/bin}:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin"
export HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
# A clone that belongs to another user has no version that Go could stamp.
export GOFLAGS="${GOFLAGS:-} -buildvcs=false"

logs=$(mktemp -d)
# A line per test and run: PASS:, FAIL: or SKIP:, run, package, test. The run is
# race, plain, other, or the port that it was emulated or is not this machine's,
# such as linux/386.
: >"$logs/results"
run=other

# The last line is always the sum. Every failed step that is not a test counts
# as one failure.
finish() {
	local status=$? passed failed
	passed=$(grep -c '^PASS: [^ ]* [^ ]* [^/]*$' "$logs/results" || true)
	failed=$(grep -c '^FAIL: [^ ]* [^ ]* [^/]*$' "$logs/results" || true)
	if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
		failed=1
	fi
	rm -rf "$logs"
	printf '\n%d passed, %d failed\n' "$passed" "$failed"
	exit "$status"
}
trap finish EXIT

step() { printf '\n== %s (at %d s)\n' "$1" "$SECONDS"; }

fail() {
	printf 'test.sh: %s\n' "$1" >&2
	exit 1
}

# silent fails when the command does, or when it prints anything.
silent() {
	local out status=0
	out=$("$@" 2>&1) || status=$?
	if [ "$status" -ne 0 ] || [ -n "$out" ]; then
		printf '%s\n' "$out"
		fail "'$*' has something to say"
	fi
}

# gotest runs go test, shows a line per package, or everything after a failure,
# and remembers each test's result. The log of the last run is $logs/last.
gotest() {
	local status=0 try
	for try in 1 2 3; do
		status=0
		go test -v -timeout "$timeout" "$@" >"$logs/last" 2>&1 || status=$?
		if [ "$status" -eq 0 ] || ! fuzzer_overran; then
			break
		fi
		echo "the fuzzer missed its own deadline, try $try"
	done
	awk -v run="$run" 'BEGIN { n = 0 }
		/^ *--- (PASS|FAIL|SKIP): / { kind[n] = $2; name[n++] = $3 }
		/^(ok|FAIL)[ \t]+[^ \t]/ { for (i = 0; i < n; i++) print kind[i], run, $2, name[i]; n = 0 }' \
		"$logs/last" >>"$logs/results"
	if [ "$status" -ne 0 ]; then
		grep -vE '^=== (RUN|PAUSE|CONT|NAME) ' "$logs/last" || true
		fail "go test $* failed"
	fi
	grep -E '^ok[[:space:]]' "$logs/last" || fail "go test $* tested no package"
}

# porttest runs tests of another port: porttest linux/s390x PROGRAM [FLAG...]
# PACKAGE..., where PROGRAM runs its binaries; '' is for those that this machine
# runs itself.
porttest() {
	local -x GOOS=${1%/*} GOARCH=${1#*/} CGO_ENABLED=0
	local run=$1 program=$2
	shift 2
	[ -z "$program" ] || set -- -exec "$program" "$@"
	gotest "$@"
}

# builds builds everything for each of the ports. android but for arm64, and ios,
# link programs only with a C compiler for them; all else is compiled there.
builds() {
	local port packages libraries
	mapfile -t libraries < <(go list -f '{{if and .GoFiles (ne .Name "main")}}{{.ImportPath}}{{end}}' ./... | grep .)
	for port; do
		case $port in
		android/386 | android/amd64 | android/arm | ios/*) packages=("${libraries[@]}") ;;
		*) packages=(./...) ;;
		esac
		GOOS=${port%/*} GOARCH=${port#*/} CGO_ENABLED=0 go build "${packages[@]}" || fail "$port does not build"
		echo "$port builds"
	done
}

# fuzzer_overran tells a race at the end of -fuzztime in Go before 1.27
# (golang/go#75804) from a finding: no input, no test line, only the deadline.
fuzzer_overran() {
	grep -q '^fuzz: elapsed' "$logs/last" &&
		grep -qx '    context deadline exceeded' "$logs/last" &&
		! grep -qE 'Failing input|panic:|_test\.go:' "$logs/last"
}

# gated runs the tests that an environment variable asks for. There must be
# some, and all must run, but those that only -long runs: they have Long in
# their name.
gated() {
	local variable=$1
	shift
	export "$variable=1"
	gotest -count=1 "$@"
	unset "$variable"
	grep -q '^--- PASS: ' "$logs/last" || fail "no test ran with $variable=1"
	if grep -E '^ *--- SKIP: ' "$logs/last" | { [ -n "${PEERWS_LONG:-}" ] && cat || grep -v 'Long '; }; then
		fail "tests were skipped although $variable=1 asks for them"
	fi
}

# testdirs lists the packages whose tests contain the pattern.
testdirs() {
	{ grep -rlE --include='*_test.go' "$1" . || true; } | xargs -r -n 1 dirname | sort -u
}

apt() { timeout 900 apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }

step 'Tools'
[ "$(id -u)" -eq 0 ] || fail 'must run as root: the tests make network namespaces'
command -v go || fail 'Go is missing: https://go.dev/dl/'

# missing names the packages of the tools this machine lacks.
missing() {
	local tool
	while read -r tool package; do
		command -v "$tool" >/dev/null || echo "$package"
	done <<-END
		ip iproute2
		nft nftables
		miniupnpd miniupnpd-nftables
		upnpc miniupnpc
		natpmpc natpmpc
		gcc gcc
		chromium chromium
		firefox-esr firefox-esr
		node nodejs
		npm npm
		qemu-aarch64 qemu-user
		qemu-s390x qemu-user
	END
	[ -e /usr/include/stdio.h ] || echo libc6-dev
	[ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
	/usr/bin/python3 -c 'import websockets' 2>/dev/null || echo python3-websockets
}

mapfile -t packages < <(missing | sort -u)
if [ "${#packages[@]}" -gt 0 ]; then
	echo "installing ${packages[*]}"
	command -v apt-get >/dev/null || fail "missing, and this is no Debian to install them: ${packages[*]}"
	export DEBIAN_FRONTEND=noninteractive
	# Unlike dpkg's lock, the one of the package lists is not waited for.
	for try in 1 2 3 4 5; do
		apt update >"$logs/apt" 2>&1 && break
		if [ "$try" -eq 5 ]; then
			cat "$logs/apt"
			fail 'apt-get update failed'
		fi
		sleep 15
	done
	if ! apt install -y --no-install-recommends "${packages[@]}" >"$logs/apt" 2>&1; then
		tail -n 40 "$logs/apt"
		fail "could not install ${packages[*]}"
	fi
	mapfile -t packages < <(missing)
	[ "${#packages[@]}" -eq 0 ] || fail "still missing after the installation: ${packages[*]}"
fi
go version
echo "node $(node --version)"

step 'Format'
silent gofmt -l .

step 'Modules'
go mod download
go mod tidy -diff

step 'Vet'
go vet ./...
GOOS=darwin go vet ./...
GOOS=windows go vet ./...

step 'Builds'
# js and wasip1 cannot listen; plan9 has not the error numbers that the tests'
# network returns.
mapfile -t ports < <(go tool dist list | grep -vE '^(js|wasip1|plan9)/')
[ "${#ports[@]}" -gt 30 ] || fail "go tool dist list names only ${#ports[@]} ports"
if [ -z "${PEERWS_LONG:-}" ]; then
	# What the steps before and after compile none of: Android, BSD, a Unix that
	# is neither BSD nor Linux, and in two of them words of 32 bits.
	short=(android/386 freebsd/arm solaris/amd64)
	for port in "${short[@]}"; do
		grep -qx "$port" < <(printf '%s\n' "${ports[@]}") || fail "Go has no port $port"
	done
	ports=("${short[@]}")
fi
builds "${ports[@]}"

step 'Staticcheck'
go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

step 'Go fix'
silent go fix -diff ./...

step 'Tests with the race detector'
CGO_ENABLED=1 run=race gotest -race ./...

step 'Tests'
run=plain gotest ./...

step 'Tests with words of 32 bits'
porttest linux/386 '' ./...

# Neither runs assembly of ours, and s390x is big-endian.
portable=(. ./nat ./internal/mask ./internal/memnet ./internal/netaddr ./internal/utf8check)
# qemu-user has no TCP_INFO, without which a slow peer is not told from a dead
# one, and the kernel cannot start its binaries, as a test of the environment does.
unemulated='^(TestProgress_SlowIsNotDead|TestProxy_Environment)$'
step 'Tests on arm64, emulated'
porttest linux/arm64 qemu-aarch64 -skip "$unemulated" "${portable[@]}"
step 'Tests on s390x, emulated'
porttest linux/s390x qemu-s390x -skip "$unemulated" "${portable[@]}"

step 'Real gateway'
mapfile -t dirs < <({ echo ./internal/natlab && testdirs 'natlab\.(New|Need)\('; } | sort -u)
# These tests wait more than they compute.
gated PEERWS_LAB -parallel 8 "${dirs[@]}"
grep -E ': [0-9.]+ s (from|to) ' "$logs/last" | sed 's/^ *[^ ]* //' | sort || true

step 'Real browsers, other libraries'
for dir in internal/browsertest internal/interop; do
	(cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund)
done
mapfile -t dirs < <(testdirs PEERWS_BROWSER)
[ "${#dirs[@]}" -gt 0 ] || fail 'there is no browser test'
gated PEERWS_BROWSER "${dirs[@]}"

step 'Nothing was skipped everywhere'
# A test may skip in one run (no root, the race detector) if another run has
# passed it, here: what another port has run counts for that port only. There a
# test may skip that skips here as well without the race detector. Tests that
# only -long runs have Long in their name.
never=$(awk '{ test = $3 " " $4; port = $2 ~ /\// }
	$1 == "PASS:" && !port { passed[test] = 1 }
	$1 == "SKIP:" && !port { skipped[test] = 1 }
	$1 == "SKIP:" && $2 == "plain" { plain[test] = 1 }
	$1 == "SKIP:" && port { elsewhere[test] = elsewhere[test] " on " $2 }
	END {
		for (test in skipped) if (!passed[test]) print test
		for (test in elsewhere) if (!plain[test]) print test elsewhere[test]
	}' "$logs/results")
if [ -z "${PEERWS_LONG:-}" ]; then
	never=$(grep -v Long <<<"$never" || true)
fi
if [ -n "$never" ]; then
	printf '%s\n' "$never"
	fail 'these tests ran nowhere'
fi
echo 'every test has run'

step "Fuzzing, $fuzztime each"
targets=0
while read -r dir; do
	for target in $(go test -list '^Fuzz' "$dir" | grep '^Fuzz' || true); do
		echo "$dir $target"
		gotest -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "$dir"
		targets=$((targets + 1))
	done
done < <(testdirs '^func Fuzz')
[ "$targets" -gt 0 ] || fail 'there is no fuzz target'

step 'Benchmarks, once each'
gotest -run '^$' -bench . -benchtime 1x .
grep '^Benchmark.*ns/op' "$logs/last" || fail 'there is no benchmark'
if [ -d bench ]; then
	(cd bench && go vet ./... && gotest ./...)
fi

step 'OpenTelemetry'
(cd otelpeerws && go mod tidy -diff && go vet ./... && go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./... && gotest -race ./...)

printf '\nEverything passed in %d s.\n' "$SECONDS"
