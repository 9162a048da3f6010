"""Turns what a Jupyter kernel says into the events of an answer.

The kernel's messages are those of
https://jupyter-client.readthedocs.io/en/stable/messaging.html.
"""

# MIME types that have a field of their own in a result.
FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
}

END = {"type": "end_of_execution"}
KEEPALIVE = {"type": "keepalive"}


def event(message):
    """Returns the event for a message of the kernel's, or None if there is none."""
    content = message["content"]
    match message["header"]["msg_type"]:
        case "stream":
            return {
                "type": content["name"],
                "text": content["text"],
                "timestamp": message["header"]["date"].isoformat(),
            }
        case "execute_result":
            return result(content["data"], main=True)
        case "display_data" | "update_display_data":
            return result(content["data"], main=False)
        case "error":
            return error(content["ename"], content["evalue"], "\n".join(content["traceback"]))
        case "execute_input":
            return {"type": "number_of_executions", "execution_count": content["execution_count"]}
    return None


def result(data, main):
    fields, extra = {}, {}
    for mime, value in data.items():
        if mime in FIELDS:
            fields[FIELDS[mime]] = value
        else:
            extra[mime] = value
    if "text" in fields:
        fields["text"] = unquote(fields["text"])
    if extra:
        fields["extra"] = extra
    return {"type": "result", **fields, "is_main_result": main}


def unquote(text):
    """Clients want the string itself where the kernel shows its literal."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def error(name, value, traceback=""):
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def is_end(message):
    """Tells whether the kernel is done with what it was asked."""
    header = message["header"]
    return header["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
