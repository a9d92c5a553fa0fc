"""What is measured of llama.cpp: a process of its own, in a Python that has llama_cpp.

    python benchmarks/llamacpp_process.py '{"task": "facts"}'

It needs llama_cpp and what comes with it (numpy), nothing of edge-gemma. The argument is JSON, and so is the
last line of the output; llama.cpp writes to standard error. benchmarks/compare_llamacpp.py calls it.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api  # type: ignore[import-not-found]
from numpy.typing import NDArray

UBATCH = 512  # tokens computed at once, llama.cpp's default
WARM_UP = 128  # tokens, as edge-gemma's bench
MMAP = 1  # LLAMA_LOAD_MODE_MMAP
F32, F16 = 0, 1  # ggml's types


class Engine:
    """A model and a context for one sequence, on the processor.

    Args:
        model: path of a GGUF file.
        threads: for prompts and for decoding.
        context: tokens.
        flash: compute attention by flash attention.
        kv_type: ggml's type of the KV cache.
    """

    def __init__(
        self, model: str, *, threads: int, context: int, flash: bool, kv_type: int = F16, outputs: int = 1
    ) -> None:
        loading = api.llama_model_default_params()
        loading.n_gpu_layers = 0
        loading.load_mode = MMAP
        options = api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, UBATCH, UBATCH
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = int(flash)  # 0 and 1 are LLAMA_FLASH_ATTN_TYPE_DISABLED and _ENABLED
        options.type_k = options.type_v = kv_type
        options.swa_full = False  # rows of the window only, as llama.cpp's own programs have it
        options.n_outputs_max = outputs  # logits of the last token alone, unless more are asked for
        options.n_outputs_max_per_seq = outputs
        self._model = api.llama_model_load_from_file(model.encode(), loading)
        if not self._model:
            sys.exit(f"llama.cpp cannot load {model}: remove it, and it is written again")
        self._context = api.llama_init_from_model(self._model, options)
        if not self._context:
            sys.exit(f"llama.cpp cannot make a context of {context} tokens: lower --context")
        self._batch = api.llama_batch_init(UBATCH, 0, 1)
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self.length = 0  # tokens of the conversation so far

    def reset(self) -> None:
        """Forget the conversation."""
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        self.length = 0

    def feed(self, ids: Sequence[int], *, every: bool = False) -> NDArray[np.float32]:
        """Append tokens; logits of the last one, float32 [1, V], or of every one, [len(ids), V].

        They are llama.cpp's own memory, valid until the next call, unless there are more than a batch.
        """
        found = []
        for first in range(0, len(ids), UBATCH):
            piece = ids[first : first + UBATCH]
            wanted = len(piece) if every else int(first + len(piece) == len(ids))
            batch = self._batch
            batch.n_tokens = len(piece)
            for i, token in enumerate(piece):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self.length + i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i >= len(piece) - wanted
            if status := api.llama_decode(self._context, batch):
                sys.exit(f"llama_decode returned {status} at token {self.length + first}")
            api.llama_synchronize(self._context)
            self.length += len(piece)
            if wanted:
                shape = (wanted, self._vocabulary)
                found.append(np.ctypeslib.as_array(api.llama_get_logits(self._context), shape))
                if every:
                    found[-1] = found[-1].copy()
        return found[0] if len(found) == 1 else np.concatenate(found)

    def greedy(self, token: int, count: int) -> int:
        """Decode `count` tokens behind `token`, each the likeliest; the last one."""
        for _ in range(count):
            token = int(self.feed([token])[-1].argmax())
        return token


def measure(
    model: str,
    threads: int,
    context: int,
    flash: bool,
    ids: Sequence[int],
    prefill: Sequence[int],
    decode_at: Sequence[int],
    tokens: int,
) -> dict[str, Any]:
    """What edge-gemma's bench measures, by its definitions (docs/performance.md).

    One difference: the tokens before the decoded ones are computed, untimed.

    Returns:
        load: seconds; prefill and decode: tokens a second, by length of the prompt and by context at the end;
        peak: bytes, VmHWM; anonymous: bytes at the end that are no file's pages, RssAnon.
    """
    began = time.perf_counter()
    engine = Engine(model, threads=threads, context=context, flash=flash)
    load = time.perf_counter() - began
    engine.greedy(_first(engine, ids[:WARM_UP]), 1)
    prefilled, decoded = {}, {}
    for count in prefill:
        engine.reset()
        began = time.perf_counter()
        engine.feed(ids[:count])
        prefilled[count] = count / (time.perf_counter() - began)
    for end in decode_at:
        engine.reset()
        held = max(end - tokens - 1, 0)
        if held:
            engine.feed(ids[:held])
        token = _first(engine, ids[held : held + 1])
        began = time.perf_counter()
        engine.greedy(token, tokens)
        decoded[end] = tokens / (time.perf_counter() - began)
    engine.reset()
    finite = bool(np.isfinite(engine.feed(ids[:1])).all())
    return {
        "load": load,
        "prefill": prefilled,
        "decode": decoded,
        "peak": _status("VmHWM"),
        "anonymous": _status("RssAnon"),
        "finite": finite,
    }


def logits(model: str, threads: int, ids: Sequence[int], out: str) -> dict[str, Any]:
    """Write the logits of every token to `out`, as numpy's float32 [len(ids), V]; the KV cache is float32."""
    engine = Engine(model, threads=threads, context=len(ids) + 1, flash=False, kv_type=F32, outputs=UBATCH)
    np.save(out, engine.feed(ids, every=True))
    return {}


def facts() -> dict[str, str]:
    """Versions, and the processor's features that this build uses."""
    commit = getattr(api._lib, "ggml_commit", None)  # not among the functions that llama_cpp wraps
    if commit:
        commit.restype = ctypes.c_char_p
    return {
        "llama-cpp-python": version("llama-cpp-python"),
        "llama.cpp version": api.llama_version().decode(),
        "llama.cpp commit": commit().decode() if commit else "unknown",
        "llama.cpp build": api.llama_print_system_info().decode(),
    }


@api.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, data: object) -> None:
    """Everything to standard error, where benchmarks/contestants.py finds what went wrong."""
    sys.stderr.write(text.decode(errors="replace"))


def _first(engine: Engine, ids: Sequence[int]) -> int:
    return int(engine.feed(ids)[-1].argmax())


def _status(name: str) -> int:
    """An entry of /proc/self/status in bytes; 0 where the system has none."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
    except OSError:
        return 0
    return int(lines[name].split()[0]) * 1024 if name in lines else 0


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"measure": measure, "logits": logits, "facts": facts}

if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    task = TASKS[arguments.pop("task")]
    api.llama_log_set(_log, ctypes.c_void_p())
    api.llama_backend_init()
    print(json.dumps(task(**arguments)))
