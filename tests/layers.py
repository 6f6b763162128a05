#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that the table "Where a line of code belongs" of HACKING.md tells the truth: it has a row
for each folder of C code, a folder includes only what its row allows, and no two folders use each
other.  The map in docs/where.md has the same folders.

The third column of a row names folders and single headers in backquotes, and libraries without.  A
folder may also use what the folders that it names may use, but no library of theirs.
"""

import glob
import os
import re
import sys

# The libraries by their headers; all other system headers are libc's.
LIBRARIES = {"jansson.h": "jansson", "libaio.h": "libaio", "libnbd.h": "libnbd",
             "nbdkit-filter.h": "nbdkit", "nbdkit-plugin.h": "nbdkit",
             "xxhash.h": "libxxhash", "zstd.h": "libzstd"}

tree = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")

# The folders that have a makefile of their own, but for those that nothing is built on.
code = {os.path.dirname(path) for path in glob.glob("*/local.mk", root_dir=tree)}
code -= {"bench", "docs", "tests"}

findings = []


def read_table():
    """{folder: (folders and headers it names, libraries it names)}, in the order of the rows."""
    rows = {}
    with open(os.path.join(tree, "HACKING.md"), encoding="utf-8") as f:
        for line in f:
            match = re.fullmatch(r"\| `([^`]+)/` \|[^|]*\|([^|]*)\|", line.strip())
            if match and match[1].split("/")[0] in code:
                cell = match[2]
                names = re.findall(r"`([^`]+?)/?`", cell)
                libraries = re.findall(r"[\w-]+", re.sub(r"`[^`]*`", "", cell))
                rows[match[1]] = (names, [word for word in libraries if word != "libc"])
    if not rows:
        sys.exit("HACKING.md has no table of folders")
    return rows


def sources():
    """Every C file and header of the code, by its path."""
    for top in sorted(code):
        for where, _, names in os.walk(os.path.join(tree, top)):
            for name in sorted(names):
                if name.endswith((".c", ".h")):
                    yield os.path.relpath(os.path.join(where, name), tree)


def row_of(rows, path):
    """The folder of the table to which a file belongs: the longest that fits."""
    fitting = [folder for folder in rows if path.startswith(folder + "/")]
    return max(fitting, key=len, default=None)


def usable(rows, folder, above=()):
    """All folders and headers that FOLDER may use."""
    if folder in above:
        findings.append("HACKING.md: these use each other: " + ", ".join(above))
        return set()
    names = set()
    for name in rows[folder][0]:
        names.add(name)
        if name in rows:
            names |= usable(rows, name, above + (folder,))
        elif not os.path.exists(os.path.join(tree, name)) or not name.endswith(".h"):
            findings.append(f"HACKING.md: {folder} may use {name}, which is no row and no header")
    return names


def check_file(rows, path):
    folder = row_of(rows, path)
    if folder is None:
        findings.append(f"HACKING.md: no row for the folder of {path}")
        return
    allowed = usable(rows, folder) | {folder}
    with open(os.path.join(tree, path), encoding="utf-8") as f:
        text = f.read()
    for ours, system in re.findall(r'^# *include (?:"([^"]+)"|<([^>]+)>)', text, re.M):
        if ours and ours != "config.h" and ours not in allowed \
                and row_of(rows, ours) not in allowed:
            findings.append(f"{path}: {folder} may not use {ours}")
        if system in LIBRARIES and LIBRARIES[system] not in rows[folder][1]:
            findings.append(f"{path}: {folder} may not use {LIBRARIES[system]}")


def main():
    rows = read_table()
    files = list(sources())
    for path in files:
        check_file(rows, path)
    with open(os.path.join(tree, "docs/where.md"), encoding="utf-8") as f:
        where = f.read()
    for folder in rows:
        if f"    {folder}/ " not in where and folder != "nbd-plugin":
            findings.append(f"docs/where.md: the list of folders lacks {folder}/")
        if not any(row_of(rows, path) == folder for path in files):
            findings.append(f"HACKING.md: there is no code in {folder}")
    for finding in sorted(set(findings)):
        print(finding)
    print(f"{len(files)} files in {len(rows)} folders")
    sys.exit(bool(findings))


main()
