"""Claims: one writer for an output, on every machine that shares the file system.

A claim is a small file ``.NAME.claim`` beside the output, made with its content in one step that
fails where it exists (``link``, which every shared file system has, unlike locks). It names its
owner, who touches it every few seconds. A dead owner's claim is taken over under a ticket that is
named by that claim, so that of many who find it dead one alone removes it.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.claimfile import Seen, age, create, read
from shardmerge.base.errors import UserError
from shardmerge.base.owner import Owner, is_dead, this_process


def part_path(target: str | os.PathLike[str]) -> Path:
    """Return a new path beside an output to write it to, before it gets its name."""
    target = Path(target)
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")


def remove_parts(target: str | os.PathLike[str], older_than: float = 0) -> None:
    """Remove unfinished files of an output, which are nobody's once it is claimed.

    Args:
        target: The output.
        older_than: Seconds since a part was last written to, for who does not hold the claim.
    """
    target = Path(target)
    now = time.time()
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(target.parent) if name.endswith(".part")]
    for part in [target.parent / name for name in names if name.startswith(f".{target.name}.")]:
        with contextlib.suppress(OSError):
            if not older_than or now - part.stat().st_mtime > older_than:
                part.unlink()


Say = Callable[[str], None]


@dataclass(frozen=True)
class Patience:
    """How long a claim lasts that nobody touches, in seconds.

    Args:
        beat: Between two touches.
        late: Without a touch, after which SLURM is asked whether the owner's job still runs.
        stale: Without a touch, after which the owner counts as dead whatever is known of it.
        poll: Between two looks of a process that waits.
    """

    beat: float = 15
    late: float = 60
    stale: float = 600
    poll: float = 2


_PATIENCE = Patience()


class HeldError(UserError):
    """Another process holds the claim.

    Args:
        target: The claimed output.
        owner: Who holds it.
    """

    def __init__(self, target: Path, owner: Owner) -> None:
        self.owner = owner
        super().__init__(f"is being written by {owner}", str(target))


class Claim:
    """A claim that this process holds.

    Args:
        target: The claimed output.
        token: What tells this claim from all others.
        waited: Whether another process held it before, while this one waited.
    """

    def __init__(self, target: Path, token: str, waited: bool) -> None:
        self.target, self.token, self.waited = target, token, waited
        self._path = _claim_path(target)
        self._done = threading.Event()

    def confirm(self) -> None:
        """Make sure that the claim is still this process's.

        Raises:
            UserError: If another process took it over, for want of a sign of life.
        """
        seen = read(self._path)
        if seen and seen.owner.token == self.token:
            return
        taker = f" by {seen.owner}" if seen else ""
        raise UserError(
            f"was taken over{taker}: this process gave no sign of life for too long",
            str(self.target),
            "Nothing was written over. The other process finishes the file.",
        )

    def start(self, beat: float) -> None:
        """Touch the claim every so many seconds from now on, in a thread of its own."""
        threading.Thread(target=self._beat, args=(beat,), daemon=True).start()

    def release(self) -> None:
        """Give the claim up."""
        self._done.set()
        with contextlib.suppress(OSError):
            seen = read(self._path)
            if seen and seen.owner.token == self.token:
                self._path.unlink()

    def _beat(self, seconds: float) -> None:
        while not self._done.wait(seconds):
            with contextlib.suppress(OSError):
                os.utime(self._path)


_held: dict[Path, Claim] = {}
_until_exit = contextlib.ExitStack()
atexit.register(_until_exit.close)


@contextlib.contextmanager
def claimed(
    target: str | os.PathLike[str],
    say: Say | None = None,
    patience: Patience = _PATIENCE,
    wait: bool = True,
) -> Iterator[Claim]:
    """Hold the claim on an output, when no other process does any more.

    What is left of unfinished files beside it is then nobody's, and is removed. A process that
    holds the claim already gets the same one.

    Args:
        target: The output.
        say: Takes a line where it waits, and where it takes a dead owner's claim over.
        patience: How long a claim lasts that nobody touches.
        wait: Whether to wait for another process. One that has been silent for long is watched
            for a while in any case, so that the dead make way.

    Raises:
        HeldError: If another process holds it, and this one shall not wait.
        UserError: If the folder cannot be written to.
    """
    target = _absolute(target)
    if target in _held:
        yield _held[target]
        return
    claim = _held[target] = _wait_for(target, say or (lambda line: None), patience, wait)
    try:
        claim.start(patience.beat)
        remove_parts(target)
        yield claim
    finally:
        del _held[target]
        claim.release()


def hold(*targets: str | os.PathLike[str], say: Say | None = None, wait: bool = True) -> bool:
    """Hold the claims on a job's outputs until the process ends.

    Args:
        targets: The outputs, in an order that all jobs keep that share some of them.
        say, wait: As in ``claimed``.

    Returns:
        Whether another process held one of them before, while this one waited.

    Raises:
        UserError: As ``claimed`` does.
    """
    held = [_until_exit.enter_context(claimed(t, say, wait=wait)) for t in targets]
    return any(claim.waited for claim in held)


def release_all() -> None:
    """Give up what ``hold`` holds, for a process that ends otherwise than by an exit."""
    _until_exit.close()


def confirm(target: str | os.PathLike[str]) -> None:
    """Make sure of the claim on an output, if this process holds one (``Claim.confirm``)."""
    if claim := _held.get(_absolute(target)):
        claim.confirm()


def wait_for(target: str | os.PathLike[str], say: Say, patience: Patience = _PATIENCE) -> None:
    """Wait until nobody who lives holds the claim on an output, without taking it."""
    told = None
    while owner := holder(target, patience):
        if owner != told:
            told = owner
            say(f"waiting: {Path(target).name} is being written by {owner}")
        time.sleep(patience.poll)


def holder(target: str | os.PathLike[str], patience: Patience = _PATIENCE) -> Owner | None:
    """Return the living owner of an output's claim, or None."""
    path = _claim_path(_absolute(target))
    seen = read(path)
    if seen is None:
        return None
    with contextlib.suppress(OSError):  # in a folder that cannot be written to nobody claims
        return None if is_dead(seen.owner, age(path, seen), patience) else seen.owner
    return None


