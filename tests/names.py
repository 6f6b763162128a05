#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a name means one thing in the whole tree: no two source files have an external
function or variable of the same name, and no two headers the same include guard.  In C nothing else
keeps two parts apart that are linked into different programs today and into one tomorrow.

It reads the objects of the build directory in which it is started, after make has made them.
"""

import collections
import glob
import os
import re
import subprocess
import sys

# Every program has the first, every nbdkit filter the second.
EVERYWHERE = {"main", "filter_init"}

srcdir = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")

# Those that have a makefile of their own; tests/ has programs, too.
folders = [os.path.dirname(path) for path in glob.glob("*/local.mk", root_dir=srcdir)]


def walk(top, ending):
    """The paths below the folders of TOP that end with ENDING, relative to TOP."""
    for folder in folders:
        for where, _, names in os.walk(os.path.join(top, folder)):
            for name in names:
                if name.endswith(ending):
                    yield os.path.relpath(os.path.join(where, name), top)


def source_of(path):
    """The source of an object, or None if the object is left over: its source was renamed, or is
    newer, because nothing needs this object any more.  automake puts what an object belongs to
    before its name (nbdkit_mirror_filter_la-gate.o), and libtool has a folder of its own for
    them."""
    made = os.path.getmtime(path)
    folder, name = os.path.split(path)
    folder = re.sub(r"/\.libs$", "", folder)
    name = name[:-2]
    for name in (name, name.split("-", 1)[-1]):
        source = f"{folder}/{name}.c"
        there = os.path.join(srcdir, source)
        if os.path.exists(there):
            return source if os.path.getmtime(there) <= made else None
    return None


def included_sources(source):
    """Some unit tests include the .c file that they test."""
    with open(os.path.join(srcdir, source), encoding="utf-8") as f:
        return re.findall(r'^#include "([^"]+\.c)"', f.read(), re.M)


def external_names():
    """{name: {source files that define it}}"""
    objects = {path: source_of(path) for path in walk(".", ".o")}
    objects = {path: source for path, source in objects.items() if source}
    if not objects:
        sys.exit("no objects here: run it in a build directory, after make")
    listing = subprocess.run(["nm", "-A", "-P", "-g", "--defined-only", *objects], check=True,
                             stdout=subprocess.PIPE, encoding="utf-8").stdout
    names = collections.defaultdict(set)
    for line in listing.splitlines():
        path, name, kind = line.split()[:3]
        if kind in "TDBRC" and name not in EVERYWHERE:
            names[name].add(objects[path.rstrip(":")])
    for sources in names.values():
        for source in sorted(sources):
            if len(sources) > 1 and sources.intersection(included_sources(source)):
                sources.discard(source)
    return names


def guards():
    """{include guard: {headers that have it}}"""
    found = collections.defaultdict(set)
    for path in walk(srcdir, ".h"):
        with open(os.path.join(srcdir, path), encoding="utf-8") as f:
            match = re.search(r"^#ifndef (\w+)$", f.read(), re.M)
        if match:
            found[match[1]].add(path)
    return found


def main():
    twice = 0
    names, headers = external_names(), guards()
    for found in (names, headers):
        for name, where in sorted(found.items()):
            if len(where) > 1:
                twice += 1
                print(f"{name} is defined in {' and '.join(sorted(where))}")
    print(f"{len(names)} external names and {len(headers)} include guards, {twice} of them twice")
    sys.exit(twice > 0)


main()
