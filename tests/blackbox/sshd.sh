# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2154
#
# A host behind ssh.  Source it after lib.sh: $NBDMIRROR_SSH reaches it, as 127.0.0.1:$port, and its
# nbdmirror is $tmp/there/nbdmirror.  It is a real sshd on loopback that lets this account in, and
# the test is skipped where there can be none.  With SSH_STAND_IN=1 it is ssh-stand-in.py.

mkdir "$tmp/there"
{
  echo '#!/bin/sh'
  printf 'exec %s "$@"\n' \
    "$(printf "'%s' " "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR")"
} >"$tmp/there/nbdmirror"
chmod +x "$tmp/there/nbdmirror"
if [ "${SSH_STAND_IN:-0}" != 0 ]; then
  port=22
  export NBDMIRROR_SSH="$python $srcdir/tests/blackbox/ssh-stand-in.py $tmp"
  return
fi
need ssh ssh-keygen
sshd=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v sshd) ||
  skip "sshd is not installed (openssh-server)"

# As root sshd wants its directory.
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
umask 077
mkdir "$tmp/ssh"
ssh-keygen -q -t ed25519 -N '' -f "$tmp/ssh/host"
ssh-keygen -q -t ed25519 -N '' -f "$tmp/ssh/user"
port=$(free_port)
cat >"$tmp/ssh/sshd_config" <<END
Port $port
ListenAddress 127.0.0.1
HostKey $tmp/ssh/host
AuthorizedKeysFile $tmp/ssh/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
END
echo "[127.0.0.1]:$port $(cut -d' ' -f1,2 "$tmp/ssh/host.pub")" >"$tmp/ssh/known_hosts"
spawn sshd "$sshd" -D -e -f "$tmp/ssh/sshd_config"
NBDMIRROR_SSH="ssh -F none -i $tmp/ssh/user -o IdentitiesOnly=yes"
export NBDMIRROR_SSH="$NBDMIRROR_SSH -o UserKnownHostsFile=$tmp/ssh/known_hosts"
answers () { $NBDMIRROR_SSH -o BatchMode=yes -p "$port" 127.0.0.1 true; }
deadline=$((SECONDS + 20))
until answers 2>"$tmp/ssh.log"; do
  running sshd || skip "this sshd does not run here: $(tail -n 1 "$tmp/sshd.log")"
  [ $SECONDS -le $deadline ] ||
    skip "this account cannot log in by ssh: $(tail -n 1 "$tmp/ssh.log")"
  sleep 0.2
done
