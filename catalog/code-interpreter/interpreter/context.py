"""One Jupyter kernel and the executions in it, one at a time."""

import asyncio
import os
import queue
import time
import uuid

from jupyter_client.manager import AsyncKernelManager

from . import events, snippets
from .identity import environment

LANGUAGE = "python"
# All in seconds: how often a client that hears nothing is shown that the line is alive, how
# often a silent kernel is looked after, how long one may take to start.
PULSE = 5.0
LOOK = 0.5
START_TIMEOUT = 120
# The kernel talks through Unix sockets, which need no network and end with the folder.
SOCKETS = "/run/code-interpreter"


class Context:
    def __init__(self, cwd):
        self.id = str(uuid.uuid4())
        self.cwd = cwd
        self.turn = asyncio.Lock()
        self.variables = {}  # what the sandbox's environment adds to the kernel's
        self.reseed = False
        self.generation = 0  # counts interpreters: a new one knows nothing of the old one
        self.manager = self.client = None

    def describe(self):
        return {"id": self.id, "language": LANGUAGE, "cwd": self.cwd}

    async def start(self):
        os.makedirs(SOCKETS, mode=0o700, exist_ok=True)
        self.manager = AsyncKernelManager(
            kernel_name="python3",
            transport="ipc",
            connection_file=os.path.join(SOCKETS, self.id + ".json"),
        )
        await self.manager.start_kernel(cwd=self.cwd)
        await self.connect()

    async def connect(self):
        self.client = self.manager.client()
        self.client.start_channels(hb=False)
        await self.client.wait_for_ready(timeout=START_TIMEOUT)
        self.renewed()
        await self.quietly(snippets.WARM_UP)

    async def restart(self):
        """Starts the interpreter afresh. What runs in it ends with an error."""
        self.generation += 1
        await self.manager.restart_kernel(now=True)
        async with self.turn:
            await self.reconnect()

    async def reconnect(self):
        self.client.stop_channels()
        await self.connect()

    async def stop(self):
        self.generation += 1
        await self.manager.shutdown_kernel(now=True)
        async with self.turn:
            self.client.stop_channels()

    async def interrupt(self):
        await self.manager.interrupt_kernel()

    def renewed(self):
        """Makes the next execution give the kernel the state of this machine."""
        self.reseed = True

    async def execute(self, code, variables):
        """Yields the events of one execution."""
        async with self.turn:
            generation = self.generation
            if self.reseed:
                self.reseed = False
                self.variables = environment()
                await self.quietly(snippets.set_environment(self.variables) + "\n" + snippets.RESEED)
            if variables:
                await self.quietly(snippets.set_environment(variables))
            async for event in self.run(code, silent=False):
                yield event
            if variables and generation == self.generation:
                before = {**os.environ, **self.variables}
                await self.quietly(snippets.restore_environment(list(variables), before))

    async def quietly(self, code):
        """Runs code of ours, which leaves no trace in the user's history."""
        async for event in self.run(code, silent=True):
            if event["type"] == "error":
                raise RuntimeError(f"{event['name']}: {event['value']}")

    async def run(self, code, silent):
        generation, pulse = self.generation, time.monotonic()
        request = self.client.execute(code, silent=silent, store_history=not silent, allow_stdin=False)
        while True:
            try:
                message = await self.client.get_iopub_msg(timeout=LOOK)
            except queue.Empty:
                if generation != self.generation:
                    yield events.error("ContextRestarting", "Context was restarted")
                    return
                if not await self.manager.is_alive():
                    self.generation += 1
                    yield events.error("KernelDied", "The interpreter ended unexpectedly; it was started afresh")
                    await self.manager.restart_kernel(now=True)
                    await self.reconnect()
                    return
                if time.monotonic() - pulse > PULSE:
                    pulse = time.monotonic()
                    yield events.KEEPALIVE
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            if events.is_end(message):
                return
            event = events.event(message)
            if event is not None:
                yield event
