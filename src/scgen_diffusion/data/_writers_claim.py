"""Whose turn it is, of processes that share nothing but a folder, perhaps on several machines."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX, OWNER, GIVEN_UP = "turn-", "owner.json", "given-up"
PATIENCE = 60.0  # seconds without a sign of life after which another machine's process is taken for dead
SIGNS = 6  # of life that fit into it


class LostTurnError(Exception):
    """The work was taken over by another process."""


@dataclass(frozen=True)
class Turn:
    """A folder that only one process can make, and that says which.

    Parameters
    ----------
    path
        The folder.
    """

    path: Path

    def show_life(self) -> None:
        """Tell those who look on that the work goes on."""
        os.utime(self.path / OWNER)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Show life all the time, whatever the work is; if the process is killed, that ends with it."""
        over = threading.Event()
        heart = threading.Thread(target=self._beat, args=(over,), name=f"life of {self.path.name}", daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join(PATIENCE / SIGNS)  # no longer: a file system that hangs would hang this, too

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(PATIENCE / SIGNS):
            try:
                self.show_life()
            except FileNotFoundError:  # taken over, and done
                return
            except OSError:  # a network file system may come back
                continue

    def is_taken_over(self) -> bool:
        """Tell whether another process has taken this one for dead, and is at the same work."""
        return _last_turn(self.path.parent) > _number(self.path)

    def insist(self) -> None:
        """Raise unless it is still this process' turn.

        Raises
        ------
        LostTurnError
            If another process has begun, and perhaps finished, the work.
        """
        if self.is_taken_over() or not self.path.exists():
            msg = f"Nobody saw this process do anything for {PATIENCE:.0f} s, and another one has taken over its work."
            raise LostTurnError(msg)

    def give_up(self) -> None:
        """Leave the work to others, if it is still there."""
        with suppress(FileNotFoundError):
            (self.path / OWNER).unlink(missing_ok=True)
            (self.path / GIVEN_UP).touch()


def take_turn(folder: Path, *, wait: bool) -> Turn | None:
    """Take on work that one process shall do, unless another one is at it.

    Turns are numbered, and none is taken back: after a dead process the next number is taken, which again only one can. Work so
    divided must do no harm if it is done twice, for a process that sleeps longer than :data:`PATIENCE` counts as dead.

    Parameters
    ----------
    folder
        What the processes share.
    wait
        Whether to look on if another one is at work, and to take over if it dies; or else to leave at once.

    Returns
    -------
    Turn, optional
        None if it is another process' turn, or if the folder is gone, because all is done.
    """
    watch: _Watch | None = None
    while True:
        number = _last_turn(folder)
        if watch is None or watch.number != number:
            watch = _Watch(folder / f"{PREFIX}{number}", number)
        if number >= 0 and not watch.is_over():
            if not wait:
                return None
            time.sleep(0.05)
            continue
        turn = Turn(folder / f"{PREFIX}{number + 1}")
        try:
            turn.path.mkdir()
            (turn.path / OWNER).write_text(json.dumps([socket.gethostname(), os.getpid()]))
        except FileExistsError:  # another one was quicker
            continue
        except FileNotFoundError:
            return None
        return turn


def _last_turn(folder: Path) -> int:
    """Return the number of the last turn that was taken, -1 for none."""
    return max(map(_number, folder.glob(f"{PREFIX}*")), default=-1)


def _number(turn: Path) -> int:
    return int(turn.name.removeprefix(PREFIX))


class _Watch:
    """Looks at who has a turn, without asking any clock but its own."""

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        self._path = path
        self._seen: float | None = None
        self._since = time.monotonic()

    def is_over(self) -> bool:
        """Tell whether the owner gave up, is known to be dead, or was not seen to do anything for long."""
        return (self._path / GIVEN_UP).exists() or self._owner_is_dead() or self._seconds_without_sign() > PATIENCE

    def _owner_is_dead(self) -> bool:
        """Tell whether the owner ran on this machine, and runs no more."""
        try:
            host, process = json.loads((self._path / OWNER).read_text())
        except (OSError, ValueError):
            return False
        return host == socket.gethostname() and (process == os.getpid() or not _runs(process))

    def _seconds_without_sign(self) -> float:
        try:
            with (self._path / OWNER).open() as file:  # opened, since NFS remembers for a minute what `stat` said
                seen = os.fstat(file.fileno()).st_mtime
        except OSError:
            seen = None
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since


def _runs(process: int) -> bool:
    if os.name == "nt":  # where the question would be an order
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def token() -> str:
    """Return a name that nobody else uses."""
    return uuid.uuid4().hex[:12]
