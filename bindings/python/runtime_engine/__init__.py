"""Load a language model once, talk to it and fine-tune it, in this process.

>>> with Engine(backend="cpu") as engine:
...     model = engine.load("model.gguf")
...     session = model.session()
...     session.append_messages([{"role": "user", "content": "Hello!"}])
...     for text in session.generate(max_tokens=64):
...         print(text, end="", flush=True)
"""

from __future__ import annotations

import ctypes as c
import json
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Deque, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from . import _abi as abi

__all__ = ["Adapter", "Engine", "Error", "Event", "Model", "Request", "Session", "Training", "version"]

_lib = abi.open_library()
_BACKENDS = {"auto": 0, "cuda": 1, "wgpu": 2, "cpu": 3}
_KINDS = ["model_progress", "model_ready", "text", "done", "embedding", "scores", "training_ready", "training_step"]
_KINDS += ["training_done", "memory_pressure"]
_REASONS = [None, "stop", "length", "cancelled"]
_FOREVER = 0xFFFFFFFF


def version() -> str:
    """The library's version."""
    return _lib.runtime_version().decode()


class Error(Exception):
    """A call or its work failed. `name` is the status: "RUNTIME_ERROR_IO"."""

    def __init__(self, code: int, message: str):
        self.code = code
        self.name: str = _lib.runtime_status_name(code).decode()
        super().__init__(f"{self.name}: {message}")


def _call(name: str, *arguments: Any) -> None:
    error = abi.Error()
    status = getattr(_lib, name)(*arguments, c.byref(error))
    if status != 0:
        raise Error(status, error.message.decode("utf-8", "replace"))


def _ids(ids: Sequence[int]) -> Any:
    return (c.c_uint32 * len(ids))(*ids)


@dataclass(frozen=True)
class Event:
    """One thing that happened: a copy, so it can be kept."""

    kind: str
    object: int
    status: int
    reason: Optional[str]
    text: str
    ids: Tuple[int, ...]
    values: Tuple[float, ...]
    done: int
    total: int
    loss: float
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int

    def check(self) -> "Event":
        """Itself, unless it says that something failed.

        Raises: Error."""
        if self.status != 0:
            raise Error(self.status, self.text)
        return self


class _Owned:
    """A handle that is released once."""

    _kind = ""

    def __init__(self, handle: abi.Handle):
        self._handle = handle

    @property
    def id(self) -> int:
        """What events of this object carry."""
        return self._handle.id

    def close(self) -> None:
        """Releases it. Children keep their parents alive, so any order will do."""
        handle, self._handle = self._handle, abi.Handle(0)
        getattr(_lib, f"runtime_{self._kind}_release")(handle)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and self._handle.id:
            self.close()


