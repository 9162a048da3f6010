"""Starts the first kernel, then serves, then says that it is ready."""

import asyncio
import pathlib

from tornado.httpserver import HTTPServer

from .service import MAX_BODY, Contexts, application

PORT = 49999
READY = pathlib.Path("/run/code-interpreter/ready")


async def main():
    contexts = Contexts()
    await contexts.start()
    server = HTTPServer(application(contexts), max_body_size=MAX_BODY)
    server.listen(PORT)
    READY.parent.mkdir(parents=True, exist_ok=True)
    READY.touch()
    await asyncio.Event().wait()


asyncio.run(main())
