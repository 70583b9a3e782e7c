"""A tail that was compiled ahead of time to a shared library, called through AOTInductor's C interface.

Through ctypes and not through torch's own loader, because that one holds Python's lock while the tail runs: the event
loop, and with it HTTP and health checks, would stand still for the whole batch (20 ms at the median, measured; 1 ms
through ctypes). Knows the interface that torch/csrc/inductor/aoti_runtime/interface.h states; knows no model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from split_inference.errors import ModelLoadError

_POINTER = ctypes.c_void_p
_POINTERS = ctypes.POINTER(_POINTER)

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = _POINTER, (ctypes.py_object, ctypes.c_char_p)
_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (_POINTER, ctypes.c_char_p, _POINTER)


class CompiledTail:
    """Runs one library; shapes and dtypes of its inputs are fixed and checked by the caller. One thread at a time."""

    def __init__(self, library: Path) -> None:
        """Raises ModelLoadError where the file is no such library, or needs more than the C interface gives."""
        try:
            self._library = ctypes.CDLL(str(library))
            create = self._library.AOTInductorModelContainerCreateWithDevice
            self._run = self._library.AOTInductorModelContainerRunSingleThreaded
            self._delete = self._library.AOTInductorModelContainerDelete
        except (OSError, AttributeError) as error:
            raise ModelLoadError(f"{library} is no compiled tail: {error}") from None
        create.argtypes = (_POINTERS, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p)
        create.restype = ctypes.c_int32
        size = ctypes.c_size_t
        self._run.argtypes = (_POINTER, _POINTERS, size, _POINTERS, size, _POINTER, _POINTER)
        self._run.restype = ctypes.c_int32
        self._delete.argtypes = (_POINTER,)
        self._name = library
        self._container = _POINTER()
        if create(ctypes.byref(self._container), 1, b"cpu", None) != 0:
            raise ModelLoadError(f"{library} cannot be set up: {self._last_error()}")

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The one output. Python's lock is free meanwhile."""
        # Handles of their own: the library takes them over, whatever happens.
        capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(inputs))
        handles = (_POINTER * len(capsules))(*[_capsule_pointer(each, _capsule_name(each)) for each in capsules])
        result = (_POINTER * 1)()
        if self._run(self._container, handles, len(capsules), result, 1, None, None) != 0:
            raise RuntimeError(f"the compiled tail {self._name.parent.name} failed: {self._last_error()}")
        outputs: Sequence[Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(
            [_new_capsule(result[0], None, None)]
        )
        return outputs[0]

    def __del__(self) -> None:
        container: Any = getattr(self, "_container", None)
        if container:
            self._delete(container)

    def _last_error(self) -> str:
        text = ctypes.c_char_p()
        self._library.AOTInductorGetLastError(ctypes.byref(text))
        lines = (text.value or b"").decode(errors="replace").splitlines()
        return lines[0] if lines else "no reason given"
