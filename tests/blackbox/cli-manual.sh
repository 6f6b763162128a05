#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that --help and the manual list the same options and settings for each subcommand, with the
# same defaults, and that completion offers them: in bash, and in zsh and fish where these are
# installed.  That the fields of `status --json` are those of the manual, and that the parameters of
# the mirror filter are those of its page.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread

cd "$tmp"
"$python" - "$NBDMIRROR" "$srcdir/docs" <<'END' || fail "see above"
import re, subprocess, sys

program, docs = sys.argv[1:]
wrong = 0


def complain(text):
    global wrong
    wrong += 1
    print(text)


def defaults(text):
    """The values that a text calls a default, as far as they are numbers or one of a few words."""
    text = " ".join(re.sub(r"[BCFI]<([^>]*)>", r"\1", text).split())
    return {value.replace(" ", "")
            for rest in re.findall(r"[Dd]efault(?: is| here)?:? ([^);.]*)", text)
            for value in re.findall(r"\d+(?:,\d{3})*(?: ?(?:ms|min|[shkMG])\b)?|"
                                    r"\b(?:twice|never|none|raw|threads|ignore)\b", rest)}


def in_help(sub):
    """The names of the options, their parts (,NAME=) and the settings (NAME=) that --help lists,
    with the text of each."""
    found, names = {}, set()
    text = subprocess.run([program, sub, "--help"], capture_output=True, text=True, check=True)
    for line in text.stdout.splitlines():
        match = re.match(r"  ((?:-\w, )?--[a-z].*?|(?:  ,)?[a-z-]+=\S+)(?:  |$)", line)
        if match:
            names = set(re.findall(r"(?:^|[ ,])(-\w|--[a-z-]+)", match[1]))
            names |= set(re.findall(r"^ *(,?[a-z-]+=)", match[1]))
            line = line[match.end():]
        elif not line.startswith("    "):
            names = set()
        for name in names:
            found[name] = found.get(name, "") + line + "\n"
    return found


def compare_defaults(sub, items, helped):
    """An item may be about several options.  One without a word about defaults points elsewhere.
    Returns how many were compared."""
    compared = 0
    for names, text in items:
        ours = set().union(*(defaults(helped.get(name, "")) for name in names))
        if not re.search("[Dd]efault", text):
            continue
        compared += len(ours)
        if ours != defaults(text):
            complain(f"{sub}: {', '.join(sorted(names))}: the defaults are {sorted(ours)} in"
                     f" --help, and {sorted(defaults(text))} in the manual")
    return compared


def in_manual(sub):
    """Those that are items: in the page of the subcommand, else in its section of nbdmirror.pod.
    A list: the names of an item, and its text."""
    if sub in ("backup", "receive", "migrate"):
        text = open(f"{docs}/nbdmirror-{sub}.pod", encoding="utf-8").read()
    else:
        text = open(f"{docs}/nbdmirror.pod", encoding="utf-8").read()
        section = re.search(rf"^=head2 [^\n]*nbdmirror {sub}\b.*?(?=^=head[12])", text,
                            re.M | re.S)
        if not section:
            complain(f"{sub}: no section in the manual")
            return []
        text = section[0]
    found = []
    for heads, text in re.findall(r"((?:^=item [^\n]*\n\n?)+)(.*?)(?=^=(?!over|cut))", text,
                                  re.M | re.S):
        names = set()
        for word in re.findall(r"B<([^>]*)>", heads):
            names |= set(re.findall(r"^(-\w$|--[a-z][a-z-]*|,?[a-z-]+=)", word))
        found.append((names, text))
    return found


main = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
subcommands = re.findall(r"^  ([a-z-]+) +\S", main, re.M)
if len(subcommands) < 14:
    complain(f"--help lists only {subcommands}")
heads = re.findall(r"^=head2 (nbdmirror .*)$",
                   open(f"{docs}/nbdmirror.pod", encoding="utf-8").read(), re.M)
