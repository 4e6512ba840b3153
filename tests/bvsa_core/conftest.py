"""Small synthetic data sets, made once per session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_cluster import Cluster
from fork_server import Forks

from bvsa_core.io.atomic import NO_LOCK
from bvsa_core.synthetic.dataset import SyntheticConfig, make_dataset

SMALL = {"subjects": 2, "train_concepts": 30, "images_per_concept": 3, "train_repetitions": 2, "test_concepts": 12}
SMALL |= {"test_repetitions": 6, "samples": 100, "signal_to_noise": 1.0}
TINY = "--subjects 1 --train_concepts 10 --images_per_concept 3 --train_repetitions 1 --test_concepts 6"
TINY = (*TINY.split(), "--test_repetitions", 2, "--samples", 75)


@pytest.fixture(autouse=True)
def locks(monkeypatch) -> None:
    """Keep a test's --no_lock, which holds for the whole process, from the tests after it."""
    monkeypatch.setenv(NO_LOCK, os.environ.get(NO_LOCK, ""))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """Return a data set of SMALL; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("data") / "small"
    make_dataset(folder, SyntheticConfig(**SMALL))
    return folder


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory) -> Iterator[Forks]:
    """Start processes from one that has imported everything."""
    server = Forks(tmp_path_factory.mktemp("fork_server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def scheduler(tmp_path_factory) -> Iterator[Cluster]:
    """A Dask scheduler without workers."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture
def cluster(scheduler) -> Iterator[Cluster]:
    """A Dask scheduler whose workers end with the test."""
    yield scheduler
    scheduler.remove_workers()


@pytest.fixture(scope="session")
def tiny_data(fork_server, tmp_path_factory) -> Path:
    """Return a data set of TINY with the features that BVSA needs, made by undisturbed processes."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    (made,) = fork_server.bvsa("data", "synthetic", folder, *TINY)
    assert made.code == 0, made.err
    (trained,) = fork_server.bvsa("train", "--data", folder, "--epochs", 1, "--out", folder.parent / "run")
    assert trained.code == 0, trained.err
    return folder
