"""include/runtime.h for ctypes: structs, and the functions that the package uses. tests/test_abi.py compares both with the header."""

import ctypes as c
import os
import sys
from pathlib import Path

U32, I32, U64, F32, F64, SIZE = c.c_uint32, c.c_int32, c.c_uint64, c.c_float, c.c_double, c.c_size_t
ABI_VERSION = 2


class Handle(c.Structure):
    _fields_ = [("id", U64)]


class Sized(c.Structure):
    """A struct that starts with its size."""

    def __init__(self, **fields):
        super().__init__(struct_size=c.sizeof(type(self)), **fields)


class Error(Sized):
    _fields_ = [("struct_size", U32), ("code", I32), ("detail", I32), ("message", c.c_char * 512)]


class EngineOptions(Sized):
    _fields_ = [("struct_size", U32), ("backend", I32), ("device", U32), ("compute", I32), ("run_mode", I32)]
    _fields_ += [("reserved", U32), ("soft_limit", U64), ("hard_limit", U64)]


class ModelOptions(Sized):
    _fields_ = [("struct_size", U32), ("max_tokens", U32), ("max_requests", U32), ("max_step_tokens", U32)]
    _fields_ += [("kv_bytes", U64), ("kv_type", I32), ("max_adapters", I32), ("max_rank", U32), ("reserved", U32)]
    _fields_ += [("userdata", U64)]


class GenerateOptions(Sized):
    _fields_ = [("struct_size", U32), ("max_tokens", U32), ("min_tokens", U32), ("temperature", F32), ("top_p", F32)]
    _fields_ += [("min_p", F32), ("top_k", U32), ("repetition_penalty", F32), ("presence_penalty", F32)]
    _fields_ += [("frequency_penalty", F32), ("grammar_type", I32), ("priority", I32), ("seed", U64)]
    _fields_ += [("grammar", c.c_char_p), ("grammar_len", SIZE), ("stop", c.POINTER(c.c_char_p)), ("stop_count", SIZE)]
    _fields_ += [("ignore_eos", U32), ("logprobs", U32), ("userdata", U64)]


class TrainingOptions(Sized):
    _fields_ = [("struct_size", U32), ("rank", U32), ("alpha", F64), ("learning_rate", F64), ("weight_decay", F64)]
    _fields_ += [("max_grad_norm", F64), ("epochs", F64), ("max_steps", U32), ("dropout", F32), ("batch_size", U32)]
    _fields_ += [("grad_accum", U32), ("max_length", U32), ("warmup_steps", I32), ("schedule", I32), ("optimizer", I32)]
    _fields_ += [("loss", I32), ("flags", U32), ("seed", U64), ("userdata", U64), ("target_modules", c.c_char_p)]
    _fields_ += [("target_modules_len", SIZE), ("resume", c.c_char_p), ("resume_len", SIZE), ("init_adapter", Handle)]
    _fields_ += [("preference", I32), ("reserved", U32), ("beta", F64), ("rpo_alpha", F64)]


class Event(Sized):
    _fields_ = [("struct_size", U32), ("type", I32), ("object", U64), ("userdata", U64), ("status", I32)]
    _fields_ += [("finish_reason", I32), ("text", c.c_void_p), ("text_len", SIZE), ("ids", c.POINTER(U32))]
    _fields_ += [("id_count", SIZE), ("values", c.POINTER(F32)), ("value_count", SIZE), ("done", U64), ("total", U64)]
    _fields_ += [("loss", F64), ("grad_norm", F64), ("learning_rate", F64), ("seconds", F64), ("queue_seconds", F64)]
    _fields_ += [("prefill_seconds", F64), ("decode_seconds", F64), ("prompt_tokens", U32), ("cached_tokens", U32)]
    _fields_ += [("generated_tokens", U32), ("reserved", U32)]


class ModelInfo(Sized):
    _fields_ = [("struct_size", U32), ("layers", U32), ("hidden", U32), ("heads", U32), ("kv_heads", U32)]
    _fields_ += [("head_dim", U32), ("vocab", U32), ("max_tokens", U32), ("max_positions", U32), ("has_tokenizer", U32)]
    _fields_ += [("has_chat_template", U32), ("reserved", U32), ("weight_bytes", U64), ("name", c.c_char * 128)]
    _fields_ += [("family", c.c_char * 32)]


class AdapterRef(c.Structure):
    _fields_ = [("adapter", Handle), ("scale", F32), ("reserved", U32)]


STRUCTS = {
    "runtime_error": Error,
    "runtime_engine_options": EngineOptions,
    "runtime_model_options": ModelOptions,
    "runtime_generate_options": GenerateOptions,
    "runtime_training_options": TrainingOptions,
    "runtime_event": Event,
    "runtime_model_info": ModelInfo,
    "runtime_adapter_ref": AdapterRef,
}

