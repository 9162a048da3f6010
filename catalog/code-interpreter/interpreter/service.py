"""The HTTP interface: POST /execute, and the contexts in which code runs."""

import asyncio
import json
import os

from tornado import web
from tornado.iostream import StreamClosedError

from . import events
from .context import LANGUAGE, Context
from .identity import Identity

LANGUAGES = {"", LANGUAGE, "python3", "py"}
MAX_BODY = 100 << 20  # bytes


class Contexts:
    """All contexts, by ID. The default one cannot be told from the others by its look."""

    def __init__(self):
        self.identity = Identity()
        self.by_id = {}
        self.default = None

    async def create(self, cwd=None):
        context = Context(cwd or os.path.expanduser("~"))
        await context.start()
        self.by_id[context.id] = context
        return context

    async def start(self):
        self.default = await self.create()
        # So that a clone's first request, and none before, meets the new identity.
        self.identity.changed()

    def find(self, id):
        if self.identity.changed():
            for context in self.by_id.values():
                context.renewed()
        if not id:
            return self.default
        return self.by_id.get(id)

    async def remove(self, context):
        del self.by_id[context.id]
        await context.stop()
        if context is self.default:
            self.default = await self.create()


class Handler(web.RequestHandler):
    def initialize(self, contexts):
        self.contexts = contexts

    def set_default_headers(self):
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Access-Control-Allow-Methods", "*")
        self.set_header("Access-Control-Allow-Headers", "*")

    def options(self, *_):
        self.set_status(204)

    def body(self):
        """Returns the JSON object of the request, or answers 400 and returns None."""
        try:
            body = json.loads(self.request.body or b"{}")
        except ValueError:
            body = None
        if isinstance(body, dict):
            return body
        self.refuse(400, "The request is not a JSON object")
        return None

    def context(self, id):
        context = self.contexts.find(id)
        if context is None:
            self.refuse(404, f"Context {id} not found")
        return context

    def refuse(self, status, message):
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(message)

    def answer(self, value):
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))


class Health(Handler):
    def get(self):
        self.answer("OK")


class Execute(Handler):
    running = None

    async def post(self):
        body = self.body()
        if body is None:
            return
        code, id, language = body.get("code"), body.get("context_id"), body.get("language")
        variables = body.get("env_vars") or {}
        if not isinstance(code, str) or not isinstance(variables, dict):
            return self.refuse(400, "code must be text, and env_vars an object")
        if id and language:
            return self.refuse(400, "Only one of context_id or language can be provided")
        if (language or "").lower() not in LANGUAGES:
            return self.refuse(400, f"Language {language} is not available; {LANGUAGE} is")
        context = self.context(id)
        if context is None:
            return
        self.running = context
        self.set_header("Content-Type", "application/x-ndjson")
        try:
            async for event in context.execute(code, {k: str(v) for k, v in variables.items()}):
                await self.send(event)
            await self.send(events.END)
        finally:
            self.running = None

    async def send(self, event):
        if self.running is None:  # the client has gone; the kernel is drained all the same
            return
        self.write(json.dumps(event) + "\n")
        try:
            await self.flush()
        except StreamClosedError:
            self.on_connection_close()

    def on_connection_close(self):
        """Nobody waits for the result any more, so that the next one need not wait."""
        context, self.running = self.running, None
        if context is not None:
            asyncio.ensure_future(context.interrupt())


class ContextList(Handler):
    def get(self):
        self.contexts.find(None)
        self.answer([context.describe() for context in self.contexts.by_id.values()])

    async def post(self):
        body = self.body()
        if body is None:
            return
        language, cwd = body.get("language") or "", body.get("cwd")
        if language.lower() not in LANGUAGES:
            return self.refuse(400, f"Language {language} is not available; {LANGUAGE} is")
        if cwd and not os.path.isdir(cwd):
            return self.refuse(400, f"Folder {cwd} does not exist")
        self.answer((await self.contexts.create(cwd)).describe())


class OneContext(Handler):
    async def delete(self, id):
        context = self.context(id)
        if context is not None:
            await self.contexts.remove(context)
            self.answer(None)


class Restart(Handler):
    async def post(self, id):
        context = self.context(id)
        if context is not None:
            await context.restart()
            self.answer(None)


def application(contexts):
    routes = [
        ("/health", Health),
        ("/execute", Execute),
        ("/contexts", ContextList),
        ("/contexts/([^/]+)", OneContext),
        ("/contexts/([^/]+)/restart", Restart),
    ]
    return web.Application([(path, handler, {"contexts": contexts}) for path, handler in routes], log_function=lambda _: None)
