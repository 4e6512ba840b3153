"""Shared by encoders made of convolutions."""


def steps_after(time: int, *stages: tuple[int, int]) -> int:
    """Return how many of `time` points are left after stages of (kernel, stride), without padding.

    Raises:
        ValueError: none is left.

    >>> steps_after(250, (25, 1), (51, 5))
    36
    """
    least = 1
    for kernel, stride in reversed(stages):
        least = (least - 1) * stride + kernel
    if time < least:
        raise ValueError(f"needs at least {least} time points, not {time}; choose a longer window")
    for kernel, stride in stages:
        time = (time - kernel) // stride + 1
    return time
