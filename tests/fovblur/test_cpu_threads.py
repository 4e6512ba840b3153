"""The threads and the scratch memory of the CPU kernels, which are kept between calls. Scripts run in new processes."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import fovblur

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or limits memory as Linux does")

START = """
import multiprocessing, os, resource, signal, sys, threading, time, torch
from fovblur import enhanced_similarity, foveated_blur, gaussian_blur

torch.manual_seed(0)
torch.set_num_threads(4)
images = torch.rand(16, 3, 64, 64)
rows = torch.rand(256, 64)
blur = lambda: foveated_blur(images, 4.0, fixation=(20, 30), backend="cpu")
scores = lambda: enhanced_similarity(rows, rows, rows, rows, backend="cpu")
results = lambda: [blur().numpy().tobytes(), scores().numpy().tobytes()]
threads = lambda: sorted(os.listdir("/proc/self/task"))
"""


def run(script: str, **variables: str) -> None:
    command = [sys.executable, "-c", START + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr


def test_any_number_of_threads_gives_the_same_similarity(seed):
    rows = torch.rand(300, 40)
    results = []
    for threads in (1, 2, 3, 4, 5, 6, 7, 8, 1):
        torch.set_num_threads(threads)
        scores = fovblur.enhanced_similarity(rows, rows, rows, rows, backend="cpu")
        results.append((scores, *fovblur.enhanced_topk(rows, rows, rows, rows, 5, backend="cpu")))
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0]))


@linux
def test_threads_are_kept_and_end_when_idle():
    run("""
        before = set(threads())
        blur()
        made = set(threads()) - before
        assert len(made) == 3, made
        for _ in range(20):
            results()
        assert set(threads()) == before | made
        torch.set_num_threads(2)
        deadline = time.monotonic() + 20
        while len(threads()) > len(before) + 1 and time.monotonic() < deadline:
            blur()
        assert len(set(threads()) & made) == 1, "threads that a call no longer needs do not end"
        while threads() != sorted(before) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert set(threads()) == before, "idle threads do not end"
        assert results()
    """)


def test_forked_processes_have_threads_of_their_own():
    run("""
        expected = results()

        def check(_=None):
            signal.alarm(60)  # a child that hangs does not outlive the test
            return results() == expected

        stop = threading.Event()
        def call():
            while not stop.is_set():
                blur()
        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()
        for _ in range(20):  # while the pool is in use
            child = os.fork()
            if child == 0:
                os._exit(0 if check() else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for caller in callers:
            caller.join()
        with multiprocessing.get_context("fork").Pool(2) as processes:
            assert processes.map(check, range(8))
        assert results() == expected
    """)


def test_calls_at_the_same_time_share_the_threads():
    run("""
        expected = results()
        faults = []

        def call(count):
            for i in range(30):
                torch.set_num_threads(1 + (count + i) % 8)
                if results() != expected:
                    faults.append(count)

        callers = [threading.Thread(target=call, args=(i,)) for i in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not faults
    """)


@linux
def test_memory_is_kept_within_a_bound_and_its_lack_is_an_error():
    run("""
        def mib(column):
            return int(open("/proc/self/statm").read().split()[column]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        wide = torch.rand(1, 1, 96, 1 << 17)  # 48 MiB; a thread's strip of 16 rows needs 40 MiB with its border
        blur()
        before = mib(1)
        foveated_blur(wide, 8.0, backend="cpu")
        grown = mib(1) - before
        assert grown < 4 * 8, grown

        expected = gaussian_blur(wide, 8.0, backend="cpu")
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (int((mib(0) + 48 + 16) * 2**20), limits[1]))
        try:
            gaussian_blur(wide, 8.0, backend="cpu")
        except MemoryError:
            pass
        else:
            raise AssertionError("memory was not short")
        resource.setrlimit(resource.RLIMIT_AS, limits)
        assert torch.equal(gaussian_blur(wide, 8.0, backend="cpu"), expected)
    """, MALLOC_MMAP_THRESHOLD_=str(2**20))  # glibc, too, then keeps no large block  # fmt: skip
