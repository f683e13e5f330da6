"""The explorer's application: what the page asks for, and to whom it answers.

It answers only pages of its own: a request must name the address it is served at as its host (no other name leads
here, whatever a foreign DNS says), and one with an origin must come from that address. Another site's page may lead to
it by a link, and can neither show its pictures nor let it compute. Paths of requests are numbers; the page's files are
read once, at the start.
"""

import asyncio
import ipaddress
import json
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, PackageLoader
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..drawing.page import STYLE
from ..graph.methods import METHODS
from . import live as of_live
from . import pictures, state, uploads
from .jobs import SOON, URGENT, Search, Worker
from .live import Live
from .state import Explored, Layer

PAGE = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
Answer = Callable[[Request], Any]  # bytes are WebP, None is not found, all else JSON
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
TICK = 0.2  # seconds between two looks at the search


class Missing(Exception):
    """A request names what is not there."""


@dataclass
class Explorer:
    """All that the application serves."""

    state: Explored
    live: Live
    worker: Worker
    search: Search
    run: str = ""  # tells this run's answers from those of another at the same address
    closing: Callable[[], bool] = lambda: False


def explorer(found: Explored, live: Live | None = None) -> Explorer:
    """An explorer whose search has not begun."""
    worker = Worker()
    search = Search(worker, found.batches, found.take, len(found.paths))
    return Explorer(found, live or Live(), worker, search, secrets.token_hex(4))


def application(it: Explorer) -> Starlette:
    """The routes. `checked` puts the guards around them."""
    files = {file.name: file.read_bytes() for file in PAGE.iterdir() if file.suffix in KINDS}
    files |= {"index.html": shell(None).encode(), STYLE.name: STYLE.read_bytes()}

    coming: set[Request] = set()

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            return missing("there is no such page")
        return Response(files[name], media_type=KINDS[Path(name).suffix])

    def route(path: str, answer: Answer, priority: int = URGENT) -> Route:
        async def endpoint(request: Request) -> Response:
            return await _answered(it, answer, request, priority)

        return Route(path, endpoint)

    async def watch(request: Request) -> Response:
        headers = {"cache-control": "no-store"}
        return StreamingResponse(_events(it), media_type="text/event-stream", headers=headers)

    async def upload(request: Request) -> Response:
        return await uploads.answered(request, coming, it.worker, lambda data: of_live.upload(it.state, it.live, data))

    async def steer(request: Request) -> Response:
        verbs = {"stop": it.search.stop, "start": it.search.start}
        verb = verbs.get(request.path_params["what"])
        if verb is None:
            return missing("a search can be stopped and started")
        verb()
        return JSONResponse(it.search.report())

    unit = "/data/unit/{layer:int}/{map:int}"
    return Starlette(
        routes=[
            Route("/", page),
            Route("/live/search", watch),
            Route("/live/search/{what}", steer, methods=["POST"]),
            Route("/live/upload", upload, methods=["POST"]),
            route("/live/upload/{number:int}.webp", lambda r: _picture(it, -r.path_params["number"])),
            route("/live/seen", lambda r: _seen(it, r)),
            route("/live/occluded", lambda r: _occluded(it, r)),
            route("/live/noise", lambda r: _noise(it, r)),
            route("/live/likenesses", lambda r: _likenesses(it, r), SOON),
            route("/live/below", lambda r: of_live.below(it.state, *_unit(it, r.query_params))),
            route("/live/epoch/{layer:int}/{map:int}/{epoch:int}.webp", lambda r: _epoch(it, r)),
            route("/data/network.json", lambda r: words(it)),
            route("/data/layer/{layer:int}.json", lambda r: _layer_words(it, r)),
            route("/data/tile/{layer:int}/{map:int}.webp", lambda r: _tile(it, r), SOON),
            route("/data/picture/{number:int}.json", lambda r: state.picture_words(it.state, r.path_params["number"])),
            route("/data/picture/{number:int}.webp", lambda r: _picture(it, r.path_params["number"])),
            route(unit + ".json", lambda r: state.unit_words(it.state, *_unit(it, r.path_params))),
            route(unit + "/patches.webp", lambda r: state.patches(it.state, *_unit(it, r.path_params))),
            route(unit + "/{method}.webp", lambda r: _views(it, r)),
            Route("/{name}", page),
        ]
    )


