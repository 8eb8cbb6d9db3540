"""Where an engine may compute: the order in which providers give way, delegates by path, old boards' tflite-runtime."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.backends import PROVIDER_ORDER, EngineOptions
from edgeml.runtime.backends import tflite as tflite_backend
from edgeml.runtime.backends.onnx import open_onnx, present_providers, usable_providers
from edgeml.runtime.backends.tflite import open_tflite
from edgeml.wire.errors import EngineDownError, EngineError
from tests.unit.bundles import logits, make_bundle, onnx_model, samples, tflite_model

X = samples(1)[0]
COMPILER: Final = shutil.which("cc")
# A delegate that takes no work, and a bad one: a file beside it makes it write to address 0 when it is made.
DELEGATE: Final = """
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
typedef struct Delegate {
  void* data; int (*prepare)(void*, struct Delegate*); void* copy_from; void* copy_to; void* release; int64_t flags; void* more;
} Delegate;
static int prepare(void* context, Delegate* delegate) { return 0; }
Delegate* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
  if (access(FLAG, F_OK) == 0) *(volatile int*)0 = 1;
  Delegate* made = calloc(1, sizeof(Delegate));
  made->prepare = prepare;
  return made;
}
void tflite_plugin_destroy_delegate(Delegate* delegate) { free(delegate); }
"""
# tflite-runtime as old boards have it: no choice of kernels.
OLD_RUNTIME: Final = """
from ai_edge_litert.interpreter import Interpreter as _Interpreter
class Interpreter(_Interpreter):
    def __init__(self, model_path=None, model_content=None, experimental_delegates=None, num_threads=None):
        super().__init__(model_path, model_content, experimental_delegates, num_threads)
"""


def test_the_order_is_tensorrt_cuda_cpu_and_the_cpu_is_always_there() -> None:
    assert PROVIDER_ORDER == ("tensorrt", "cuda", "cpu")
    everything = ["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]
    assert usable_providers(PROVIDER_ORDER, everything) == ["tensorrt", "cuda", "cpu"]
    assert usable_providers(PROVIDER_ORDER, everything[:2]) == ["cuda", "cpu"]
    assert usable_providers(("cuda",), everything[:1]) == ["cpu"]


def with_cuda(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An engine that was built with CUDA, on a machine whose driver does not start it."""
    (folder / "capi").mkdir()
    (folder / "capi" / "libonnxruntime_providers_cuda.so").touch()
    spec = ModuleSpec("onnxruntime", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: spec if name == "onnxruntime" else real(name, *more))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_providers_are_found_by_their_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert present_providers(PROVIDER_ORDER)[-1] == "cpu"
    with_cuda(monkeypatch, tmp_path)
    assert present_providers(PROVIDER_ORDER) == ("cuda", "cpu")


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_provider_that_does_not_start_gives_way_and_the_model_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_bundle(tmp_path)
    with_cuda(monkeypatch, tmp_path)
    with pytest.raises(EngineError, match="provider 'cuda' did not start"):
        open_onnx(onnx_model(), EngineOptions(providers=("cuda", "cpu")))
    with load(path) as model:
        assert "not with cuda (ONNX Runtime's provider 'cuda' did not start" in model.reason
        np.testing.assert_allclose(model.run({"x": X}).outputs["logits"], logits(X), atol=1e-5)


def test_on_the_cpu_alone_nothing_is_said_of_providers(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path), providers=("cpu",)) as model:
        assert "cuda" not in model.reason
        assert "computing" not in model.reason


def test_a_delegate_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError, match=r"delegate '/no/libedgetpu\.so' does not load"):
        open_tflite(tflite_model(), EngineOptions(delegates=("/no/libedgetpu.so",)))


@pytest.fixture
def delegate(tmp_path: Path) -> tuple[str, Path]:
    """The library of a real delegate, and the file that makes it crash."""
    if COMPILER is None:
        pytest.skip("no C compiler to build a delegate with")
    source, library, flag = tmp_path / "delegate.c", tmp_path / "libdelegate.so", tmp_path / "crash"
    source.write_text(DELEGATE)
    subprocess.run([COMPILER, "-shared", "-fPIC", f'-DFLAG="{flag}"', "-o", library, source], check=True)
    return str(library), flag


def test_a_delegate_is_taken_by_its_path(delegate: tuple[str, Path], tmp_path: Path) -> None:
    with load(make_bundle(tmp_path, artifacts=(("tflite", "fp32"),)), delegates=[delegate[0]]) as model:
        np.testing.assert_allclose(model.run({"x": X}).outputs["logits"], logits(X), atol=1e-5)


def test_a_delegate_that_segfaults_is_an_error_to_an_application_that_isolates_it(
    delegate: tuple[str, Path], tmp_path: Path
) -> None:
    path = make_bundle(tmp_path, artifacts=(("tflite", "fp32"),))
    delegate[1].touch()
    with pytest.raises(EngineDownError, match="SIGSEGV"):
        load(path, delegates=[delegate[0]], isolated=True)
    delegate[1].unlink()
    with load(path, delegates=[delegate[0]], isolated=True) as model:
        np.testing.assert_allclose(model.run({"x": X}).outputs["logits"], logits(X), atol=1e-5)


def test_an_old_tflite_runtime_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "old_tflite_runtime").mkdir()
    (tmp_path / "old_tflite_runtime" / "interpreter.py").write_text(OLD_RUNTIME)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tflite_backend, "PACKAGES", (("old_tflite_runtime", "old-tflite-runtime"),))
    backend = open_tflite(tflite_model(), EngineOptions())
    np.testing.assert_allclose(backend.run([X[None]])[0][0], logits(X), atol=1e-5)
    with pytest.raises(EngineError, match="cannot be told to use 'reference' kernels"):
        open_tflite(tflite_model(), EngineOptions(kernels="reference"))
    sys.modules.pop("old_tflite_runtime.interpreter", None)
    sys.modules.pop("old_tflite_runtime", None)
