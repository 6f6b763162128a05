# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plots of `bench/run load`, with gnuplot: what is left to copy and the guest's latency over time,
of all systems in one case, the first run of each."""

import os
import shutil
import subprocess

import common
import load_systems

COLOURS = {"none": "#1b7837", "sync": "#2166ac", "throttle": "#762a83",
           "qemu-background": "#d6604d", "qemu-write-blocking": "#f4a582"}

SCRIPT = """
set terminal svg size 900,700 background "white" font "sans-serif,13"
set output "{output}"
set multiplot layout 2,1 title "{title}"
set grid
set key outside right top
set xrange [{begin}:{end}]
set lmargin 9
set rmargin 26
set ylabel "left to copy, MiB"
set yrange [0:*]
plot {left}
unset yrange
set ylabel "guest write p99, ms"
set xlabel "seconds since mirroring began"
set logscale y
plot {latency}
unset multiplot
"""


def blocks(results, series, column):
    """The data of one plot, as gnuplot's inline blocks."""
    text = []
    for n, s in enumerate(results):
        points = [(p[0], p[column]) for p in s["runs"][0][series] if p[column] is not None]
        # A plot without any point is an error.
        points = points or [(0, "NaN")]
        text.append(f"${series.replace('-', '_')}{n} << END\n"
                    + "\n".join(f"{x} {y}" for x, y in points) + "\nEND\n")
    return "".join(text)


def lines(results, series):
    return ", ".join(f"${series.replace('-', '_')}{n} using 1:2 with lines linewidth 2 linecolor "
                     f"rgb "
                     f"\"{COLOURS[s['system']]}\" title \"{load_systems.title(s['system'])}\""
                     for n, s in enumerate(results))


def case_of(s):
    return s["rate"], s["pattern"], s["cap"], s["cache"]


def plot(results, output):
    """One SVG for each case, OUTPUT-RATE-PATTERN-CAP-CACHE.svg; says so where gnuplot is
    missing."""
    if not shutil.which("gnuplot"):
        common.say("no plots: gnuplot is not installed (--replot FILE.json makes them later)")
        return
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    for case in dict.fromkeys(map(case_of, results)):
        rate, pattern, cap, cache = case
        path = f"{output}-{rate}-{pattern}-{'nocap' if cap == 'none' else cap}-{cache}.svg"
        title = (f"guest: {pattern} 4 KiB writes, "
                 f"{'unthrottled' if rate == 'max' else f'{rate}/s'}; "
                 + ("no cap" if cap == "none" else f"cap {cap} MiB/s") + f"; {cache}")
        plot_case([s for s in results if case_of(s) == case], title, path)


def plot_case(results, title, path):
    times = [p[0] for s in results for p in s["runs"][0]["guest-series"]]
    script = blocks(results, "left-series", 1) + blocks(results, "guest-series", 2) + SCRIPT.format(
        output=path, title=title, begin=min(times, default=-1), end=max(times, default=1),
        left=lines(results, "left-series"), latency=lines(results, "guest-series"))
    p = subprocess.run(["gnuplot"], input=script, text=True, capture_output=True)
    common.say(f"gnuplot made no {path}: {p.stderr.strip()}" if p.returncode else f"plot in {path}")
