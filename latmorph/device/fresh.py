"""Networks timed each in a process of its own, whose memory is as a deployed network finds it.

In a process that has held many networks the heap is in pieces: activations lie apart that would take turns
in the same memory, and networks with large ones take up to a quarter longer. So a process that holds nothing
but the runtime is forked for every network. Requests and replies are lines of JSON.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import msgspec

from latmorph.device.backend import Backend
from latmorph.device.fingerprint import Fingerprint
from latmorph.device.registry import backend_of
from latmorph.device.timing import StopRule, Visit, Visitor, visit_network
from latmorph.errors import DeviceError
from latmorph.opspec import OpSpec, Step


class FreshProcesses:
    """A context that visits networks as :func:`latmorph.device.timing.visit_network` does, elsewhere.

    Raises DeviceError when the process of a network dies or finds an error, with what it said.
    """

    def __init__(self, fingerprint: Fingerprint) -> None:
        self.fingerprint = fingerprint

    def __enter__(self) -> FreshProcesses:
        read, write = os.pipe()
        # What this process can import, that one can.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._parent = subprocess.Popen(
            [sys.executable, "-m", __name__, str(write)],
            stdin=subprocess.PIPE,
            pass_fds=(write,),
            env=environment,
            text=True,
        )
        os.close(write)
        self._replies = os.fdopen(read, encoding="utf-8")
        self._ask(msgspec.to_builtins(self.fingerprint))
        return self

    def __exit__(self, *error: object) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._replies.close()  # what is still running ends at its next line
        self._parent.wait()

    def __call__(
        self, network: int, visit: int, steps: Sequence[Step], scratch_bytes: int, rule: StopRule
    ) -> Visit:
        """Load a network in a new process, time it there, and return its raw times."""
        reply = self._ask(
            {
                "network": network,
                "visit": visit,
                "steps": [[s.spec.to_json(), s.sources, s.returned] for s in steps],
                "scratch_bytes": scratch_bytes,
                "rule": asdict(rule),
            }
        )
        return Visit.from_builtins(reply)

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._parent.stdin is not None
        try:
            self._parent.stdin.write(json.dumps(request) + "\n")
            self._parent.stdin.flush()
            reply = json.loads(self._replies.readline())
        except (OSError, ValueError):
            raise DeviceError(
                f"the process that networks are timed in ended (status {self._parent.wait()}); "
                "what it wrote is above"
            ) from None
        if "error" in reply:
            raise DeviceError(reply["error"])
        return reply


def visitor_of(backend: Backend) -> AbstractContextManager[Visitor]:
    """What visits networks of a backend: each in a process of its own, where the backend can be forked."""
    if backend.forks:
        return FreshProcesses(backend.fingerprint())
    return nullcontext(functools.partial(visit_network, backend))


def serve(replies: int) -> None:
    """Answer the requests on standard input, each in a process forked for it, until there are no more.

    The first tells the fingerprint of the device and runtime.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for whoever asks
    backend = backend_of(msgspec.convert(json.loads(sys.stdin.readline()), Fingerprint))
    with backend:
        backend.prepare()
    _write(replies, {})
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _answer(backend, json.loads(line), replies)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            _write(replies, {"error": f"the process of a network died (status {status}): out of memory?"})


def _answer(backend: Backend, request: Mapping[str, Any], replies: int) -> None:
    try:
        steps = [
            Step(OpSpec.from_json(spec), tuple((i, k) for i, k in sources), tuple(returned))
            for spec, sources, returned in request["steps"]
        ]
        with backend:
            visit = visit_network(
                backend,
                request["network"],
                request["visit"],
                steps,
                request["scratch_bytes"],
                StopRule(**request["rule"]),
            )
        _write(replies, visit.to_builtins())
    except Exception as error:
        _write(replies, {"error": f"{type(error).__name__}: {error}"})


def _write(replies: int, reply: Mapping[str, Any]) -> None:
    data = (json.dumps(reply) + "\n").encode()
    while data:
        data = data[os.write(replies, data) :]


if __name__ == "__main__":
    serve(int(sys.argv[1]))