def shell(command: str | None) -> str:
    """The page without its data; of an exported one `command` starts the same with a server."""
    templates = Environment(loader=PackageLoader("zfkernels.explorer", "page"), autoescape=True)
    return templates.get_template("index.html").render(command=command)


def words(it: Explorer) -> state.Words:
    """What the page is told first."""
    epochs = [name for name, _ in it.live.checkpoints]
    return state.network_words(it.state) | {
        "searched": it.state.searched,
        "run": it.run,
        "epochs": epochs,
        "live": True,
    }


async def _answered(it: Explorer, answer: Answer, request: Request, priority: int) -> Response:
    """What `answer` gives in the worker's thread: bytes are WebP, None is not found, all else JSON."""
    began = time.perf_counter()
    task = it.worker.submit(lambda: answer(request), priority)
    future = asyncio.wrap_future(task)
    if await _left(request, future) and task.cancel():
        return Response(status_code=400)
    try:
        result = await future
    except Missing as error:
        return missing(str(error))
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        return JSONResponse({"error": " ".join(str(error).split())[:500]}, status_code=400)
    if result is None:
        return missing("there is nothing to see: no picture drives this map, or none was searched yet")
    kept = "private, max-age=3600" if "v" in request.query_params else "no-store"
    headers = {"cache-control": kept, "server-timing": f"all;dur={1000 * (time.perf_counter() - began):.1f}"}
    if isinstance(result, bytes):
        return Response(result, media_type="image/webp", headers=headers)
    return JSONResponse(result, headers=headers)


