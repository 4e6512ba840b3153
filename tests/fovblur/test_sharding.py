"""Distributed tensors whose batch is sharded over two processes."""

import sharded_calls
import torch.multiprocessing


def test_two_processes_compute_what_one_does(tmp_path, seed):
    torch.multiprocessing.spawn(sharded_calls.run, (str(tmp_path / "store"), seed), nprocs=2)
    assert all((tmp_path / f"store.{rank}").exists() for rank in range(2))
