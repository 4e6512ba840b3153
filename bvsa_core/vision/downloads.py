"""Whether weights can be downloaded: a server that does not answer is told of in seconds, with another way."""

import functools
import http.client
import os
import queue
import threading
import urllib.error
import urllib.request

from bvsa_core.errors import UserError

ANSWER_S = 3.0  # wait for an answer of the server that has weights


def stay_offline() -> None:
    """Let this process ask no hub for weights, because it reads a run that may come from elsewhere.

    The environment variable HF_HUB_OFFLINE=0 allows it. Without effect once huggingface_hub is imported.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def check_reachable(what: str, repository: str = "", url: str = "") -> None:
    """Check that what is missing can be downloaded from a repository of the Hugging Face hub, or from an address.

    Raises:
        UserError: downloads are switched off, or the server does not answer within ANSWER_S seconds.
    """
    from huggingface_hub import constants

    offline = repository and constants.HF_HUB_OFFLINE
    problem = "downloads are switched off" if offline else unreachable(constants.ENDPOINT if repository else url)
    if problem is not None:
        get = f"run 'hf download {repository} --cache-dir FOLDER'" if repository else f"download {url} into FOLDER"
        remedy = f"{get} on a machine with network, copy FOLDER here, and give it with --cache_dir"
        raise UserError(f"{what} are not on this machine, and {problem}; {remedy}")


@functools.cache
def unreachable(address: str) -> str | None:
    """Return why a server does not answer; None if it does. Looking up a name has no time limit, so a thread waits."""
    problems: queue.Queue[str | None] = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ANSWER_S).close()
        except urllib.error.HTTPError:  # an answer
            problems.put(None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problems.put(str(getattr(error, "reason", error)))
        else:
            problems.put(None)

    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = problems.get(timeout=ANSWER_S)
    except queue.Empty:
        problem = f"no answer within {ANSWER_S:g} s"
    return problem and f"{address} cannot be reached ({problem})"
