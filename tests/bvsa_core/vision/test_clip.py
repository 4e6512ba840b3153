"""Weights of image encoders: found, or refused in seconds with the way to get them."""

import http.server
import socket
import threading

import huggingface_hub.constants
import open_clip
import pytest
from open_clip.transformer import QuickGELU
from torch import nn

from bvsa_core.errors import UserError
from bvsa_core.vision import clip, downloads
from bvsa_core.vision.encoder import fingerprint

REPOSITORY = "timm/resnet50_clip.openai"


@pytest.fixture
def hub(monkeypatch):
    """Return a function that sets the address of the hub; no weights are on this machine."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return lambda address: monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)


def test_a_server_that_is_silent_or_refuses_is_reported_with_the_remedy(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hub(address)
        with pytest.raises(UserError) as error:
            clip.load_clip("RN50", cache_dir=tmp_path)
    assert f"weights 'openai' of RN50 are not on this machine, and {address} cannot be reached" in str(error.value)
    remedy = f"run 'hf download {REPOSITORY} --cache-dir FOLDER' on a machine with network"
    assert remedy in str(error.value) and "--cache_dir" in str(error.value)
    hub(address + "/refused")
    with pytest.raises(UserError, match="cannot be reached .*refused"):
        clip.check_weights("RN50", cache_dir=tmp_path)


def test_downloads_that_are_switched_off_are_not_tried(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(downloads, "unreachable", lambda address: pytest.fail("asked"))
    with pytest.raises(UserError, match="downloads are switched off; run 'hf download"):
        clip.check_weights("RN50", cache_dir=tmp_path)


def test_any_answer_of_the_server_will_do(hub, tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_address[1]}")
        clip.check_weights("RN50", cache_dir=tmp_path)
        server.shutdown()


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_weights_on_this_machine_need_no_server(hub, tmp_path, monkeypatch, name):
    folder = tmp_path / "models--timm--resnet50_clip.openai"  # as `hf download --cache-dir` leaves them
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "snapshots/abc" / name).touch()
    monkeypatch.setattr(downloads, "unreachable", lambda address: pytest.fail("asked"))
    clip.check_weights("RN50", cache_dir=tmp_path)


@pytest.mark.parametrize(("name", "tag", "quick"), [("RN50", "openai", True), ("ViT-B-32", "laion2b_s34b_b79k", False)])
def test_weights_get_the_activation_that_they_were_trained_with(monkeypatch, name, tag, quick):
    class Asked(Exception):
        pass

    def create_model(*_: object, force_quick_gelu: bool, **__: object) -> None:
        raise Asked(force_quick_gelu)

    monkeypatch.setattr(clip, "check_weights", lambda *_: None)
    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(UserError, match=rf"\({quick}\)"):
        clip.load_clip(name, tag)


def test_fingerprints_know_the_activation():
    quick, plain = (fingerprint("RN50/openai", nn.Sequential(kind())) for kind in (QuickGELU, nn.GELU))
    assert quick != plain
    named = [fingerprint("RN50-quickgelu/openai", nn.Sequential(kind())) for kind in (QuickGELU, nn.GELU)]
    assert named[0] == named[1]
