"""Measures the memory that a function allocates on the CPU."""

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def memory(function):
    """Return the bytes that ``function`` allocates at its peak, and those that are still allocated at its end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()  # noqa: F841  # so that its memory is not freed
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == DeviceType.CPU:
            total += event.nbytes()
            peak = max(peak, total)
    return peak, total