sections = list(dict.fromkeys(re.findall(r"\bnbdmirror ([a-z-]+)", " ".join(heads))))
if sections != subcommands:
    complain(f"the manual's sections are in the order {sections}, and not as in --help")
total = compared = 0
for sub in subcommands:
    helped, items = in_help(sub), in_manual(sub)
    manual = set().union(*(names for names, text in items))
    total += len(helped)
    for name in sorted(helped.keys() - manual):
        complain(f"{sub}: {name} is in --help and not in the manual")
    for name in sorted(manual - helped.keys()):
        complain(f"{sub}: {name} is in the manual and not in --help")
    compared += compare_defaults(sub, items, helped)
    with open(f"options.{sub}", "w") as f:
        f.write("".join(f"{name}\n" for name in sorted(helped) if len(name) > 2 and name[0] != ","))
if total < 90:
    complain(f"only {total} options were found: is --help read as it is printed?")
if compared < 25:
    complain(f"only {compared} defaults were compared")
sys.exit(wrong != 0)
END

# offered SHELL SUBCOMMAND: the words on stdin are what it offers; all options must be among them.
offered () {
  local got name
  got=$(cat)
  while read -r name; do
    grep -qxF -e "$name" <<<"$got" || fail "$1 does not offer $name of $2, only: $got"
  done <"options.$2"
}
# is WHAT WANT GOT
is () { [ "$2" = "$3" ] || fail "$1: '$3' instead of '$2'"; }

# bash_offers WORD...: what bash offers for the last word.
bash_offers () {
  bash -c '. "$0"; compopt () { :; }; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _nbdmirror
           printf "%s\n" "${COMPREPLY[@]}"' ./bash "$@"
}
for shell in bash zsh fish; do
  has_to_exit 0 nbdmirror --print-completion $shell
  mv out $shell
