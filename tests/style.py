#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the house's style asks for and clang-format cannot tell.  Each finding is a line
"FILE:LINE: what is wrong"; the exit status is 1 if there is one.  Called by style.sh.

usage: style.py TREE [PATH...]      (only files below PATH, to look at one folder)
"""

import glob
import os
import re
import sys

COLUMNS = 100
FUNCTION_LINES = 70

TOP = ["Makefile.am", "configure.ac", "bootstrap", "quickstart", "README.md", "HACKING.md",
       "SECURITY.md", "CHANGELOG.md"]
ENDINGS = (".c", ".h", ".md", ".mk", ".pml", ".pod", ".py", ".sh", ".am", ".ac")

# Runs alone in a guest that has neither our libraries nor config.h.
ALONE = ["tests/guest/recorder.c"]

findings = 0


def complain(path, number, what):
    global findings
    findings += 1
    print(f"{path}:{number}: {what}")


def files(tree, only):
    """Paths relative to TREE, of everything that is written by hand."""
    folders = [os.path.dirname(path) for path in glob.glob("*/local.mk", root_dir=tree)]
    found = [name for name in TOP if os.path.exists(os.path.join(tree, name))]
    for folder in folders + ["completions"]:
        for where, dirs, names in os.walk(os.path.join(tree, folder)):
            dirs[:] = [d for d in dirs if d != "__pycache__"]
            for name in names:
                if name.endswith(ENDINGS):
                    found.append(os.path.relpath(os.path.join(where, name), tree))
    for path in sorted(found):
        if not only or any(path == o or path.startswith(o.rstrip("/") + "/") for o in only):
            yield path


# ---- every file ----------------------------------------------------------------------------

def check_lines(path, lines):
    for number, line in enumerate(lines, 1):
        width = len(line.expandtabs(8))
        if width > COLUMNS and not (path.endswith(".md") and line.startswith("|")):
            complain(path, number, f"{width} columns, at most {COLUMNS} are allowed")
        if line != line.rstrip():
            complain(path, number, "blanks at the end of the line")


def check_paths(tree, path, lines):
    """What a page in backquotes calls a file of ours is there."""
    for number, line in enumerate(lines, 1):
        for name in re.findall(r"`([\w-]+(?:/[\w.-]+)+/?)`", line):
            if os.path.isdir(os.path.join(tree, name.split("/")[0])) and "NAME" not in name \
                    and not os.path.exists(os.path.join(tree, name)):
                complain(path, number, f"{name} is not there")


# ---- C -------------------------------------------------------------------------------------

def check_includes(path, lines):
    """config.h, then the system's, then ours, each group apart."""
    order = ["config", "system", "ours"]
    seen, last = [], 0
    for number, line in enumerate(lines, 1):
        match = re.match(r'# *include +([<"])([^>"]+)[>"]', line)
        if not match:
            continue
        name = match[2]
        kind = "system" if match[1] == "<" else "config" if name == "config.h" else "ours"
        if kind == "ours" and "/" not in name:
            complain(path, number, f'"{name}": say the path from the top of the tree')
        if seen and order.index(kind) < order.index(seen[-1]):
            complain(path, number, f"{name}: config.h comes first, then the system, then ours")
        if seen and kind != seen[-1] and number == last + 1:
            complain(path, number, f"{name}: an empty line belongs between the two groups")
        seen.append(kind)
        last = number
    if path.endswith(".c") and path not in ALONE and seen[:1] != ["config"]:
        complain(path, 1, '#include "config.h" comes first')
    if path.endswith(".h") and "config" in seen:
        complain(path, 1, "a header does not include config.h, each .c file does")


def check_guard(path, lines):
    guard = "NBDMIRROR_" + re.sub(r"[^A-Z0-9]", "_", path.upper())
    first = next((n for n, l in enumerate(lines) if l.startswith("#")), None)
    if first is None or lines[first] != f"#ifndef {guard}" \
            or lines[first + 1] != f"#define {guard}" or lines[-1] != "#endif":
        complain(path, (first or 0) + 1, f"the include guard is to be {guard}")


