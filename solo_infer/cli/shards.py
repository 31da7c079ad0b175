"""Images of ``solo-infer predict`` that several processes share."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from solo_infer.cli import options
from solo_infer.errors import ResultError
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.shards import WHOLE, Shard, environment_shard

__all__ = ["WHOLE", "Shard", "add_option", "find_misuse", "joined", "require_own_names", "select"]

_DIGITS = 9  # most of a number


def add_option(group: options.Group) -> None:
    """Add ``--shard``."""
    group.add_argument(
        "--shard",
        type=_parse,
        metavar="I/N",
        help="segment only the images I, I+N, I+2N, ... of the list, counted from 0, and write files whose "
        "names end in -I-of-N, for N processes such as a job array (default: all, or the share of a process "
        "that torchrun has started)",
    )


def _parse(text: str) -> Shard:
    match = re.fullmatch(rf"(\d{{1,{_DIGITS}}})/(\d{{1,{_DIGITS}}})", text, re.ASCII)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I of 0..N-1, such as 0/4, got {text[:40]!r}")
    return Shard(int(match[1]), int(match[2]))


def select(args: argparse.Namespace) -> Shard:
    """Return the share of this process: that of ``--shard``, else that of torchrun, else all.

    Raises:
        ConfigError: The variables of torchrun are not numbers.
    """
    return args.shard or environment_shard()


def find_misuse(args: argparse.Namespace, shard: Shard, *, prints_file: bool) -> str | None:
    """Return a message about outputs that several processes cannot share, None if there are none.

    Args:
        args: Parsed arguments.
        shard: Share of this process.
        prints_file: Whether one JSON array or one file is written to standard output.
    """
    if args.shard is None and shard.count > 1 and prints_file:
        return (
            f"{shard.count} processes of torchrun would print into the results of one another: write to a "
            "file, or print --json-lines"
        )
    return None


@contextmanager
def joined(args: argparse.Namespace, shard: Shard) -> Iterator[None]:
    """Give the device of the parsed arguments that of this process, and end with the other processes.

    torchrun stops all processes when one of them ends with an error code, such as after a damaged image.

    Args:
        args: Parsed arguments, which are changed.
        shard: Share of this process.

    Raises:
        DeviceError: torchrun has started more processes than there are CUDA devices.
    """
    if args.shard is not None or shard.count == 1 or "MASTER_ADDR" not in os.environ:
        yield
        return
    from solo_infer.runtime.distributed import ending_together, local_device

    args.device = str(local_device(args.device))
    with ending_together():
        yield


def require_own_names(path_of: Callable[[str], Path], sources: Sequence[str], shard: Shard) -> None:
    """Check that the files of different sources have different names, if processes share the sources.

    A single process numbers equal names, but processes do not know the names of one another.

    Args:
        path_of: Returns the path of the file of a source.
        sources: Sources of all processes.
        shard: Share of this process.

    Raises:
        ResultError: Two sources have files of one name.
    """
    if shard.count == 1:
        return
    seen: dict[str, str] = {}
    for source in sources:
        path = path_of(source)
        other = seen.setdefault(str(path).casefold(), source)
        if other != source:
            raise ResultError(
                f"{quoted(other, 200)} and {quoted(source, 200)} would both be written to "
                f"{quoted(path, 200)} by different processes: segment them in separate runs with separate "
                "outputs, or without --shard."
            )