class Engine(_Owned):
    """A device, all that lies on it, and the queue of what happened. Any thread may use it."""

    _kind = "engine"

    def __init__(
        self,
        backend: str = "auto",
        device: int = 0,
        stepped: bool = False,
        soft_limit: int = 0,
        hard_limit: int = 0,
    ):
        if backend not in _BACKENDS:
            raise ValueError(f"backend is {backend!r}, expected one of {', '.join(_BACKENDS)}")
        options = abi.EngineOptions(backend=_BACKENDS[backend], device=device, run_mode=int(stepped))
        options.soft_limit, options.hard_limit = soft_limit, hard_limit
        handle = abi.Handle(0)
        _call("runtime_engine_create", c.byref(options), c.byref(handle))
        super().__init__(handle)
        self._stepped = stepped
        self._lock = threading.Lock()
        self._kept: Dict[int, Deque[Event]] = {}

    def load(self, path: Union[str, "Any"], wait: bool = True, **options: int) -> "Model":
        """A model from a .gguf file or a Hugging Face folder. Options are the fields of runtime_model_options.

        Raises: Error."""
        raw, fields, handle = str(path).encode(), abi.ModelOptions(**options), abi.Handle(0)
        _call("runtime_model_load", self._handle, raw, len(raw), c.byref(fields), c.byref(handle))
        model = Model(handle, self)
        if wait:
            _call("runtime_model_wait", handle, _FOREVER)
        return model

    def step(self, budget_us: int) -> bool:
        """Works for a while, with `stepped`; true while there is more to do."""
        busy = c.c_uint32()
        _call("runtime_engine_step", self._handle, budget_us, c.byref(busy))
        return bool(busy.value)

    def pause(self) -> None:
        """Works on nothing until `resume`."""
        _call("runtime_engine_pause", self._handle)

    def resume(self) -> None:
        """Goes on after `pause`."""
        _call("runtime_engine_resume", self._handle)

    def set_memory_limit(self, soft: int = 0, hard: int = 0) -> None:
        """Bytes; 0: no limit."""
        _call("runtime_engine_set_memory_limit", self._handle, soft, hard)

    def _poll(self) -> None:
        """Sorts what has happened by object."""
        events = (abi.Event * 16)()
        events[0].struct_size = c.sizeof(abi.Event)
        count = c.c_size_t()
        with self._lock:
            _call("runtime_engine_poll", self._handle, events, len(events), c.byref(count))
            for event in events[: count.value]:
                self._kept.setdefault(event.object, deque()).append(_copied(event))

    def events(self, of: Union[_Owned, "Request"]) -> Iterator[Event]:
        """What has happened to an object and was not yet heard of. Does not wait."""
        self._poll()
        kept = self._kept.get(of.id)
        while kept:
            yield kept.popleft()

    def _next(self, of: Union[_Owned, "Request"]) -> Event:
        """The next event of an object, as soon as there is one."""
        while True:
            for event in self.events(of):
                return event
            if self._stepped:
                self.step(10_000)
            else:
                # Another thread may have taken the event meanwhile: look again soon.
                _call("runtime_engine_wait", self._handle, 20, None)


def _copied(event: abi.Event) -> Event:
    return Event(
        kind=_KINDS[event.type] if event.type < len(_KINDS) else f"unknown-{event.type}",
        object=event.object,
        status=event.status,
        reason=_REASONS[event.finish_reason],
        text=c.string_at(event.text, event.text_len).decode() if event.text_len else "",
        ids=tuple(event.ids[: event.id_count]) if event.id_count else (),
        values=tuple(event.values[: event.value_count]) if event.value_count else (),
        done=event.done,
        total=event.total,
        loss=event.loss,
        prompt_tokens=event.prompt_tokens,
        cached_tokens=event.cached_tokens,
        generated_tokens=event.generated_tokens,
    )