done
has_to_exit 2 nbdmirror --print-completion tcsh
touch some-file
for list in options.*; do
  sub=${list#options.}
  { bash_offers nbdmirror "$sub" -; bash_offers nbdmirror "$sub" some ''; } | offered bash "$sub"
  is "the value of --help" "" "$(bash_offers nbdmirror "$sub" -- --he)"
done
is subcommands evacuate-disk "$(bash_offers nbdmirror ev)"
is files some-file "$(bash_offers nbdmirror copy some)"
is "a file as a value" some-file "$(bash_offers nbdmirror copy --report some)"
is choices throttle "$(bash_offers nbdmirror mirror --policy thr)"
is "choices behind =" throttle "$(bash_offers nbdmirror mirror --policy = thr)"
is "nothing to offer" "" "$(bash_offers nbdmirror mirror --bandwidth some)"
is settings policy= "$(bash_offers nbdmirror set control pol)"
is "parts of a value" "a,sync=full,base-format=" "$(bash_offers nbdmirror migrate --disk c = \
  a,sync=full,base-f)"
is "no part of another option" "" "$(bash_offers nbdmirror mirror --base a,b)"
is "values of a part" compare "$(bash_offers nbdmirror migrate --disk c = a,sync = com)"
is "values of settings" sync "$(bash_offers nbdmirror set control policy = sy)"

if command -v zsh >/dev/null; then
  # Outside of a terminal zsh completes nothing: see what its functions are called with.
  # shellcheck disable=SC2016
  zsh_calls () {
    zsh -fc '_arguments () { print -rl -- "$@" } ; _values () { print -rl -- "$@" }
             _describe () { print -rl -- "${(@P)2}" } ; _files () { print files }
             file=$1; shift; words=("$@"); CURRENT=$#; source $file' zsh ./zsh "$@"
  }
  zsh_calls nbdmirror '' | grep -q '^serve:Serve a disk' || fail "zsh does not offer subcommands"
  # shellcheck disable=SC2016
  zsh -fc '_values () { print -rl -- "$@" } ; compset () { : }; CURRENT=2 words=(nbdmirror "")
           _describe () { : }; source ./zsh; _nbdmirror_migrate_disk' |
    grep -q '^sync\[.*(full top base compare incremental auto)' ||
    fail "zsh does not offer parts of a value"
  for list in options.*; do
    sub=${list#options.}
    { zsh_calls nbdmirror "$sub" -; zsh_calls nbdmirror "$sub" some ''; } |
      sed -n 's/^\(--[a-z-]*\)=\{0,1\}\[.*/\1/p; s/^\([a-z-]*\)\[.*/\1=/p' | offered zsh "$sub"
  done
  zsh_calls nbdmirror mirror - | grep -q '^--policy=.*:value:(sync throttle none fail)$' ||
    fail "zsh does not offer the policies"
fi
if command -v fish >/dev/null; then
  # shellcheck disable=SC2016
  fish_offers () {
    HOME=$tmp fish --no-config -c 'source ./fish; complete -C $argv[1]' "$1" | cut -f1
  }
  is "fish: subcommands" evacuate-disk "$(fish_offers 'nbdmirror ev')"
  for list in options.*; do
    sub=${list#options.}
    { fish_offers "nbdmirror $sub -"; fish_offers "nbdmirror $sub control " | sed 's/=.*/=/'; } |
      offered fish "$sub"
  done
  fish_offers 'nbdmirror migrate --disk c=a,verify=on,sync=' | grep -qx '.*,sync=top.*' ||
    fail "fish does not offer parts of a value"
  is "fish: choices" throttle "$(fish_offers 'nbdmirror mirror --policy thr')"
fi

note "the parameters of the mirror filter"
"${nbdmirror_prefix[@]}" "${server_env[@]}" "$python" - "$NBDMIRROR_FILTER" \
  "$srcdir/docs/nbdkit-mirror-filter.pod" <<'END' || fail "see above"
import re, subprocess, sys

program, page = sys.argv[1:]
section = re.search(r"^=head1 PARAMETERS$.*?(?=^=head1)", open(page, encoding="utf-8").read(),
                    re.M | re.S)[0]
manual = set(re.findall(r"^=item B<(mirror-[a-z-]+)=", section, re.M))
text = subprocess.run(["nbdkit", f"--filter={program}", "null", "--help"], capture_output=True,
                      text=True, check=True)
helped = set(re.findall(r"^ *(mirror-[a-z-]+)=<", text.stdout, re.M))
for name in sorted(manual ^ helped):
    print(f"{name}: it is in --help or in the page only")
sys.exit(manual != helped or len(manual) < 10)
END

note "the fields of status --json"
truncate -s 1M "$tmp/disk"
start_server plain "$tmp/disk"
truncate -s 1M "$tmp/other"
start_stateful stateful "$tmp/other" "$tmp/state"
for name in plain stateful; do
  nbdmirror status --json "${control[$name]}" >"$name.json"
done
"$python" - "$srcdir/docs/nbdmirror.pod" plain.json stateful.json <<'END' || fail "see above"
import json, re, sys

manual, plain, stateful = sys.argv[1:]
section = re.search(r"^=head1 STATUS FIELDS$.*?(?=^=head1)", open(manual, encoding="utf-8").read(),
                    re.M | re.S)[0]
told = set(re.findall(r"B<([a-z-]+)>", " ".join(re.findall(r"^=item (.*)$", section, re.M))))
with_state = set(json.load(open(stateful, encoding="utf-8")))
without = set(json.load(open(plain, encoding="utf-8")))
wrong = [f"{name}: with --state it is in the manual or in the status only"
         for name in sorted(told ^ with_state)]
wrong += [f"{name}: without --state it is in the manual or in the status only"
          for name in sorted({n for n in told if not n.startswith("state-")} ^ without)]
if len(told) < 70:
    wrong.append(f"the manual has only {sorted(told)}")
print("\n".join(wrong))
sys.exit(wrong != [])
END
