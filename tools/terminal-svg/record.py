#!/usr/bin/env python3
"""Runs a command in a pseudo-terminal and draws its output as an animated SVG.

usage: record.py OUT.svg 'COMMAND AS SHOWN' program arguments...

The picture is self-contained: it has no script, loads no font and uses no network. It shows the text in the order and at
the pace of the command, with shorter pauses. Readers who set their system to reduced motion see all of it at once. The
program needs only Python's standard library.
"""

import html
import os
import pty
import select
import sys
import time

COLUMNS = 96
LONGEST_PAUSE = 0.4  # seconds
CHAR, LINE, PAD = 8.4, 20, 16  # of the font at 14 px


def run(argv):
    """The pieces of output, each with the time at which it arrived."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.environ["COLUMNS"] = str(COLUMNS)
        os.execvp(argv[0], argv)
    pieces, started = [], time.monotonic()
    while True:
        select.select([fd], [], [])
        try:
            data = os.read(fd, 4096)
        except OSError:  # the program has gone
            break
        if not data:
            break
        pieces.append((time.monotonic() - started, data))
    os.waitpid(pid, 0)
    return pieces


def cells(pieces):
    """Lines of (time, dim, text) runs, wrapped at the width of the terminal."""
    data = b"".join(piece for _, piece in pieces)
    times = [t for t, piece in pieces for _ in piece]
    text, lines, column, dim = data.decode("utf-8", "replace"), [[]], 0, False
    at, i = 0, 0  # bytes, characters
    while i < len(text):
        c = text[i]
        if c == "\x1b":
            end = i + 2
            while end < len(text) and not text[end].isalpha():
                end += 1
            code = text[i + 2 : end]
            if text[end : end + 1] == "m":
                dim = code == "2" if code in ("2", "0", "") else dim
            at += len(text[i : end + 1].encode())
            i = end + 1
            continue
        now = times[min(at, len(times) - 1)]
        at += len(c.encode())
        i += 1
        if c == "\r":
            continue
        if c == "\n" or column == COLUMNS:
            lines.append([])
            column = 0
            if c == "\n":
                continue
        runs = lines[-1]
        if runs and runs[-1][1] == dim and abs(runs[-1][0] - now) < 0.05:
            runs[-1][2] += c
        else:
            runs.append([now, dim, c])
        column += 1
    while lines and not lines[-1]:
        lines.pop()
    return lines


def paced(lines):
    """The time at which each piece appears, without long pauses."""
    moments = sorted({run[0] for line in lines for run in line})
    shown, clock, before = {}, 1.0, moments[0] if moments else 0.0
    for moment in moments:
        clock += min(moment - before, LONGEST_PAUSE)
        shown[moment], before = clock, moment
    return shown


def draw(title, lines):
    shown = paced(lines)
    height = PAD * 2 + 28 + LINE * (len(lines) + 1)
    width = PAD * 2 + CHAR * COLUMNS
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" role="img">',
        f"<title>{html.escape(title)}</title>",
        "<style>",
        "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#e6e9ec;white-space:pre}",
        ".d{fill:#8b96a3}.p{fill:#3fc39f}",
        "@keyframes s{from{opacity:0}}",
        "@media (prefers-reduced-motion:no-preference){.r{animation:s .01s both}}",
        "</style>",
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#14171b"/>',
    ]
    for i, colour in enumerate(["#ef7a6d", "#e0a23b", "#3fc39f"]):
        svg.append(f'<circle cx="{PAD + 6 + 18 * i}" cy="{PAD + 4}" r="5.5" fill="{colour}"/>')
    y = PAD + 28 + 14
    svg.append(f'<text x="{PAD}" y="{y}"><tspan class="p">$ </tspan>{html.escape(title)}</text>')
    for line in lines:
        y += LINE
        column = 0
        for moment, dim, text in line:
            x = PAD + CHAR * column
            column += len(text)
            if not text.strip():
                continue
            css = "r d" if dim else "r"
            # The width keeps columns in place, whatever font the reader has.
            svg.append(
                f'<text class="{css}" style="animation-delay:{shown[moment]:.2f}s" x="{x:.1f}" y="{y}"'
                f' textLength="{CHAR * len(text):.1f}" lengthAdjust="spacingAndGlyphs">{html.escape(text)}</text>'
            )
    svg.append("</svg>\n")
    return "\n".join(svg)


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    out, title, *argv = sys.argv[1:]
    svg = draw(title, cells(run(argv)))
    with open(out + ".part", "w", encoding="utf-8") as file:
        file.write(svg)
    os.replace(out + ".part", out)


if __name__ == "__main__":
    main()