P, TEXT = c.c_void_p, c.c_char_p
_ERR = c.POINTER(Error)
#: Arguments of the functions that return a status, without the error record at the end.
CALLS = {
    "runtime_engine_create": [c.POINTER(EngineOptions), c.POINTER(Handle)],
    "runtime_engine_step": [Handle, U32, c.POINTER(U32)],
    "runtime_engine_poll": [Handle, c.POINTER(Event), SIZE, c.POINTER(SIZE)],
    "runtime_engine_wait": [Handle, U32, c.POINTER(U32)],
    "runtime_engine_pause": [Handle],
    "runtime_engine_resume": [Handle],
    "runtime_engine_set_memory_limit": [Handle, U64, U64],
    "runtime_model_load": [Handle, TEXT, SIZE, c.POINTER(ModelOptions), c.POINTER(Handle)],
    "runtime_model_wait": [Handle, U32],
    "runtime_model_get_info": [Handle, c.POINTER(ModelInfo)],
    "runtime_model_tokenize": [Handle, TEXT, SIZE, U32, c.POINTER(U32), SIZE, c.POINTER(SIZE)],
    "runtime_model_detokenize": [Handle, c.POINTER(U32), SIZE, U32, P, SIZE, c.POINTER(SIZE)],
    "runtime_model_embed": [Handle, c.POINTER(U32), SIZE, U64, c.POINTER(Handle)],
    "runtime_model_score": [Handle, c.POINTER(U32), SIZE, U64, c.POINTER(Handle)],
    "runtime_adapter_load": [Handle, TEXT, SIZE, c.POINTER(Handle)],
    "runtime_adapter_save": [Handle, TEXT, SIZE],
    "runtime_session_create": [Handle, c.POINTER(Handle)],
    "runtime_session_set_adapters": [Handle, c.POINTER(AdapterRef), SIZE],
    "runtime_session_append_text": [Handle, TEXT, SIZE],
    "runtime_session_append_tokens": [Handle, c.POINTER(U32), SIZE],
    "runtime_session_append_messages": [Handle, TEXT, SIZE],
    "runtime_session_generate": [Handle, c.POINTER(GenerateOptions), c.POINTER(Handle)],
    "runtime_session_fork": [Handle, c.POINTER(Handle)],
    "runtime_session_rewind": [Handle, SIZE],
    "runtime_session_get_token_count": [Handle, c.POINTER(SIZE)],
    "runtime_session_get_tokens": [Handle, c.POINTER(U32), SIZE, c.POINTER(SIZE)],
    "runtime_session_save_state": [Handle, P, SIZE, c.POINTER(SIZE)],
    "runtime_session_load_state": [Handle, TEXT, SIZE, c.POINTER(AdapterRef), SIZE, c.POINTER(Handle)],
    "runtime_request_cancel": [Handle],
    "runtime_training_create": [Handle, c.POINTER(TrainingOptions), c.POINTER(Handle)],
    "runtime_training_add_example": [Handle, TEXT, SIZE],
    "runtime_training_add_preference": [Handle, TEXT, SIZE],
    "runtime_training_seal": [Handle],
    "runtime_training_start": [Handle],
    "runtime_training_pause": [Handle],
    "runtime_training_resume": [Handle],
    "runtime_training_cancel": [Handle],
    "runtime_training_checkpoint": [Handle, TEXT, SIZE],
    "runtime_training_snapshot_adapter": [Handle, c.POINTER(Handle)],
}
RELEASES = [f"runtime_{kind}_release" for kind in ("engine", "model", "adapter", "session", "training")]


def _find() -> str:
    named = os.environ.get("RUNTIME_LIBRARY")
    if named:
        return named
    name = {"win32": "runtime.dll", "darwin": "libruntime.dylib"}.get(sys.platform, "libruntime.so")
    beside = Path(__file__).with_name(name)
    return str(beside) if beside.exists() else name


def open_library() -> c.CDLL:
    """The shared library: RUNTIME_LIBRARY, else the one in this package, else the loader's."""
    library = c.CDLL(_find())
    for name, arguments in CALLS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [*arguments, _ERR], I32
    for name in RELEASES:
        function = getattr(library, name)
        function.argtypes, function.restype = [Handle], I32
    library.runtime_status_name.argtypes, library.runtime_status_name.restype = [I32], c.c_char_p
    library.runtime_version.restype = c.c_char_p
    library.runtime_abi_version.restype = U32
    if library.runtime_abi_version() < ABI_VERSION:
        raise ImportError(f"{_find()} has ABI version {library.runtime_abi_version()}, this package needs {ABI_VERSION}")
    return library
