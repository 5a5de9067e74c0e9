"""Networks timed each in a process of its own, whose memory is as a deployed network finds it.

In a process that has held many networks the heap is in pieces: activations lie apart that would take turns
in the same memory, and networks with large ones take up to a quarter longer. So a process that holds nothing
but the runtime is forked for every network. Requests and replies are lines of JSON.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import msgspec

from latmorph.device.backend import Backend
from latmorph.device.fingerprint import Fingerprint
from latmorph.device.registry import backend_of
from latmorph.device.timing import StopRule, Visit, Visitor, visit_network
from latmorph.errors import DeviceError
from latmorph.opspec import OpSpec, Step


class Caller(Protocol):
    """Returns ``function(backend, **arguments)``; arguments and result are plain values, as JSON has."""

    def __call__(self, function: Callable[..., Any], **arguments: Any) -> Any: ...


class FreshProcesses:
    """A context that calls functions, each in a new process, with the backend of a fingerprint.

    A function must stand at the top of a module, to be found there by its name; so must ``prepare``, which
    is called once in the process that is forked: to import, say, what all calls need. Raises DeviceError
    when the process of a call dies or finds an error, with what it said.
    """

    def __init__(self, fingerprint: Fingerprint, prepare: Callable[[], object] | None = None) -> None:
        self.fingerprint = fingerprint
        self.prepare = prepare

    def __enter__(self) -> FreshProcesses:
        read, write = os.pipe()
        self._replies = os.fdopen(read, encoding="utf-8")
        # What this process can import, that one can.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            self._parent = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({write})"],
                stdin=subprocess.PIPE,
                pass_fds=(write,),
                env=environment,
                text=True,
            )
        except OSError:
            self._replies.close()
            raise
        finally:
            os.close(write)
        try:
            prepare = None if self.prepare is None else _name(self.prepare)
            self._ask({"fingerprint": msgspec.to_builtins(self.fingerprint), "prepare": prepare})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._replies.close()  # what is still running ends at its next line
        self._parent.wait()

    def __call__(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """``function(backend, **arguments)`` in a new process."""
        return self._ask({"function": _name(function), "arguments": arguments})["result"]

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


@contextmanager
def caller_of(backend: Backend, prepare: Callable[[], object] | None = None) -> Iterator[Caller]:
    """What calls functions with a backend: each in a process of its own, where the backend can be forked."""
    if backend.forks:
        with FreshProcesses(backend.fingerprint(), prepare) as processes:
            yield processes
    else:
        yield lambda function, **arguments: function(backend, **arguments)


@contextmanager
def visitor_of(backend: Backend) -> Iterator[Visitor]:
    """What visits networks of a backend by :func:`caller_of`."""
    with caller_of(backend) as call:
        yield functools.partial(_visit, call)


def _visit(
    call: Caller, network: int, visit: int, steps: Sequence[Step], scratch_bytes: int, rule: StopRule
) -> Visit:
    reply = call(
        visit_steps,
        network=network,
        visit=visit,
        steps=[[s.spec.to_json(), s.sources, s.returned] for s in steps],
        scratch_bytes=scratch_bytes,
        rule=asdict(rule),
    )
    return Visit.from_builtins(reply)


def visit_steps(
    backend: Backend,
    *,
    network: int,
    visit: int,
    steps: Sequence[Sequence[Any]],
    scratch_bytes: int,
    rule: Mapping[str, Any],
) -> dict[str, Any]:
    """:func:`latmorph.device.timing.visit_network` by plain values."""
    made = [
        Step(OpSpec.from_json(spec), tuple((i, k) for i, k in sources), tuple(returned))
        for spec, sources, returned in steps
    ]
    return visit_network(backend, network, visit, made, scratch_bytes, StopRule(**rule)).to_builtins()


def serve(replies: int) -> None:
    """Answer the requests on standard input, each in a process forked for it, until there are no more.

    The first tells the fingerprint of the device and runtime, and what to prepare.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for whoever asks
    try:
        first = json.loads(sys.stdin.readline())
        backend = backend_of(msgspec.convert(first["fingerprint"], Fingerprint))
        with backend:
            backend.prepare()
            if first["prepare"] is not None:
                _named(first["prepare"])()
    except Exception as error:
        _write(replies, {"error": _words(error)})
        return
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
        function = _named(request["function"])
        with backend:
            reply = {"result": function(backend, **request["arguments"])}
    except Exception as error:
        reply = {"error": _words(error)}
    _write(replies, reply)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__name__}"


def _named(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _write(replies: int, reply: Mapping[str, Any]) -> None:
    data = (json.dumps(reply) + "\n").encode()
    while data:
        data = data[os.write(replies, data) :]