async def _left(request: Request, answer: asyncio.Future[Any]) -> bool:
    """Waits for the answer, or until the browser wants it no longer, and says whether that came first."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(leaves())
    await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    return not answer.done()


def missing(text: str) -> Response:
    return JSONResponse({"error": text}, status_code=404)


def _number(parameters: Any, name: str, low: float, high: float) -> float:
    """A parameter of a request; Missing for one that is no number from low to high."""
    try:
        value = float(parameters[name])
    except (KeyError, ValueError):
        raise Missing(f"{name} must be a number") from None
    if high < low:
        raise Missing(f"there is no {name}")
    if not low <= value <= high:
        raise Missing(f"{name} must be from {low:g} to {high:g}")
    return value


def _whole(parameters: Any, name: str, low: int, high: int) -> int:
    return int(_number(parameters, name, low, high))


def _layer(it: Explorer, parameters: Any) -> Layer:
    return it.state.layers[_whole(parameters, "layer", 0, len(it.state.layers) - 1)]


def _unit(it: Explorer, parameters: Any) -> tuple[Layer, int]:
    layer = _layer(it, parameters)
    return layer, _whole(parameters, "map", 0, layer.maps - 1)


def _layer_words(it: Explorer, request: Request) -> state.Words:
    layer = _layer(it, request.path_params)
    return it.state.once(("layer", layer.number), lambda: state.layer_words(it.state, layer))


def _tile(it: Explorer, request: Request) -> bytes | None:
    return state.tile_of(it.state, *_unit(it, request.path_params))


def _views(it: Explorer, request: Request) -> bytes | None:
    method = request.path_params["method"]
    if method not in METHODS:
        raise Missing("there is no such method")
    return state.views(it.state, *_unit(it, request.path_params), method)


def _picture(it: Explorer, number: int) -> bytes:
    pixels = of_live.pixels_of(it.state, it.live, number)
    if pixels is None:
        raise Missing("there is no such picture; it may have made room for later ones")
    return pictures.whole(it.state.network.seen(pixels))


def _pixels(it: Explorer, request: Request) -> tuple[Any, int, int]:
    """The picture and the pixel that a request names."""
    query, (height, width) = request.query_params, it.state.network.image_size
    pixels = of_live.pixels_of(it.state, it.live, _whole(query, "picture", -(10**9), 10**9))
    if pixels is None:
        raise Missing("there is no such picture; it may have made room for later ones")
    return pixels, _whole(query, "row", 0, height - 1), _whole(query, "column", 0, width - 1)


def _seen(it: Explorer, request: Request) -> list[state.Words]:
    pixels, row, column = _pixels(it, request)
    return of_live.seen(it.state, pixels, _layer(it, request.query_params), row, column)


def _occluded(it: Explorer, request: Request) -> list[state.Words]:
    side = _whole(request.query_params, "side", 1, min(it.state.network.image_size))
    return of_live.occluded(it.state, *_pixels(it, request), side)


def _noise(it: Explorer, request: Request) -> state.Words | None:
    query = request.query_params
    rank, part = _whole(query, "rank", 0, state.TOP - 1), _number(query, "part", 0, 1)
    return of_live.noisy(it.state, it.live, *_unit(it, query), rank, part)


def _likenesses(it: Explorer, request: Request) -> list[float | None]:
    layer = _layer(it, request.query_params)
    first = _whole(request.query_params, "first", 0, layer.maps - 1)
    key = ("likenesses", layer.number, first)
    return it.state.once(key, lambda: of_live.likenesses(it.state, it.live, layer, first))


def _epoch(it: Explorer, request: Request) -> bytes | None:
    number = _whole(request.path_params, "epoch", 0, len(it.live.checkpoints) - 1)
    layer, channel = _unit(it, request.path_params)
    key = ("epoch", number, layer.number, channel)
    return it.state.once(key, lambda: of_live.epoch(it.state, it.live, layer, channel, number))


async def _events(it: Explorer) -> AsyncIterator[str]:
    """The search as server-sent events, one whenever something has changed, until it ends."""
    said = None
    while not it.closing():
        report = it.search.report()
        if report != said:
            said = report
            yield f"data: {json.dumps(report)}\n\n"
        if report["state"] in ("done", "failed", "stopped"):
            return
        await asyncio.sleep(TICK)


def checked(app: ASGIApp, host: str, port: int) -> ASGIApp:
    """`app`, for requests to this host and port, and from pages there; with HEADERS on what it answers."""
    names = LOOPBACK if host in ("127.0.0.1", "::1", "localhost") else (*LOOPBACK, host)

    def ours(address: str) -> bool:
        name, _, at = address.rpartition(":")
        if at != str(port) and not (port == 80 and address in names):
            return False
        return name in names or (host not in LOOPBACK and host != "::1" and _is_number(name))

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        hosts, origins, sites, uses = (
            [value for name, value in headers if name == wanted]
            for wanted in (b"host", b"origin", b"sec-fetch-site", b"sec-fetch-dest")
        )
        wrong = len(hosts) != 1 or not ours(hosts[0]) or any(origin != f"http://{hosts[0]}" for origin in origins)
        foreign = any(site not in ("same-origin", "none") for site in sites) and uses != ["document"]
        if wrong or foreign or (scope["method"] not in ("GET", "HEAD") and len(origins) != 1):
            text = f"this server answers only its own page, at http://{host}:{port}/"
            return await JSONResponse({"error": text}, status_code=403)(scope, receive, with_headers)
        await app(scope, receive, with_headers)

    return guarded


def _is_number(name: str) -> bool:
    """Whether a host is an IP address, which no foreign DNS can make lead here."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def bound(host: str, port: int) -> socket.socket:
    """A socket at this address; OSError, with what to do, where it cannot be had."""
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        text = f"--host {host} --port {port} cannot be served ({error.strerror}); --port 0 takes any that is free"
        raise OSError(text) from error
    return opened


def serve(it: Explorer, opened: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, which comes out as KeyboardInterrupt; `ready` is told the address once it answers."""
    host, port = opened.getsockname()[:2]
    guarded = checked(application(it), host, port)
    config = uvicorn.Config(
        guarded,
        log_level="error",
        lifespan="off",
        ws="none",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    it.closing = lambda: server.should_exit

    def tell() -> None:
        while not server.started and not server.should_exit:
            time.sleep(0.02)
        if server.started:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{port}/")

    threading.Thread(target=tell, daemon=True).start()
    try:
        it.search.start()
        server.run(sockets=[opened])
    finally:
        it.search.stop()
        it.worker.stop()
