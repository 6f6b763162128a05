#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that wrong command lines are refused as documented: exit status 2 (1 where the command line
# is right but what it names is not there), one message on stderr that names the subcommand and the
# thing, nothing on stdout, and no socket, file or process left behind.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread

cd "$tmp"
truncate -s 1M disk
mkdir folder dir
touch plain
touch out err
before=$(ls -A)
s=(--socket s.sock --control c.sock)

# refused STATUS PATTERN ARGS...: PATTERN (fixed text) must be in the message.
refused () {
  local status=$1 pattern=$2; shift 2
  has_to_exit "$status" nbdmirror "$@"
  grep -qF -- "$pattern" err || { cat err >&2; fail "no '$pattern' in the message of: $*"; }
  grep -q "^nbdmirror: " err || fail "the message of '$*' does not begin with nbdmirror:"
  [ ! -s out ] || fail "output on stdout from: $*"
  [ "$status" != 2 ] || grep -q -- "^Try 'nbdmirror .*--help'" err || fail "no hint after: $*"
}

# nbdmirror itself
has_to_exit 0 nbdmirror --version
[ "$(cat out)" = "nbdmirror $(make_var PACKAGE_VERSION)" ] || fail "version: $(cat out)"
has_to_exit 0 nbdmirror --help
subcommands=$(sed -n 's/^  \([a-z-]*\)  .*/\1/p' out)
refused 2 'SUBCOMMAND is missing'
refused 2 "unknown subcommand 'frobnicate'" frobnicate
refused 2 "unknown option '--frobnicate'" --frobnicate
refused 2 "unknown subcommand ''" ''

