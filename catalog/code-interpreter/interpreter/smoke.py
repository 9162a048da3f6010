"""Asks the running service for a picture, as a client would."""

import http.client
import json

CODE = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3]); plt.show()
print("hello from the kernel")
40 + 2
"""


def main():
    connection = http.client.HTTPConnection("127.0.0.1", 49999, timeout=120)
    connection.request("POST", "/execute", json.dumps({"code": CODE}), {"Content-Type": "application/json"})
    events = [json.loads(line) for line in connection.getresponse()]
    results = [event for event in events if event["type"] == "result"]
    assert any("png" in result for result in results), events
    assert results[-1]["text"] == "42" and results[-1]["is_main_result"], events
    print("".join(event["text"] for event in events if event["type"] == "stdout"), end="")


main()
