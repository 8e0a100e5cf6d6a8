"""Claim tested: the stages of a layer take what benchmarks.gpu.expected says they should.

10 outputs and width 256, one layer's alignment from its factors at each precision. torch's profiler tells the time of
every kernel on the device; kernels are told apart by name, the rest counts as "largest numbers", means among them. The
stage "host" is the time from one call to the next where the device has next to nothing to do: n = 64.
"""

from collections import Counter

import torch

import ahkernels as ah
from benchmarks.common import device as on_device
from benchmarks.gpu import script
from benchmarks.gpu.cuda_layer import Layer
from benchmarks.gpu.expected import KERNELS, SIZES, WIDTH

CALLS = 5
# Parts of the names of kernels; products of matrices are named after the library that they come from.
NAMES = {"tiles": ("tiles<",), "packing": ("pack",), "forward Gram": ("gemm", "cutlass", "nvjet", "xmma")}


def stage_of(kernel: str) -> str:
    """The stage that a kernel belongs to."""
    lower = kernel.lower()
    return next((stage for stage, parts in NAMES.items() if any(part in lower for part in parts)), "largest numbers")


def device_seconds(layer: Layer, precision: str) -> Counter[str]:
    """Seconds of a call on the device, by stage; empty where there is no device."""
    activities = torch.profiler.supported_activities()
    ah.cka(layer.kernel(precision), layer.y)
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in range(CALLS):
            ah.cka(layer.kernel(precision), layer.y)
        on_device.synchronize(layer.device)
    found: Counter[str] = Counter()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[stage_of(event.name)] += event.self_device_time_total / 1e6 / CALLS
    return found


def main() -> None:
    args = script.arguments("cuda_stages", __doc__, 5)
    rows = script.row_file(args)
    small = Layer(64, 16 if args.quick else WIDTH, args.device)
    for precision in KERNELS:

        def call(precision: str = precision) -> object:
            return ah.cka(small.kernel(precision), small.y)

        host = on_device.measured(call, args.device, args.repeats)[1]["median_s"]
        for n in (64,) if args.quick else SIZES:
            layer = small if n == 64 else Layer(n, WIDTH, args.device)
            stages = device_seconds(layer, precision) | Counter(host=host)
            for stage, seconds in stages.items():
                text = f"n = {n}, {precision}, {stage}: {1e3 * seconds:.3f} ms"
                rows.add(text, n=n, precision=precision, stage=stage, seconds=seconds)


if __name__ == "__main__":
    main()
