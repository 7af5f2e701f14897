"""What llama.cpp itself does with GGUF files, through the llama-cpp-python package: answers, and types that it makes.

Answers are for comparing, not for speed: keys and values are float32, and one prompt is computed at a time. A prompt is
written as llama.cpp's server writes it: by the file's own chat template, from messages whose images are markers in the
text.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mini_internvl.files import FileError

INSTALL = "this is done by llama.cpp, whose Python package is missing: pip install llama-cpp-python"
IMAGE = -1  # stands for a visual token among the ids of a prompt


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What llama.cpp made of a prompt."""

    prompt: tuple[int, ...]  # ids, :data:`IMAGE` for each visual token
    tokens: tuple[int, ...]  # the greedy answer, without the token that ends it
    logits: Tensor  # (answer, vocabulary): before each token of the answer, and before the one that ended it


@functools.cache
def library() -> tuple[Any, Any]:
    """The package and its part for images, with nothing logged on standard error; ValueError says how to install it."""
    try:
        import llama_cpp
        from llama_cpp import mtmd_cpp
    except (ImportError, OSError):
        raise ValueError(INSTALL) from None
    for setter in (llama_cpp.llama_log_set, mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
        setter(_silent(llama_cpp), ctypes.c_void_p(0))
    return llama_cpp, mtmd_cpp


@functools.cache
def _silent(llama_cpp: Any) -> Any:
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write a language model's file in another type, such as ``"Q4_K_M"``; ValueError when llama.cpp cannot."""
    llama_cpp, _ = library()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise ValueError(f"llama.cpp could not make {kind} of the model; write f16 and see what llama-quantize says")


def find_files(folder: Path) -> tuple[Path, Path]:
    """The language model and the mmproj in a folder; FileError when it holds other numbers of them."""
    files = sorted(folder.glob("*.gguf"))
    mmproj = [file for file in files if file.name.startswith("mmproj")]
    models = [file for file in files if file not in mmproj]
    if len(mmproj) != 1 or len(models) != 1:
        raise FileError(f"{folder} holds {len(models)} language models and {len(mmproj)} mmproj files; put one of each")
    return models[0], mmproj[0]


class LlamaCpp:
    """A GGUF pair in llama.cpp; to be used in a ``with`` block."""

    def __init__(self, folder: Path, *, context: int) -> None:
        """Load for prompts and answers of together ``context`` tokens.

        ValueError when the package or a file is missing, or llama.cpp cannot read the files.
        """
        llama_cpp, mtmd_cpp = self._llama, self._mtmd = library()
        import jinja2  # llama-cpp-python needs it too

        model, mmproj = find_files(folder)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise FileError(f"llama.cpp cannot load {model}; write it again")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        self._context, self._room = llama_cpp.llama_init_from_model(self._model, settings), context
        vision = mtmd_cpp.mtmd_context_params_default()
        vision.use_gpu, vision.print_timings, vision.n_threads = False, False, torch.get_num_threads()
        self._vision = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), self._model, vision)
        if not self._vision:
            raise FileError(f"llama.cpp cannot load {mmproj}; write it again")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.size = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        text = llama_cpp.llama_model_chat_template(self._model, None).decode()
        self._template = jinja2.Environment().from_string(text)
        self.marker = mtmd_cpp.mtmd_default_marker().decode()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mtmd.mtmd_free(self._vision)
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def answer(
        self,
        messages: Sequence[dict[str, str]],
        images: Sequence[Image.Image],
        max_new_tokens: int,
        *,
        end: bool = True,
    ) -> Answer:
        """The greedy answer to messages of plain text, each image a :attr:`marker` in it.

        Without ``end`` no token ends it early.
        ValueError when prompt and answer are longer than the context.
        """
        chunks = self._mtmd.mtmd_input_chunks_init()
        try:
            self._tokenize(chunks, self._text(messages), images)
            prompt = self._ids(chunks)
            if len(prompt) + max_new_tokens > self._room:
                raise ValueError(
                    f"prompt and answer have {len(prompt) + max_new_tokens} tokens, more than {self._room}"
                )
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
            place = ctypes.c_int32(0)
            failed = self._mtmd.mtmd_helper_eval_chunks(
                self._vision, self._context, chunks, 0, 0, self._room, True, ctypes.byref(place)
            )
            if failed:
                raise ValueError(f"llama.cpp could not compute the prompt (code {failed})")
        finally:
            self._mtmd.mtmd_input_chunks_free(chunks)
        return self._generate(prompt, max_new_tokens, end=end)

    def _text(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt without the BOS that llama.cpp puts in front itself."""
        text = self._template.render(messages=messages, add_generation_prompt=True)
        if self._llama.llama_vocab_get_add_bos(self._vocabulary):
            number = self._llama.llama_vocab_bos(self._vocabulary)
            text = text.removeprefix(self._llama.llama_vocab_get_text(self._vocabulary, number).decode())
        return text

    def _tokenize(self, chunks: Any, text: str, images: Sequence[Image.Image]) -> None:
        rgb = [image.convert("RGB") for image in images]
        held = [(ctypes.c_ubyte * len(data)).from_buffer_copy(data) for data in (image.tobytes() for image in rgb)]
        maps = [
            self._mtmd.mtmd_bitmap_init(image.width, image.height, pixels)
            for image, pixels in zip(rgb, held, strict=True)
        ]
        given = self._mtmd.mtmd_input_text()
        content = text.encode()
        given.text, given.text_len, given.add_special, given.parse_special = content, len(content), True, True
        array = (ctypes.c_void_p * len(maps))(*maps)
        try:
            failed = self._mtmd.mtmd_tokenize(self._vision, chunks, ctypes.byref(given), array, len(maps))
        finally:
            for bitmap in maps:
                self._mtmd.mtmd_bitmap_free(bitmap)
        if failed:
            raise ValueError(f"llama.cpp could not read the prompt or its images (code {failed})")

    def _ids(self, chunks: Any) -> tuple[int, ...]:
        found: list[int] = []
        for number in range(self._mtmd.mtmd_input_chunks_size(chunks)):
            chunk = self._mtmd.mtmd_input_chunks_get(chunks, number)
            if self._mtmd.mtmd_input_chunk_get_type(chunk) == self._mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                count = ctypes.c_size_t(0)
                tokens = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                found += tokens[: count.value]
            else:
                found += [IMAGE] * self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        return tuple(found)

    def _generate(self, prompt: tuple[int, ...], max_new_tokens: int, *, end: bool) -> Answer:
        tokens: list[int] = []
        rows: list[Tensor] = []
        while len(tokens) < max_new_tokens:
            row = self._llama.llama_get_logits_ith(self._context, -1)
            rows.append(torch.from_numpy(np.ctypeslib.as_array(row, (self.size,)).copy()))
            token = int(rows[-1].argmax())
            if end and self._llama.llama_vocab_is_eog(self._vocabulary, token):
                break
            tokens.append(token)
            one = (self._llama.llama_token * 1)(token)
            if self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(one, 1)):
                raise ValueError("llama.cpp could not compute the next token")
        return Answer(prompt=prompt, tokens=tuple(tokens), logits=torch.stack(rows))
