"""Two hosts on one machine: network namespaces that a virtual link joins, with two ranks in each.

Run by hand, as root: `python -m python_tests.distributed.two_hosts`. While the ranks measure one network after another,
one of them is killed, or the link is cut for good or for two seconds. Each rank tells what it has found or which error
it has met, and how long after the fault.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

HOSTS = {"ahk0": "10.77.0.1", "ahk1": "10.77.0.2"}
RANKS, TIMEOUT, FAULT_AFTER, CALLS = 4, 10, 6.0, 40


def as_rank(rank: int) -> None:
    """Measures again and again, and prints what happened in one line of JSON."""
    import torch
    import torch.distributed as dist
    from torch import nn

    import ahkernels as ah

    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=TIMEOUT)
    address = f"tcp://{HOSTS['ahk0']}:29511"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS, timeout=timeout)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 5)).double()
    x, y = torch.randn(200, 20).double(), torch.randint(5, (200,))
    alone = ah.layerwise_alignment(model, x, y).cka
    start, worst, longest, error = time.time(), 0.0, 0.0, None
    print("ready", flush=True)
    try:
        for _ in range(CALLS):
            begin = time.time()
            found = ah.layerwise_alignment(model, x[rank::RANKS], y[rank::RANKS], process_group=dist.group.WORLD)
            worst = max(worst, float((found.cka - alone).abs().max()))
            longest = max(longest, time.time() - begin)
            time.sleep(0.2)
    except ah.RankError as raised:
        error = str(raised)
    told = {"rank": rank, "seconds": time.time() - start, "longest": longest, "difference": worst, "error": error}
    print(json.dumps(told), flush=True)
    os._exit(0)  # the group may not be fit to be closed


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """Two namespaces with a link between them."""
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", "veth-ahk0", "netns", "ahk0", "type", "veth", "peer", "name", "veth-ahk1", "netns", "ahk1")
        for name, address in HOSTS.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"veth-{name}")
            ip("-n", name, "link", "set", f"veth-{name}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False)


def scenario(name: str, fault: Callable[[list[subprocess.Popen]], None]) -> None:
    """Starts all ranks, brings about a fault, and prints what each rank tells."""
    with hosts():
        started = []
        for rank in range(RANKS):
            host = list(HOSTS)[rank * len(HOSTS) // RANKS]
            command = [
                "ip",
                "netns",
                "exec",
                host,
                sys.executable,
                "-m",
                "python_tests.distributed.two_hosts",
                str(rank),
            ]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"veth-{host}", "OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        for process in started:
            process.stdout.readline()  # ready
        time.sleep(FAULT_AFTER)
        at = time.time()
        fault(started)
        print(f"\n{name}")
        for rank, process in enumerate(started):
            try:
                out, _ = process.communicate(timeout=15 * TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                out = ""
            told = json.loads(out) if out.strip() else None
            if told is None:
                print(f"  rank {rank}: no answer (status {process.returncode})")
            elif told["error"] is None:
                difference = f"difference from one process {told['difference']:.0e}"
                print(f"  rank {rank}: all {CALLS} calls, the longest {told['longest']:.1f} s; {difference}")
            else:
                print(f"  rank {rank}: {time.time() - at:.1f} s after the fault at most: {told['error']}")


def link(state: str) -> None:
    ip("-n", "ahk0", "link", "set", "veth-ahk0", state)


def cut_for_a_while(_: list[subprocess.Popen]) -> None:
    link("down")
    time.sleep(2)
    link("up")


def main() -> None:
    if len(sys.argv) > 1:
        as_rank(int(sys.argv[1]))
        return
    scenario("no fault", lambda _: None)
    scenario("rank 3 is killed", lambda ranks: ranks[3].kill())
    scenario("the link is cut for two seconds", cut_for_a_while)
    scenario("the link is cut for good", lambda _: link("down"))


if __name__ == "__main__":
    main()
