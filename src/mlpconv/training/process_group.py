"""The processes of a run under torchrun: join them, exchange tensors and files, and end all when one fails.

The processes are those that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), as torchrun, Slurm and
Kubernetes set it. Gloo connects CPUs, NCCL connects GPUs.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from mlpconv.errors import Interrupted, MlpconvError, TrainingError, UsageError
from mlpconv.training.heartbeat import Heartbeat, Member

__all__ = ["Group", "current", "in_process_group", "tree_sum", "under_torchrun"]

JOIN_SECONDS = 120.0
"""How long a process waits for the others at the start."""
COLLECTIVE_SECONDS = 600.0
"""How long an exchange may take while all processes answer."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_CURRENT: list[Group] = []


class Group:
    """This process among the processes of a run; `rank` 0 writes the files."""

    def __init__(self, rank: int, size: int, device: torch.device, heartbeat: Heartbeat) -> None:
        self.rank, self.size, self.device, self.heartbeat = rank, size, device, heartbeat

    def all_gather(self, vector: Tensor) -> list[Tensor]:
        """Return the vectors (n,) of all processes, by rank."""
        gathered = [torch.empty_like(vector) for _ in range(self.size)]
        dist.all_gather(gathered, vector)
        return gathered

    def tree_sum(self, vector: Tensor) -> Tensor:
        """Return the sum of the vectors (n,) of all processes, added pairwise in the order of the ranks.

        Each process adds one part of all vectors, and the sums are gathered: as many bytes as in a ring all-reduce.
        """
        part = -(-len(vector) // self.size)
        padded = torch.cat([vector, vector.new_zeros(part * self.size - len(vector))])
        received = torch.empty_like(padded)
        dist.all_to_all_single(received, padded)
        return torch.cat(self.all_gather(tree_sum(received.view(self.size, part).unbind())))[: len(vector)]

    def all_reduce(self, vector: Tensor) -> Tensor:
        """Return the sum of the vectors of all processes, in an order that depends on their number."""
        dist.all_reduce(vector)
        return vector

    def broadcast(self, content: bytes | None) -> bytes:
        """Return the bytes that rank 0 passes; the others pass None."""
        length = torch.tensor([len(content or b"")], device=self.device)
        dist.broadcast(length, 0)
        if content is not None:
            values = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8).to(self.device)
        else:
            values = torch.empty(max(int(length), 1), dtype=torch.uint8, device=self.device)
        dist.broadcast(values, 0)
        return values.cpu().numpy().tobytes()[: int(length)]

    def from_first(self, compute: Callable[[], bytes]) -> bytes:
        """Return what rank 0 computes; if that raises an MlpconvError, every process raises it."""
        content: bytes | None = None
        if self.rank == 0:
            try:
                content = b"+" + compute()
            except MlpconvError as error:
                self.broadcast(b"-" + str(error).encode())
                raise
        content = self.broadcast(content)
        if content[:1] == b"-":
            raise MlpconvError(content[1:].decode())
        return content[1:]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        for tensor in tensors:
            value = tensor.detach().contiguous().to(self.device)
            dist.broadcast(value, 0)
            tensor.detach().copy_(value)

    def check_same(self, what: str, digest: bytes) -> None:
        """Raise TrainingError that names the first process whose digest (of 16 bytes) differs from that of rank 0."""
        own = torch.frombuffer(bytearray(digest[:16].ljust(16)), dtype=torch.uint8).to(self.device)
        digests = [bytes(value.tolist()) for value in self.all_gather(own)]
        for rank, value in enumerate(digests):
            if value != digests[0]:
                raise TrainingError(
                    f"{self.heartbeat.name(rank)} has other {what} than rank 0: all processes need the same data, "
                    "processors and versions."
                )


def tree_sum(parts: Sequence[Tensor]) -> Tensor:
    """Add a power of two of tensors pairwise: ((0 + 1) + (2 + 3)) + ..."""
    while len(parts) > 1:
        parts = [parts[index] + parts[index + 1] for index in range(0, len(parts), 2)]
    return parts[0]


def under_torchrun() -> bool:
    """Return whether torchrun, or another launcher with the same variables, started this process."""
    return all(name in os.environ for name in VARIABLES)


def current() -> Group | None:
    """Return the group of this process; None outside `in_process_group`, or without a launcher."""
    return _CURRENT[-1] if _CURRENT else None


@contextmanager
def in_process_group() -> Iterator[None]:
    """Join the processes that the environment names, and leave them at the end; do nothing without a launcher.

    An error that ends this process names its rank, and ends the other processes within ten seconds. Raises
    TrainingError if the others do not come, or when one of them ends.
    """
    if not under_torchrun() or current() is not None:
        yield
        return
    group = join()
    _CURRENT.append(group)
    try:
        yield
    except BaseException as error:
        leave(group, error)
        raise
    else:
        group.heartbeat.stop("done")
        dist.destroy_process_group()
    finally:
        _CURRENT.pop()


def join() -> Group:
    """Connect to the other processes; raises TrainingError that says who waited, where and how long."""
    rank, size = number("RANK"), number("WORLD_SIZE")
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    wait = timedelta(seconds=JOIN_SECONDS)
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=wait))  # type: ignore[attr-defined]
        heartbeat = Heartbeat(rank, size, address)
        heartbeat.start()
        store.set_timeout(wait)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("mlpconv", store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=COLLECTIVE_SECONDS),
        )
    except (RuntimeError, dist.DistError) as error:
        raise TrainingError(
            f"{Member.own(rank)} of {size} could not reach the other processes at {address} within "
            f"{JOIN_SECONDS:.0f} s: start all of them, with the same address and number, and open the port."
        ) from error
    heartbeat.watch()
    return Group(rank, size, device, heartbeat)


def number(name: str) -> int:
    """Return an environment variable as a number from 0; raises UsageError."""
    text = os.environ[name]
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"the environment variable {name} is {text[:40]!r}: a launcher sets it to a number.")
    return int(text)


def leave(group: Group, error: BaseException) -> None:
    """Tell the others why this process ends; raises TrainingError if the cause is another process."""
    if isinstance(error, Interrupted):
        group.heartbeat.stop("done")
        return
    if isinstance(error, RuntimeError) and group.size > 1:  # an exchange with a process that is gone
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, while the cause is being found
        reason = group.heartbeat.reason()
        if reason:
            group.heartbeat.stop("failed", reason)
            raise TrainingError(f"{group.heartbeat.name(group.rank)} stopped: {reason}") from error
    group.heartbeat.stop("failed", str(error).strip() or type(error).__name__)
    if isinstance(error, MlpconvError) and group.size > 1:
        error.args = (f"{group.heartbeat.name(group.rank)}: {error}",)
