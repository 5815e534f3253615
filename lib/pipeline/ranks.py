"""The processes of one launch: torchrun starts a notebook per rank, they join here, and rank 0 alone writes files.

Without a launcher every function below is what it is for one process: there is one rank, and it leads.
"""

import contextlib
import datetime
import functools
import os

PATIENCE = datetime.timedelta(hours=24)  # others wait while rank 0 merges and saves; torchrun notices a lost rank
LAUNCHERS = ("torchrun", "torch.distributed.run", "accelerate", "deepspeed")
_joined = {}  # "group": the process group for what is said between ranks on the CPU
_alone = []  # not empty while rank 0 runs what it alone runs


def rank():
    """Number of this process, from 0."""
    return int(os.environ.get("RANK") or 0)


def world():
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def leads():
    """Whether this process is the one that writes files."""
    return rank() == 0


def check(launch):
    """Raise ValueError when a launcher is named and this process was not started by torchrun, which sets WORLD_SIZE.

    launch: the words before the command, LAUNCH of the Makefile. `accelerate launch` on a CPU starts one process
    whatever it was asked for.
    """
    if any(name in launch for name in LAUNCHERS) and "WORLD_SIZE" not in os.environ:
        raise ValueError(f"LAUNCH is {launch!r} and WORLD_SIZE is unset: use torchrun, which starts what is asked for")


def one_device():
    """Show a process that no launcher started one GPU: with several, the trainer would silently use DataParallel.

    Call it before torch looks for GPUs. The first of CUDA_VISIBLE_DEVICES stays, where that is set.
    """
    if "WORLD_SIZE" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def join():
    """Enter the process group of the launch, on this rank's own device. Raises RuntimeError when it is not whole."""
    if world() == 1 or _joined:
        return
    import torch
    from torch import distributed

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:  # accelerate would say cpu:0, to which torch.load moves no optimizer's state: no checkpoint could be resumed
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    if not distributed.is_initialized():
        distributed.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo")
    if distributed.get_world_size() != world():
        raise RuntimeError(f"{distributed.get_world_size()} ranks joined, WORLD_SIZE asks for {world()}")
    _joined["group"] = distributed.new_group(backend="gloo", timeout=PATIENCE)


def leave():
    """Leave the process group, at the end of a stage."""
    if _joined.pop("group", None):
        from torch import distributed

        distributed.destroy_process_group()


def share(items):
    """This rank's part of a list: every world()-th item."""
    return items[rank() :: world()] if _joined else items


def gather(value):
    """The values of all ranks, in the order of ranks, on every rank."""
    if not _joined or _alone:
        return [value]
    from torch import distributed

    found = [None] * world()
    distributed.all_gather_object(found, value, group=_joined["group"])
    return found


def led(function):
    """Let rank 0 alone call a function, while the others wait; all of them return what it returned.

    Inside, gather() and first() are those of one process.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        if not _joined or _alone:
            return function(*args, **kwargs)
        gather(None)
        value = None
        if leads():
            _alone.append(function)
            try:
                value = function(*args, **kwargs)
            finally:
                _alone.pop()
        return gather(value)[0]

    return call


@contextlib.contextmanager
def first():
    """Rank 0 runs the block before the others do: it downloads or builds what they then find."""
    if not leads():
        gather(None)
    try:
        yield
    finally:
        if leads():
            gather(None)