def functions(lines):
    """(first line of the body, the lines of the body), without the braces."""
    start = None
    for number, line in enumerate(lines, 1):
        if line == "{" and start is None:
            start = number
        elif line == "}" and start is not None:
            yield start + 1, lines[start:number - 1]
            start = None


DECLARATION = re.compile(
    r"(?P<indent> +)(?:(?:const|volatile|unsigned|signed|long|short|struct|enum|union|CLEANUP_\w+)"
    r" +)*(?P<type>[A-Za-z_]\w*)(?: +const)? +(?P<names>[^()]+);(?: +/\*.*)?$")
STATEMENTS = {"return", "goto", "typedef", "extern", "static", "else", "case", "break", "continue",
              "do"}


def bare_names(line):
    """The names that a line declares without giving them a value, and its indentation."""
    match = DECLARATION.match(line)
    if not match or match["type"] in STATEMENTS or " = " in match["names"] and \
            "," not in match["names"]:
        return [], 0
    names = []
    for part in re.split(r",(?![^{]*})", match["names"]):
        name = re.fullmatch(r"\s*\**\s*(?:const )?(\w+)\s*", part)
        if name:
            names.append(name[1])
    return names, len(match["indent"])


def indentation(line):
    return len(line) - len(line.lstrip(" "))


def check_declarations(path, first, body):
    """A variable is declared where it gets its first value.  Seen are those that are declared
    without one and then, first of all, assigned: in the same block, in a for, or in one block
    further in which is the only one that uses them."""
    for i, line in enumerate(body):
        names, indent = bare_names(line)
        for name in names:
            word = re.compile(rf"(?<![\w.>]){name}\b")
            uses = [j for j in range(i + 1, len(body)) if word.search(body[j])]
            if not uses:
                continue
            use = uses[0]
            deeper = indentation(body[use])
            is_for = re.match(rf" *for \({name} = ", body[use])
            if not is_for and not re.match(rf" *{name} = ", body[use]):
                continue
            if not is_for and deeper > indent:
                end = next((j for j in range(use, len(body))
                            if body[j] and indentation(body[j]) < deeper), len(body))
                if any(j >= end for j in uses):
                    continue
                before = body[use - 1].rstrip()
                if before.endswith((")", "else", ":")):    # no braces: it is the only statement
                    continue
            elif is_for:
                end = next((j for j in range(use + 1, len(body))
                            if body[j] and indentation(body[j]) <= deeper
                            and body[j].strip() != "{" and not re.match(" *}$", body[j])),
                           len(body))
                if any(j >= end for j in uses):
                    continue
            complain(path, first + i, f"{name}: declare it where it is first set, in line"
                                      f" {first + use}")


def check_c(path, lines):
    check_includes(path, lines)
    if path.endswith(".h"):
        check_guard(path, lines)
    for first, body in functions(lines):
        if len(body) > FUNCTION_LINES:
            complain(path, first - 1, f"a function of {len(body)} lines, at most {FUNCTION_LINES}"
                                      " are allowed")
        check_declarations(path, first, body)
    if path in ALONE:
        return
    for number, line in enumerate(lines, 1):
        if re.search(r"\bclock_gettime \(", line) and path != "base/clock.c":
            complain(path, number, "time is read with base/clock.h")
        if re.match(r"# *define NS_PER_", line) and path != "base/clock.h":
            complain(path, number, "units of time are in base/clock.h")
        if re.search(r"[^_]\bfree \(\*?(error|message|class_|warning)\)", line):
            complain(path, number, "texts of base/text.h are freed with text_free()")


def main():
    tree, only = sys.argv[1], sys.argv[2:]
    for path in files(tree, only):
        with open(os.path.join(tree, path), encoding="utf-8") as f:
            lines = f.read().splitlines()
        check_lines(path, lines)
        if path.endswith(".md"):
            check_paths(tree, path, lines)
        if path.endswith((".c", ".h")):
            check_c(path, lines)
    sys.exit(findings > 0)


main()