# Every subcommand: its help, and the faults that all share.
[ "$(wc -w <<<"$subcommands")" -ge 14 ] || fail "--help lists only: $subcommands"
for sub in $subcommands; do
  has_to_exit 0 nbdmirror "$sub" --help
  grep -q "^Usage: nbdmirror $sub " out || fail "$sub --help has no usage line"
  grep -q "^Example" out || fail "$sub --help has no example"
  grep -q "^  *nbdmirror $sub " out || fail "$sub --help has no example of itself"
  [ ! -s err ] || fail "$sub --help writes to stderr"
  ! grep -q '.\{101\}' out || fail "$sub --help has a line over 100 columns"
  refused 2 "nbdmirror: $sub: unknown option '--frobnicate'" "$sub" --frobnicate
  refused 2 "nbdmirror: $sub: unknown option '-Z'" "$sub" -Z
  [ "$sub" = budget ] || refused 2 "is missing" "$sub" # it lists all
  refused 2 "'[' without ']'" "$sub" [ a b
done
refused 2 "option '--help' takes no value" status --help=1

# serve
refused 2 'DISK is missing' serve
refused 2 'an empty name, where a disk is wanted' serve '' "${s[@]}"
refused 2 '--socket is missing' serve disk --control c.sock
refused 2 '--control is missing' serve disk --socket s.sock
refused 2 "'--socket' needs a value" serve disk --socket
refused 2 "extra argument 'extra'" serve disk extra "${s[@]}"
refused 2 'the same path' serve disk --socket s.sock --control ./s.sock
refused 2 "'word' is neither" serve disk "${s[@]}" -- word
refused 2 'use --socket' serve disk "${s[@]}" -- -U other
refused 2 'use --socket' serve disk "${s[@]}" -- --unix=other
refused 2 '--nosuch: the nbdkit that is installed has no' serve disk "${s[@]}" -- --nosuch=1
refused 2 '-Q: the nbdkit that is installed has no' serve disk "${s[@]}" -- -vQ
refused 2 '--filter needs a value' serve disk "${s[@]}" -- --filter
refused 2 'use --control' serve disk "${s[@]}" -- mirror-control=x
refused 2 'use --pidfile' serve disk "${s[@]}" -- -vP x
refused 1 'missing: No such file' serve missing "${s[@]}"
refused 1 'folder: neither' serve folder "${s[@]}"
refused 1 'nbd://host/' serve nbd://host/ "${s[@]}"
refused 1 'no/s.sock: No such file' serve disk --socket no/s.sock --control c.sock
refused 1 'no/c.sock: No such file' serve disk --socket s.sock --control no/c.sock
refused 1 'digest: missing: No such file' digest missing
refused 1 'digest: folder: this is a directory' digest folder
refused 1 'exists and is not a socket' serve disk --socket plain --control c.sock
refused 1 'exists and is not a socket' serve disk --socket s.sock --control dir
refused 1 'not the name of a file' serve disk --socket s.sock --control dir/
long=$(printf '%0120d' 0)
refused 1 '107 characters at most' serve disk --socket "$long" --control c.sock

# set: nothing is sent unless all is right, so the missing socket is not even looked at
refused 2 'KEY=VALUE is missing' set none
refused 2 "'bandwidth' is not KEY=VALUE" set none bandwidth
refused 2 "'=1' is not KEY=VALUE" set none =1
refused 2 "unknown key 'speed'" set none speed=1
refused 2 'bandwidth is given twice' set none bandwidth=1M bandwidth=2M
for value in '' -1 x 1X 1.5 20000000T 1M/h; do
  refused 2 "bandwidth=$value: " set none "bandwidth=$value"
done
for value in '' 0 300 -1s 1m x 2d 25h; do
  refused 2 "max-downtime=$value: " set none "max-downtime=$value"
done
for value in '' 0 50 -1ms x 11s; do
  refused 2 "max-write-delay=$value: " set none "max-write-delay=$value"
  refused 2 "--max-write-delay" mirror none dest --max-write-delay "$value"
done
for value in '' 0 10 -1 3x fast; do
  refused 2 "--compress=$value: " mirror none dest "--compress=$value"
  refused 2 "--compress=$value: " copy none dest "--compress=$value"
done
refused 2 'policy=hope: ' set none policy=hope
refused 2 'synchronous=maybe: ' set none synchronous=maybe
refused 2 'backup: CONTROL is missing' backup
refused 2 'backup: REPOSITORY is missing' backup none
refused 2 'exclude each other' backup none repo --full --incremental
refused 1 '--include missing: No such file' backup none repo --include missing
refused 1 'is no regular file' backup none repo --include /dev
refused 2 ': its name is too long' backup none repo --include "$(printf '%0254d' 0)"
for option in --include --before-hold-exec --after-release-exec; do
  refused 2 "backup: $option " backup none repo $option $'no\xfftext'
done
refused 2 ': it is not UTF-8, so' backup $'no\xfffolder/none' repo
# a=b=x names the disk a=b, and not a.
refused 2 "a and a=b have the same name 'x'" backup a a=b repo --disk-name a=b=x --disk-name a=x
refused 1 '--report missing/report: No such file' backup none repo --report missing/report
refused 1 '--metrics missing/vm.prom.tmp: No such file' backup none repo --metrics missing/vm.prom
refused 2 'exclude each other' backup none repo --auto --full
qemu-img create -q -f qcow2 vm.qcow2 1M
refused 2 'run for --dest-format' mirror none vm.qcow2 --dest-format qcow2 --verify
rm vm.qcow2
refused 2 'run for [ COMMAND ]' mirror none [ true ] --verify
refused 2 'number is too large' copy disk new --bandwidth 8388608T
refused 2 'number is too large' budget night 8388608T
refused 2 'policy=hope: ' set none bandwidth=1M policy=hope
refused 1 'none: ' set none bandwidth=1M

# status
refused 2 '--interval x: not a number' status none --watch --interval x
refused 2 '--interval 1ms: ' status none --watch --interval 1ms
refused 2 '--interval goes with --watch' status none --interval 1s
refused 2 "option '--json' takes no value" status none --json=yes
refused 1 'none: ' status none
refused 1 'none: ' status none --json
refused 1 'none: ' status none --watch
refused 1 'plain: ' status plain
refused 1 'folder: ' status folder
has_to_exit 1 nbdmirror status none plain --json
[ "$("$python" -c 'import json; print([o["state"] for o in json.load(open("out"))])')" = \
  '[None, None]' ] ||
  fail "an array with an entry for each CONTROL was expected"

# pause, resume, cancel
for sub in pause resume cancel; do
  refused 2 'CONTROL is missing' $sub
  refused 2 "extra argument 'b'" $sub a b
  refused 1 'none: ' $sub none
done

# complete
refused 2 'none is given twice' complete none other none
refused 2 '--lease 0: ' complete none --lease 0
refused 2 '--lease 300: ' complete none --lease 300
refused 2 '--timeout 2h: ' complete none --timeout 2h
refused 2 '--waiters both: ' complete none --waiters both
refused 2 "--rollback-token 'a b': " complete none --rollback-token 'a b'
refused 2 "--rollback-token '': " complete none --rollback-token ''
refused 2 "--rollback-token '$long': " complete none --rollback-token "$long"
refused 1 'none: ' complete none

# migrate
qmp=(--source-qmp none --dest-qmp other --memory-uri unix:none)
refused 2 '--disk CONTROL=DEST is missing' migrate "${qmp[@]}"
refused 1 '--report missing/report: No such file' migrate "${qmp[@]}" --report missing/report
refused 2 'are the same socket, none' migrate "${qmp[@]}" --dest-qmp none --disk a=b
disk_refused () { refused 2 "--disk $1: $2" migrate "${qmp[@]}" --disk "$1"; }
disk_refused 'a' 'must begin with CONTROL=DEST'
disk_refused 'a=' 'must begin with CONTROL=DEST'
disk_refused 'a,sync=full' 'must begin with CONTROL=DEST'
disk_refused 'a=b,' "'' is not NAME=VALUE"
disk_refused 'a=b,c' "'c' is not NAME=VALUE (write a comma that belongs to a name twice)"
disk_refused 'a=b,sync=some' 'sync=some: must be full, top, base, compare, incremental or auto'
disk_refused 'a=b,sync=full,sync=full' 'sync is given twice'
disk_refused 'a=b,bandwidth=1M' "'bandwidth' is unknown here"
disk_refused 'a=b,verify=maybe' 'verify=maybe: give on or off'
disk_refused 'a=b,sync=base' '--sync base needs --base IMAGE'
disk_refused 'a=b,base=c' '--base goes with --sync base or --sync top'
refused 2 '--disk a=c,verify=on: its CONTROL is given twice' migrate "${qmp[@]}" --disk a=b \
  --disk a=c,verify=on
refused 2 '--measure goes with' migrate "${qmp[@]}" --disk a=b --measure 1s
refused 2 '--dry-run and --recover' migrate "${qmp[@]}" --disk a=b --dry-run --recover
refused 2 '--disk a=b: --give-back needs its ,image=FILE' migrate "${qmp[@]}" --disk a=b --give-back
refused 2 '--disk a=b: --give-back needs a destination at a Unix socket' migrate "${qmp[@]}" \
  --disk a=b,image=c --give-back
refused 2 '--disk a=b: ,image=FILE goes with --give-back' migrate "${qmp[@]}" --disk a=b,image=c
refused 2 '--disk a=b: ,discard and ,aio go with' migrate "${qmp[@]}" --disk a=b,aio=native
refused 2 '--disk /a=b: with --adopt this begins with the id' migrate "${qmp[@]}" --adopt=/tmp \
  --disk /a=b
refused 2 '--dry-run and --adopt' migrate "${qmp[@]}" --disk a=b --dry-run --adopt=/tmp
refused 2 '--disk b=a: its DEST is given twice' migrate "${qmp[@]}" --disk a=a --disk b=a

# evacuate-disk
refused 2 'NEWDISK is missing' evacuate-disk none
refused 2 "--lease x: " evacuate-disk none disk --lease x
refused 2 'further filters' evacuate-disk none disk -- --filter=log
refused 2 '--sync some: must be' evacuate-disk none disk --sync some
refused 2 '--sync base needs --base' evacuate-disk none disk --sync base
refused 1 'none: ' evacuate-disk none new

# rollback
refused 2 '--token is missing' rollback none --destination-stopped
refused 2 '--destination-stopped is missing' rollback none --token t
refused 2 "--token 'a/b': " rollback none --token a/b --destination-stopped
refused 1 'none: ' rollback none --token t --destination-stopped
refused 7 'no fence to open' rollback qmp:none/disk --token t --destination-stopped

# A slip in a name must not become a local file (the last check below: nothing new is there).
for sub in "mirror none" "copy disk" "verify disk"; do
  while IFS='|' read -r dest pattern; do
    # shellcheck disable=SC2086
    refused 2 "$pattern" $sub "$dest"
  done <<END
nbb://host/|no NBD URI
http://host/|no NBD URI
nbd:/host/|begins with
nbd+unix:/?socket=s|begins with
host:10809|nbd://host:10809/
[ nbdkit null 1M ]|one word
|empty name
END
done
touch host:10809
has_to_exit 0 nbdmirror copy disk host:10809
has_to_exit 0 nbdmirror copy disk ./host:10810
has_to_exit 7 nbdmirror copy disk ../"${tmp##*/}"/disk
grep -q 'is the source itself' err || fail "copying onto itself: $(cat err)"
rm host:10809 host:10810

# Output that cannot be written is an error.
if [ -w /dev/full ]; then
  got=0; nbdmirror --help >/dev/full 2>err || got=$?
  [ $got = 1 ] || fail "--help into a full disk ended with $got"
fi

# --print starts nothing, and a shell reads the words back.
truncate -s 1M "it's a disk"
has_to_exit 0 nbdmirror serve "it's a disk" "${s[@]}" --state state --print -- --threads 7 \
  cache=none
eval "set -- $(cat out)"
[ "$1 $2" = "nbdkit -f" ] || fail "--print: $(cat out)"
for want in "file=$tmp/it's a disk" "mirror-direct=$tmp/it's a disk" "mirror-control=$tmp/c.sock" \
            "mirror-uri=nbd+unix:///?socket=$tmp/s.sock" "mirror-state=$tmp/state" \
            --threads 7 cache=none; do
  for word; do [ "$word" != "$want" ] || continue 2; done
  fail "--print: no $want in $(cat out)"
done
# Another filter between makes direct reads of the file wrong.
for filter in --filter=cow "--filter cow" --filt=cow "--fi cow"; do
  # shellcheck disable=SC2086
  has_to_exit 0 nbdmirror serve disk "${s[@]}" --print -- $filter
  ! grep -q mirror-direct out || fail "mirror-direct= in spite of $filter"
done
rm "it's a disk"

# A server that cannot start leaves nothing, in the foreground and in the background.
refused_by_nbdkit () {
  has_to_exit 1 "${server_env[@]}" "$NBDMIRROR" serve disk "${s[@]}" "$@"
  grep -q no-such-parameter err || fail "nbdkit's message is not shown"
}
refused_by_nbdkit -- no-such-parameter=1
refused_by_nbdkit --detach -- no-such-parameter=1

sleep 0.2
[ "$(ls -A)" = "$before" ] || fail "left behind: $(ls -A)"
