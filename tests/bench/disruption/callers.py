# mypy: ignore-errors
"""The callers, for locust: each sends one request after the other and records how it was answered.

Environment: ``DISRUPTION_KINDS``, the kinds of requests as JSON (see ``load.Kind``), and
``DISRUPTION_RECORDS``, the file to which one JSON line per request is appended (see ``analysis.Record``).
locust runs this file in an environment of its own, so it imports nothing of this project.
"""

import json
import os
import time
from itertools import pairwise

import requests
from locust import HttpUser, constant, task

KINDS = json.loads(os.environ["DISRUPTION_KINDS"])
RECORDS = open(os.environ["DISRUPTION_RECORDS"], "a", buffering=1)  # noqa: SIM115, PTH123  (for the process)
TIMEOUT_SECONDS = 40.0


class Caller(HttpUser):
    """One caller of one kind. It keeps its connection, as the clients of the OpenAI API do."""

    abstract = True
    wait_time = constant(0.1)
    kind = None

    @task
    def send(self) -> None:
        began, clock = time.time(), time.monotonic()
        record = {
            "kind": self.kind["name"],
            "began": began,
            "status": 0,
            "text": "",
            "finish": "",
            "error": "",
        }
        self.moments = [clock]
        try:
            with self.client.post(
                self.kind["path"],
                json=self.kind["body"],
                stream=True,
                timeout=(5, TIMEOUT_SECONDS),
                catch_response=True,
            ) as response:
                record["status"] = response.status_code
                read = self.read_stream if self.kind["body"].get("stream") else self.read_whole
                record |= read(response)
                response.success()
        except (requests.RequestException, OSError, ValueError, KeyError) as error:
            record["error"] = f"{type(error).__name__}: {error}"[:300]
        self.moments.append(time.monotonic())
        gaps = [after - before for before, after in pairwise(self.moments)]
        record |= {"seconds": self.moments[-1] - clock, "first": gaps[0], "gap": max(gaps)}
        RECORDS.write(json.dumps(record) + "\n")

    def read_whole(self, response) -> dict:
        body = response.json()
        if response.status_code != 200:
            return {"error": json.dumps(body)[:300]}
        choice = body["choices"][0]
        return {"text": choice["text"], "finish": choice["finish_reason"] or ""}

    def read_stream(self, response) -> dict:
        if response.status_code != 200:
            return {"error": response.text[:300]}
        text, finish, error = "", "", "the stream ended without [DONE]"
        for line in response.iter_lines():
            if not line.startswith(b"data: "):
                continue
            self.moments.append(time.monotonic())
            if line == b"data: [DONE]":
                error = ""
                break
            event = json.loads(line[6:])
            if "choices" not in event:
                return {"text": text, "finish": finish, "error": json.dumps(event)[:300]}
            for choice in event["choices"]:
                text += choice.get("text") or ""
                finish = choice.get("finish_reason") or finish
        return {"text": text, "finish": finish, "error": error}


for kind in KINDS:
    name = "Caller" + kind["name"].title().replace("-", "")
    globals()[name] = type(name, (Caller,), {"kind": kind, "fixed_count": kind["callers"]})