def minutes_to_stale() -> int:
    """Return minutes without a sign of life after which any owner counts as dead."""
    return round(_PATIENCE.stale / 60)


def _wait_for(target: Path, say: Say, patience: Patience, wait: bool) -> Claim:
    path, token = _claim_path(target), secrets.token_hex(6)
    waits_for, last = None, None
    since = time.monotonic()
    pause = min(0.1, patience.poll)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (other := _take(path, token, patience, watched=time.monotonic() - since)) is not None:
            if not (wait or _is_silent(path, other, patience)):
                raise HeldError(target, other.owner)
            if last is None or (other.owner.token, other.touched) != last:
                last, since = (other.owner.token, other.touched), time.monotonic()
            if waits_for != other.owner:
                waits_for = other.owner
                say(f"waiting: {target.name} is being written by {waits_for}" if wait else
                    f"{waits_for} has given no sign of life for long; watching for "
                    f"{patience.late:.0f} s more")  # fmt: skip
            time.sleep(pause)
            pause = min(2 * pause, patience.poll)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", str(target)) from None
    for left in path.parent.glob(f"{glob.escape(path.name)}.*"):  # no other process needs them
        with contextlib.suppress(OSError):
            left.unlink()
    return Claim(target, token, waits_for is not None)


def _is_silent(path: Path, seen: Seen, patience: Patience) -> bool:
    """Return whether an owner counts as dead if it goes on giving no sign of life."""
    return is_dead(seen.owner, age(path, seen), patience)


def _take(path: Path, token: str, patience: Patience, watched: float) -> Seen | None:
    """Make a claim (or ticket); return None, or who has it and lives.

    A ticket is a claim on the removal of one dead claim. Who holds it makes sure that the dead
    claim is still there; it can go in no other way.
    """
    text = json.dumps(this_process(token).to_json())
    while not create(path, text):
        if (seen := read(path)) is None:
            continue
        if not is_dead(seen.owner, age(path, seen), patience, watched):
            return seen
        ticket = path.with_name(f"{path.name}.{seen.owner.token}")
        if _take(ticket, token, patience, watched) is not None:
            return seen
        try:
            now = read(path)
            if now and now.owner.token == seen.owner.token:
                path.unlink(missing_ok=True)
        finally:
            ticket.unlink(missing_ok=True)
    return None


def _claim_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.claim")


def _absolute(target: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(Path(target).parent), Path(target).name)
