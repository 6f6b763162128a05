#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# other-debian.sh BUILDDIR [COMMAND]: build and test the release tarball in a root of the other
# supported Debian release (13 on Debian 12 and everywhere else, 12 on Debian 13), so that both
# generations of nbdkit are covered.  The tests are those of what depends on the release (make
# check-linked).  With COMMAND that is run by the shell in the build directory instead.
#
# The tarball is unpacked and built in BUILDDIR/other-debian, and stays there: the next run compiles
# what has changed, and the test summary is BUILDDIR/other-debian/build/test-suite.log.  The root is
# made once by mmdebstrap and kept in ${XDG_CACHE_HOME:-~/.cache}/nbdmirror.  Exit status: that of
# the tests; 77 where such a root can't be had or entered.

set -eu
export LC_ALL=C
builddir=$1
command=${2-make -s -j4 check-linked VERBOSE=1}
work=$builddir/other-debian
unavailable () { printf 'other-debian: %s\n' "$*" >&2; exit 77; }

packages="gcc make libc6-dev pkgconf perl xz-utils nbdkit nbdkit-plugin-dev libnbd-dev
libxml2-dev libaio-dev libjansson-dev libxxhash-dev libzstd-dev libcriterion-dev python3
python3-libnbd libnbd-bin fio procps qemu-utils qemu-system-x86 e2fsprogs
openssh-client openssh-server gnutls-bin sqlite3"

# shellcheck disable=SC1091
. /etc/os-release
case ${VERSION_CODENAME-} in
  trixie) suite=bookworm ;;
  *) suite=trixie ;;
esac

[ "$(id -u)" = 0 ] || unavailable "a root of Debian $suite needs to be entered by root"
unshare --mount true 2>/dev/null || unavailable "this environment does not allow mounts"

# ---- the root --------------------------------------------------------------------------

cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/nbdmirror
root=$cache/$suite-$(echo "$packages" | cksum | cut -d ' ' -f 1)
if [ ! -d "$root" ]; then
  command -v mmdebstrap >/dev/null || unavailable "mmdebstrap is not installed"
  # shellcheck disable=SC2016
  # From where this machine's own packages come, through the same proxy.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' \
    "Codename: ${VERSION_CODENAME-none}" 'Origin: Debian' 2>/dev/null | head -n 1)
  proxy=$(apt-config dump --format '%v' Acquire::http::Proxy 2>/dev/null)
  mkdir -p "$cache"
  new=$(mktemp -d "$cache/new.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  trap 'exit 130' INT TERM HUP
  echo "other-debian: making a root of Debian $suite in $root"
  # shellcheck disable=SC2086
  mmdebstrap --quiet --mode=root --format=directory --variant=minbase \
    --include="$(echo $packages | tr ' ' ,)" ${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\""} \
    "$suite" "$new/root" ${mirror:+"$mirror"} ||
    unavailable "mmdebstrap could not make a root of Debian $suite"
  mv -T "$new/root" "$root" 2>/dev/null || [ -d "$root" ]
  rm -rf "$new"
fi

# ---- build and test in it --------------------------------------------------------------

rm -f "$builddir"/nbdmirror-*.tar.xz
make -C "$builddir" -s dist
# What was built in another root, of other packages, is of no use.
[ "$(cat "$work/build/.root" 2>/dev/null)" = "$root" ] || rm -rf "$work/build"
mkdir -p "$work/build"
echo "$root" >"$work/build/.root"
find "$work" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
[ $# != 1 ] || find "$work" \( -name '*.trs' -o -name test-suite.log \) -delete
tar -xf "$builddir"/nbdmirror-*.tar.xz -C "$work" --strip-components=1

# The kernel for test guests, where the tests outside have fetched it.
if [ -d "$cache/guest" ]; then
  mkdir -p "$root/root/.cache/nbdmirror"
  rm -rf "$root/root/.cache/nbdmirror/guest"
  cp -r "$cache/guest" "$root/root/.cache/nbdmirror/guest"
fi

# In a mount namespace of its own, so that nothing stays mounted, whatever happens.
# shellcheck disable=SC2016
exec unshare --mount --propagation private --fork --kill-child sh -ec '
  mount --rbind /proc "$1/proc"
  mount --rbind /dev "$1/dev"
  mount --bind "$2" "$1/mnt"
  exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C SHORT="$3" \
    COMMAND="$4" \
    sh -ec "
      cd /mnt/build
      [ -e config.status ] || ../configure --quiet --enable-werror
      make -s -j2
      eval \"\$COMMAND\"
    "
' sh "$root" "$work" "${SHORT:-0}" "$command" </dev/null
