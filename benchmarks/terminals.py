"""What commands look like on terminals of 80 and 120 columns: text files, to be looked at.

    make terminal-pictures

Each command has a terminal of its own (tmux), which is captured when the command has ended, or, for those that are to
be seen at work, once they show a certain text; these are then interrupted.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT

__all__ = ["WIDTHS", "Shot", "capture"]

WIDTHS = (80, 120)
_LINES = 70
_PHOTOS = ROOT / "examples" / "photos" / "demo-{0000..0002}.tar"
_MANY = 24  # tars for what is to be seen at work
_LONGEST_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A command, and when it is captured: once it shows `until`, or at its end."""

    name: str
    command: str
    until: str | None = None


SHOTS = (
    Shot(name="help", command="tatok --help"),
    Shot(name="tokenize-help", command="tatok tokenize --help"),
    Shot(name="dry-run", command=f"tatok tokenize '{_PHOTOS}' tokens --dry-run"),
    Shot(name="tokenize-at-work", command="tatok tokenize 'many-*.tar' many -v", until="images/s"),
    Shot(name="tokenize", command=f"tatok tokenize '{_PHOTOS}' tokens"),
    Shot(name="stats", command="tatok stats tokens"),
    Shot(name="query", command="tatok query tokens 'SELECT * FROM tokens LIMIT 5'"),
    Shot(name="verify", command="tatok verify tokens"),
    Shot(
        name="train-at-work",
        command=f"tatok train train-photos-256 --images '{_PHOTOS}' --heldout '{_PHOTOS}' --output trained",
        until="/s",
    ),
)


def capture(shot: Shot, columns: int, folder: Path) -> str:
    """What a terminal of that width shows, run in that folder."""
    ended = folder / f".{shot.name}-{columns}-ended"
    session = f"{shot.name}-{columns}"
    shell = f"cd {folder}; echo {shlex.quote(f'$ {shot.command}')}; {shot.command}; touch {ended}; sleep 600"
    _tmux("new-session", "-d", "-s", session, "-x", str(columns), "-y", str(_LINES), shell)
    try:
        deadline = time.monotonic() + _LONGEST_S
        while time.monotonic() < deadline and not ended.exists():
            if shot.until is not None and shot.until in _tmux("capture-pane", "-p", "-t", session):
                break
            time.sleep(0.2)
        time.sleep(0.3)  # the terminal's own time to draw
        return _tmux("capture-pane", "-p", "-t", session).rstrip() + "\n"
    finally:
        if not ended.exists():
            _tmux("send-keys", "-t", session, "C-c")
            time.sleep(3.0)
        _tmux("kill-session", "-t", session)


def _tmux(*arguments: str) -> str:
    command = ["tmux", "-L", "tatok-terminals", "-f", "/dev/null", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    """Write a file for each command and width, all in the folder that is named; with names behind it only these."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[2:]
    for columns in WIDTHS:
        with tempfile.TemporaryDirectory(prefix="tatok-terminal-") as folder:
            for number in range(_MANY):
                (Path(folder) / f"many-{number:02}.tar").symlink_to(_PHOTOS.with_name(f"demo-{number % 3:04}.tar"))
            for shot in SHOTS:
                if not wanted or shot.name in wanted:
                    path = target / f"{shot.name}-{columns}.txt"
                    path.write_text(capture(shot, columns, Path(folder)), encoding="utf-8")
                    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
