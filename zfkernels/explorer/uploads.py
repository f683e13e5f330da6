"""Pictures that are sent to the explorer: how long, how large and how many at once."""

import asyncio
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from . import pictures
from .jobs import Worker

AT_ONCE, SECONDS = 8, 60.0  # uploads that are on their way, each held in memory, and how long one may take


async def answered(request: Request, coming: set[Request], worker: Worker, keep: Callable[[bytes], int]) -> Response:
    """The number that `keep` gives to a picture, which is the request's body; or why there is none.

    `coming`: the uploads that are on their way.
    """
    if len(coming) >= AT_ONCE:
        return refused(503, f"{AT_ONCE} pictures are on their way; try again when they are here")
    coming.add(request)
    try:
        data = await asyncio.wait_for(_body(request), SECONDS)
        if data is None:
            return refused(413, f"the picture must have at most {pictures.MOST_BYTES // 2**20} MB")
        return JSONResponse({"picture": await asyncio.wrap_future(worker.submit(lambda: keep(data)))})
    except asyncio.TimeoutError:
        return refused(408, f"the picture was not here within {SECONDS:g} seconds")
    except ClientDisconnect:
        return Response(status_code=400)
    except ValueError as error:
        return refused(415, str(error))
    finally:
        coming.discard(request)


async def _body(request: Request) -> bytes | None:
    """The request's body, counted as it comes; None if it is longer than pictures.MOST_BYTES."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > pictures.MOST_BYTES:
            return None
    return bytes(data)


def refused(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)
