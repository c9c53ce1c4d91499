"""One process or many: who trains with whom, how their gradients become one, and how they agree on what they do.

torchrun starts the processes and tells each in its environment who it is. Every rank takes its slice of each
micro-batch (horizon.py); its mean loss is scaled by its share of the step's samples times the number of ranks, so that
the mean over ranks, which is what DDP and FSDP2 reduce to, is the gradient of the mean over all samples.

Every rank evaluates the same validation set, which takes no longer than one rank doing it while the others wait, and is
what sharded weights need anyway; what counts afterwards is what rank 0 found, so that ranks never decide differently.
A rank's record has no `time/compute` and no `time/comm`: the reduction overlaps the backward pass, and no clock of the
host can tell them apart.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, distributed, nn

from trainer.config import Config, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

TIMEOUT = timedelta(minutes=30)
"""For the longest wait there is: rank 0 builds shards, or writes a large checkpoint to a slow disk."""
GRACE = 0.05
"""Seconds: a gloo thread lets go of the tensors of what it did last within the interpreter's switch, which is 5 ms."""
TOLD = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


@dataclass
class World:
    """The processes of a run, seen from one of them. This one is alone: nothing is wrapped, asked or waited for."""

    device: torch.device
    rank: int = 0
    size: int = 1
    probes_inside: ClassVar[bool] = True
    """Whether a gradient may be taken inside the wrapped model for its own sake."""

    def wrap(self, model: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:  # noqa: ARG002
        """What the loop calls in the model's place; before the optimiser is made, which may find other parameters."""
        return model

    def reducing(self, wrapped: nn.Module, closes: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """The context of a micro-batch's forward and backward: gradients are reduced in the one that closes a step."""
        return contextlib.nullcontext()

    def of_rank_zero(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, which alone does it; what it raises there is raised on every rank."""
        return work()

    def agree(self, reason: str) -> str:
        """The reason to stop after this step that all ranks go by; empty while there is none. Once a step."""
        return reason

    def leave(self) -> None:
        """The run is over."""

    def gathered(self, state: Any) -> Any:
        """A state, to any depth, with sharded tensors made whole on the CPU of rank 0. Every rank takes part."""
        return state

    def evaluating(self, model: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002
        """The context of forward passes that no backward pass follows."""
        return contextlib.nullcontext()

    def sliced(self, state: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """A whole state, or this rank's part of it, sharded as `like` is."""
        return state

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take a whole state over, or this rank's part of it."""
        optimizer.load_state_dict(state)


@dataclass
class Replicas(World):
    """Ranks that each hold the whole model; DDP keeps their gradients equal."""

    _asked: tuple[Tensor, Any] | None = field(default=None, repr=False)

    def wrap(self, model: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:  # noqa: ARG002
        """The optimiser, checkpoints and evaluation go on with the model itself: its weights are DDP's."""
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)  # they are constants

    def reducing(self, wrapped: nn.Module, closes: bool) -> AbstractContextManager[None]:
        """DDP reduces in every backward pass unless told otherwise around the forward pass as well."""
        return contextlib.nullcontext() if closes else wrapped.no_sync()  # type: ignore[operator]

    def of_rank_zero(self, work: Callable[[], T]) -> T:
        """A broadcast between the hosts, where all ranks meet."""
        told: list[Any] = [None]
        if self.rank == 0:
            try:
                told = [(work(), None)]
            except Exception as error:
                told = [(None, error)]
        distributed.broadcast_object_list(told, src=0)
        result, fault = told[0]
        if fault is not None:
            raise fault
        return result  # type: ignore[no-any-return]

    def agree(self, reason: str) -> str:
        """Asked at one step, answered at the next, so that nobody waits.

        One byte goes around between the hosts (gloo) while the next step is computed, and is there when that is done:
        the device is not asked, and hosts are at most a step apart. A rank that died is noticed here too, even where
        NCCL would wait for it.
        """
        asked, flag = self._asked, torch.tensor([bool(reason)], dtype=torch.uint8)
        self._asked = flag, distributed.all_reduce(flag, distributed.ReduceOp.MAX, async_op=True)
        if asked is None:
            return ""
        answer, work = asked
        work.wait()
        if not answer.item():
            return ""
        reasons: list[str] = [""] * self.size
        distributed.all_gather_object(reasons, reason)
        return next(filter(None, reasons))

    def leave(self) -> None:
        """Let the last question be answered before the group is taken down under it.

        Whatever still refers to the group then (DDP stands in reference cycles) would keep its threads alive into the
        interpreter's end, where one that lets go of a tensor aborts the process (pytorch #190489). Such a thread holds
        the group's lock, and waits for the interpreter: who takes the group down then, and holds the interpreter, waits
        for the lock for ever. So they get the time to let go first.
        """
        if self._asked is not None:
            self._asked[1].wait()
            self._asked = None
        time.sleep(GRACE)
        gc.collect()
        distributed.destroy_process_group()


@dataclass
class Shards(Replicas):
    """Ranks that each hold a slice of every weight, its gradient and its moments (FSDP2)."""

    probes_inside: ClassVar[bool] = False  # FSDP would gather the weights for each, and wait for a rank that takes none

    def wrap(self, model: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:
        """Gather each block's weights for its one pass; what is left stays gathered from forward to backward.

        So a recursive core, whose weights are used in every pass, is gathered once a step. In place: names stay.
        """
        from torch.distributed.fsdp import fully_shard

        for block in blocks:
            fully_shard(block)
        fully_shard(model)
        return model

    def reducing(self, wrapped: nn.Module, closes: bool) -> AbstractContextManager[None]:
        """Until the step's last micro-batch, gradients add up unsharded: exact, at the price of their memory."""
        wrapped.set_requires_gradient_sync(closes)  # type: ignore[operator]
        return contextlib.nullcontext()

    def gathered(self, state: Any) -> Any:
        """One tensor at a time; the ranks that write nothing keep nothing. The form is that of a single process."""
        from torch.distributed.tensor import DTensor
        from torch.utils._pytree import tree_map_only

        def whole(shard: DTensor) -> Tensor | None:
            full = shard.full_tensor()
            return full.cpu() if self.rank == 0 else None

        return tree_map_only(DTensor, whole, state)

    @contextlib.contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Let go of what is gathered when it is over: weights that change meanwhile would not be seen."""
        yield
        model.reshard()  # type: ignore[operator]

    def sliced(self, state: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every rank has read the whole state, and keeps its slices."""
        return {name: _slice_of(value, like.get(name)) for name, value in state.items()}

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Moments are sliced as their weights are."""
        owners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        sliced = {
            index: {name: _slice_of(value, owners[index]) for name, value in moments.items()}
            for index, moments in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": sliced})


def _slice_of(value: Any, like: Any) -> Any:
    """This rank's part of a tensor, if `like` is a sharded tensor of its shape."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


KINDS = {"ddp": Replicas, "fsdp": Shards}


@contextlib.contextmanager
def joined(config: Config) -> Iterator[World]:
    """The world that this process was started into, left again at the end. Raises UsageError.

    After a failure the group is not taken down, since NCCL would wait for ranks that never come; see `abandon`.
    """
    size = _number("WORLD_SIZE", 1)
    if config.processes not in (1, size):
        much = f"processes is {config.processes}, but this run has {size}"
        raise UsageError(f"{much}; start it with torchrun --nproc-per-node {config.processes} -m trainer")
    config.processes = size
    if size == 1:
        yield World(choose_device(config.device))
        return
    if config.parallel == "fsdp" and config.precision == "fp16":
        raise UsageError("precision=fp16 needs whole gradients to skip a step; write precision=bf16, or parallel=ddp")
    world = _join(config, size)
    yield world
    world.leave()


def _join(config: Config, size: int) -> World:
    missing = [name for name in TOLD if not os.environ.get(name)]
    if missing:
        start = f"start it with torchrun --nproc-per-node {size} -m trainer"
        raise UsageError(f"WORLD_SIZE is {size}, but {missing[0]} is not set; {start}, or unset WORLD_SIZE")
    rank = _number("RANK", 0)
    if rank >= size:
        raise UsageError(f"RANK is {rank}, but the ranks of WORLD_SIZE={size} are 0 to {size - 1}; let torchrun set it")
    device = _own_device(config.device, _number("LOCAL_RANK", 0))
    cuda = device if device.type == "cuda" else None
    if cuda:
        torch.cuda.set_device(cuda)
    try:  # gloo beside NCCL: what hosts tell each other is no business of the devices
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT, device_id=cuda)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"rank {rank} of {size} did not meet the others at {where} ({first})") from error
    return KINDS[config.parallel](device, rank, size)


def _number(name: str, default: int) -> int:
    """A whole number that the launcher left in the environment."""
    told = os.environ.get(name, "").strip() or str(default)
    if not told.isdecimal() or (name == "WORLD_SIZE" and int(told) < 1):
        raise UsageError(f"{name} is '{told}', which is no number of a process; let torchrun set it, or unset it")
    return int(told)


def abandon(code: int) -> None:
    """End a failed process at once, if it is one of many; returns if it is alone.

    Its tear-down would wait for collectives that the other ranks never join, and torchrun, which ends those ranks when
    this one is gone, would wait with it.
    """
    if distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _own_device(name: str, local_rank: int) -> torch.device:
    """The GPU that is this rank's on its machine, or the CPU that all share."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device '{name}': torchrun gives each process a device of its own; write auto, cpu or cuda")
    chosen = choose_device(name)
    return chosen if chosen.type == "cpu" else choose_device(f"cuda:{local_rank}")


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UsageError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{name}' does not exist; write auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' cannot train here; write auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device '{name}': torch sees no GPU here; write device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{name}': torch sees {torch.cuda.device_count()} GPUs here, counted from cuda:0")
    return device