class Model(_Owned):
    """A model of an engine."""

    _kind = "model"

    def __init__(self, handle: abi.Handle, engine: Engine):
        super().__init__(handle)
        self.engine = engine

    def info(self) -> Dict[str, Any]:
        """The fields of runtime_model_info."""
        info = abi.ModelInfo()
        _call("runtime_model_get_info", self._handle, c.byref(info))
        fields = {name: getattr(info, name) for name, _ in info._fields_ if name not in ("struct_size", "reserved")}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in fields.items()}

    def session(self) -> "Session":
        """An empty session."""
        handle = abi.Handle(0)
        _call("runtime_session_create", self._handle, c.byref(handle))
        return Session(handle, self)

    def load_state(self, state: bytes, adapters: Sequence[Tuple["Adapter", float]] = ()) -> "Session":
        """A session of what `Session.save_state` gave."""
        handle, refs = abi.Handle(0), _refs(adapters)
        _call("runtime_session_load_state", self._handle, state, len(state), refs, len(adapters), c.byref(handle))
        return Session(handle, self)

    def adapter(self, path: Union[str, Any]) -> "Adapter":
        """An adapter in PEFT's format."""
        handle, raw = abi.Handle(0), str(path).encode()
        _call("runtime_adapter_load", self._handle, raw, len(raw), c.byref(handle))
        return Adapter(handle)

    def training(self, **options: Any) -> "Training":
        """A training job. Options are the fields of runtime_training_options; init_adapter is an Adapter, preference one of
        "dpo", "hinge", "ipo" and "orpo" for a job that takes pairs."""
        init = options.pop("init_adapter", None)
        if "preference" in options:
            options["preference"] = ("", "dpo", "hinge", "ipo", "orpo").index(options["preference"])
        for name in ("target_modules", "resume"):
            if name in options:
                options[name] = str(options[name]).encode()
                options[f"{name}_len"] = len(options[name])
        fields, handle = abi.TrainingOptions(**options), abi.Handle(0)
        if init is not None:
            fields.init_adapter = init._handle
        _call("runtime_training_create", self._handle, c.byref(fields), c.byref(handle))
        return Training(handle, self)

    def tokenize(self, text: str, add_special: bool = True) -> List[int]:
        """The tokens of a text."""
        raw, count = text.encode(), c.c_size_t()
        _call("runtime_model_tokenize", self._handle, raw, len(raw), int(add_special), None, 0, c.byref(count))
        out = (c.c_uint32 * count.value)()
        _call("runtime_model_tokenize", self._handle, raw, len(raw), int(add_special), out, len(out), c.byref(count))
        return list(out)

    def detokenize(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of tokens."""
        raw, size = _ids(ids), c.c_size_t()
        _call("runtime_model_detokenize", self._handle, raw, len(ids), int(skip_special), None, 0, c.byref(size))
        out = c.create_string_buffer(size.value + 1)
        skip = int(skip_special)
        _call("runtime_model_detokenize", self._handle, raw, len(ids), skip, out, len(out), c.byref(size))
        return out.raw[: size.value].decode()

    def _numbers(self, call: str, ids: Sequence[int]) -> List[float]:
        handle = abi.Handle(0)
        _call(call, self._handle, _ids(ids), len(ids), 0, c.byref(handle))
        return list(self.engine._next(Request(handle, self.engine)).check().values)

    def embed(self, ids: Sequence[int]) -> List[float]:
        """The last token's output of the last layer, after the norm."""
        return self._numbers("runtime_model_embed", ids)

    def score(self, ids: Sequence[int]) -> List[float]:
        """The log-probability, in nat, of each token after the first."""
        return self._numbers("runtime_model_score", ids)


class Adapter(_Owned):
    """LoRA weights of a model."""

    _kind = "adapter"

    def save(self, path: Union[str, Any]) -> None:
        """As a folder that PEFT reads."""
        raw = str(path).encode()
        _call("runtime_adapter_save", self._handle, raw, len(raw))


def _refs(adapters: Sequence[Tuple[Adapter, float]]) -> Any:
    return (abi.AdapterRef * len(adapters))(*(abi.AdapterRef(a._handle, scale, 0) for a, scale in adapters))


class Request:
    """A running request: an iterator over the pieces of its text."""

    def __init__(self, handle: abi.Handle, engine: Engine):
        self._handle, self._engine = handle, engine
        #: The last event, once it has come.
        self.end: Optional[Event] = None

    @property
    def id(self) -> int:
        return self._handle.id

    def cancel(self) -> None:
        """Ends it at once. Nothing happens to one that has ended."""
        try:
            _call("runtime_request_cancel", self._handle)
        except Error as error:
            if error.name != "RUNTIME_ERROR_STALE_HANDLE":
                raise

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self.end is None:
            event = self._engine._next(self)
            if event.kind == "text":
                return event.text
            self.end = event
            event.check()
        raise StopIteration

    def text(self) -> str:
        """All of what is left of the answer."""
        return "".join(self)


class Session(_Owned):
    """A text that grows: what is appended, and what the model answers. One thread at a time."""

    _kind = "session"

    def __init__(self, handle: abi.Handle, model: Model):
        super().__init__(handle)
        self.model = model

    def append_text(self, text: str) -> None:
        """Appends text as it stands."""
        raw = text.encode()
        _call("runtime_session_append_text", self._handle, raw, len(raw))

    def append_tokens(self, ids: Sequence[int]) -> None:
        """Appends tokens."""
        _call("runtime_session_append_tokens", self._handle, _ids(ids), len(ids))

    def append_messages(self, messages: Iterable[Dict[str, Any]]) -> None:
        """Appends messages, through the model's chat template."""
        raw = json.dumps(list(messages)).encode()
        _call("runtime_session_append_messages", self._handle, raw, len(raw))

    def set_adapters(self, *adapters: Union[Adapter, Tuple[Adapter, float]]) -> None:
        """The adapters that answer from now on, each alone or with a scale."""
        pairs = [entry if isinstance(entry, tuple) else (entry, 1.0) for entry in adapters]
        _call("runtime_session_set_adapters", self._handle, _refs(pairs), len(pairs))

    def generate(self, stop: Sequence[str] = (), json_schema: Optional[Dict[str, Any]] = None, **options: Any) -> Request:
        """Begins to answer. Options are the fields of runtime_generate_options.

        Raises: Error."""
        fields, handle = abi.GenerateOptions(**options), abi.Handle(0)
        stops = (c.c_char_p * len(stop))(*(text.encode() for text in stop))
        fields.stop, fields.stop_count = stops, len(stop)
        if json_schema is not None:
            fields.grammar_type, fields.grammar = 2, json.dumps(json_schema).encode()
            fields.grammar_len = len(fields.grammar)
        _call("runtime_session_generate", self._handle, c.byref(fields), c.byref(handle))
        return Request(handle, self.model.engine)

    def fork(self) -> "Session":
        """Another session with the same text and adapters."""
        handle = abi.Handle(0)
        _call("runtime_session_fork", self._handle, c.byref(handle))
        return Session(handle, self.model)

    def rewind(self, tokens: int) -> None:
        """Cuts the text to its first tokens."""
        _call("runtime_session_rewind", self._handle, tokens)

    def __len__(self) -> int:
        count = c.c_size_t()
        _call("runtime_session_get_token_count", self._handle, c.byref(count))
        return count.value

    def tokens(self) -> List[int]:
        """The tokens of the text."""
        out, count = (c.c_uint32 * len(self))(), c.c_size_t()
        _call("runtime_session_get_tokens", self._handle, out, len(out), c.byref(count))
        return list(out)

    def save_state(self) -> bytes:
        """The session as bytes."""
        size = c.c_size_t()
        _call("runtime_session_save_state", self._handle, None, 0, c.byref(size))
        out = c.create_string_buffer(size.value)
        _call("runtime_session_save_state", self._handle, out, size.value, c.byref(size))
        return out.raw


class Training(_Owned):
    """A training job on a model that goes on serving."""

    _kind = "training"

    def __init__(self, handle: abi.Handle, model: Model):
        super().__init__(handle)
        self.model = model

    def add_example(self, example: Dict[str, Any]) -> None:
        """An example as on a line of `runtime train`'s data."""
        raw = json.dumps(example).encode()
        _call("runtime_training_add_example", self._handle, raw, len(raw))

    def add_preference(self, pair: Dict[str, Any]) -> None:
        """A pair of answers: prompt, chosen and rejected, all texts or all lists of messages."""
        raw = json.dumps(pair).encode()
        _call("runtime_training_add_preference", self._handle, raw, len(raw))

    def start(self) -> None:
        """Seals the job and starts it as soon as it is ready."""
        _call("runtime_training_seal", self._handle)
        _call("runtime_training_start", self._handle)

    def steps(self) -> Iterator[Event]:
        """The steps as they are done, until the job is over.

        Raises: Error."""
        while True:
            event = self.model.engine._next(self).check()
            if event.kind == "training_done":
                return
            if event.kind == "training_step":
                yield event

    def pause(self) -> None:
        """Stops until `resume`."""
        _call("runtime_training_pause", self._handle)

    def resume(self) -> None:
        """Goes on after `pause`."""
        _call("runtime_training_resume", self._handle)

    def cancel(self) -> None:
        """Ends it; its adapter can still be had."""
        _call("runtime_training_cancel", self._handle)

    def checkpoint(self, folder: Union[str, Any]) -> None:
        """Writes checkpoint-N into a folder."""
        raw = str(folder).encode()
        _call("runtime_training_checkpoint", self._handle, raw, len(raw))

    def snapshot(self, into: Optional[Adapter] = None) -> Adapter:
        """The adapter as it is now; `into` an existing one, it is heard in open sessions."""
        handle = into._handle if into is not None else abi.Handle(0)
        _call("runtime_training_snapshot_adapter", self._handle, c.byref(handle))
        return into if into is not None else Adapter(handle)
