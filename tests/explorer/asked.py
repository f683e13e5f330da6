"""A folder of pictures whose names are hostile, and requests to the application without a server or a browser."""

import asyncio
import json
import os
import sys

import pytest
import torch
from small import SMALL, network, photographs

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("PIL.Image")

from zfkernels import Deconvnet
from zfkernels.data.scan import scan
from zfkernels.explorer import server, state
from zfkernels.explorer.live import Live
from zfkernels.models import checkpoint
from zfkernels.models.checkpoint import Network

PORT = 8000
HOST = f"127.0.0.1:{PORT}"
LAYERS = ("conv1", "conv3", "conv5", "fc8")
HOSTILE = "<script>alert(1)</script>"  # a folder "<script>alert(1)<" that holds a folder "script>"
CLASSES = [f"{HOSTILE[:17]}", "b & 'c'", 'd"onerror="alert(2)']


def make_world(path):
    """photos/, zfnet.pt, epoch_001.pt and epoch_010.pt below `path`, all made with seeds."""
    from PIL import Image

    for i, image in enumerate(photographs(6, 60)):
        for j, view in enumerate((image, image.flip(2), image.flip(1))):
            place = path / "photos" / (HOSTILE if i % 3 == 0 else CLASSES[i % 3]) / f"{i}{j}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(view.permute(1, 2, 0).numpy()).save(place)
    for seed, name in enumerate(("zfnet", "epoch_001", "epoch_010")):
        checkpoint.save(path / f"{name}.pt", small(seed), SMALL)
    return path


def small(seed=0):
    mean, scale = torch.full((3, 48, 48), 120.0), torch.full((1, 1, 1), 60.0)
    return Network(network(seed), CLASSES, mean, scale, (48, 48))


def explorer(path, setup=()):
    """An explorer of the world, with two epochs; its search has not begun."""
    of = small()
    found = state.explored(of, Deconvnet(of.model), scan(path / "photos"), LAYERS, HOSTILE, setup)
    return server.explorer(found, Live((("epoch 1", lambda: small(1)), ("epoch 10", lambda: small(2)))))


def searched(path, setup=()):
    it = explorer(path, setup)
    it.search.start()
    it.search.wait()
    assert it.search.report()["state"] == "done"
    return it


def ask(app, path, method="GET", headers=None, body=b"", query="", leaves=False):
    """(status, headers, body) of one request; `headers` replace those that a page of ours sends.

    `leaves`: who asks does not wait for the answer.
    """
    sent = {"host": HOST, "origin": f"http://{HOST}"} if headers is None else headers
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "server": ("127.0.0.1", PORT),
        "client": ("127.0.0.1", 5),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }
    answers, parts = [], [body[i : i + 65536] for i in range(0, len(body), 65536)] or [b""]

    async def receive():
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        if not leaves:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message):
        answers.append(message)

    asyncio.run(app(scope, receive, send))
    got = {name.decode(): value.decode() for name, value in answers[0]["headers"]}
    return answers[0]["status"], got, b"".join(message.get("body", b"") for message in answers[1:])


def told(app, path, **more):
    """The JSON of an answer that must be one."""
    status, headers, body = ask(app, path, **more)
    assert status == 200, body
    assert headers["content-type"] == "application/json"
    return json.loads(body)


def command(*arguments):
    """`zfkernels explore` as a process's arguments."""
    return [sys.executable, "-m", "zfkernels", "explore", *map(str, arguments)]


def environment():
    """The variables of such a process."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
