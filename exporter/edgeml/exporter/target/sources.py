"""C and C++ for a board: the model as an array, golden vectors to hold it to, and a program that does."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.exporter.target.vectors import Vectors
from edgeml.wire.manifest import DType

WIDTH: Final = 100
C_TYPES: Final[dict[DType, str]] = {
    "float32": "float", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "int32": "int32_t", "int64": "int64_t",
    "bool": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Program:
    """What the sources are made of. `title` heads each file; `calls` are the resolver's methods."""

    title: str
    model: bytes
    arena_bytes: int
    least_arena_bytes: int
    calls: tuple[str, ...]
    inputs: tuple[Vectors, ...]
    outputs: tuple[Vectors, ...]
    tolerances: tuple[float, ...]  # of the outputs
    samples: int  # how many go along


def write(program: Program) -> dict[str, str]:
    """File name -> text."""
    return {
        "model_data.h": _model_header(program),
        "model_data.cc": _model_source(program),
        "golden.h": _golden(program),
        "main.cc": _main(program),
    }


def _model_header(program: Program) -> str:
    return f"""// {program.title}
#ifndef MODEL_DATA_H_
#define MODEL_DATA_H_

#include <cstddef>

// {len(program.model):,} bytes of flash, at a multiple of 16 as TensorFlow Lite Micro wants it.
extern const unsigned char g_model[];
constexpr std::size_t kModelBytes = {len(program.model)};

#endif  // MODEL_DATA_H_
"""


def _model_source(program: Program) -> str:
    data = ", ".join(f"0x{byte:02x}" for byte in program.model)
    return f"""// {program.title}
#include "model_data.h"

alignas(16) const unsigned char g_model[kModelBytes] = {{
{_wrapped(data)}
}};
"""


def _golden(program: Program) -> str:
    count = program.samples
    parts = [
        f"// {program.title}",
        f"// {count} golden samples: what goes in, what must come out, and how far a healthy board may be off.",
        "#ifndef GOLDEN_H_",
        "#define GOLDEN_H_",
        "",
        "#include <cstdint>",
        "",
        f"constexpr int kSamples = {count};",
        *(line for index, vectors in enumerate(program.inputs) for line in _array("Input", index, vectors, count)),
        *(line for index, vectors in enumerate(program.outputs) for line in _array("Expected", index, vectors, count)),
        "",
        *(f"constexpr float kTolerance{i} = {_literal(limit, 'float')};" for i, limit in enumerate(program.tolerances)),
        "",
        "#endif  // GOLDEN_H_",
        "",
    ]
    return "\n".join(parts)


def _array(side: str, index: int, vectors: Vectors, count: int) -> Iterator[str]:
    """Inputs as the tensor holds them, expected outputs in real numbers, one row a sample; spread over all."""
    chosen = np.linspace(0, len(vectors.values) - 1, count).astype(int)
    rows = vectors.values[chosen].reshape(count, -1)
    kind = C_TYPES[vectors.dtype] if side == "Input" else "float"
    yield ""
    stored = vectors.quantization if side == "Input" else None
    meaning = f", real = {stored.scale:.9g} * (stored - {stored.zero_point})" if stored is not None else ""
    yield f"// {side.lower()} {index}, {_comment(vectors.name)}{meaning}"
    yield f"constexpr int k{side}{index}Count = {rows.shape[1]};"
    yield f"alignas(16) const {kind} k{side}{index}[kSamples][k{side}{index}Count] = {{"
    for row in rows:
        yield "  {"
        yield _wrapped(", ".join(_literal(value, kind) for value in row), indent="    ")
        yield "  },"
    yield "};"


def _main(program: Program) -> str:
    adds = "\n".join(f"  ok = ok && resolver.{call}() == kTfLiteOk;" for call in program.calls)
    feeds = "\n".join(map(_feed, range(len(program.inputs))))
    checks = "\n".join(map(_check, range(len(program.outputs))))
    return f"""// {program.title}
// Runs the golden samples on the board and prints how far off each is. Needs tflite-micro's headers and library.
#include <cmath>
#include <cstring>

#include "golden.h"
#include "model_data.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {{

// The least that works is {program.least_arena_bytes:,} bytes, measured on a 64-bit host with reference kernels (emulated);
// {_percent(program)} % on top, since kernels made for a board ask for scratch memory. What it used there is printed below.
constexpr std::size_t kArenaBytes = {program.arena_bytes};
alignas(16) std::uint8_t arena[kArenaBytes];

// The largest difference between an output tensor and what it must be; NaN counts as infinite.
float Worst(const TfLiteTensor* tensor, const float* expected, int count) {{
  float worst = 0.0f;
  for (int i = 0; i < count; ++i) {{
    float real;
    if (tensor->type == kTfLiteInt8) {{
      real = tensor->params.scale * static_cast<float>(tensor->data.int8[i] - tensor->params.zero_point);
    }} else {{
      real = tensor->data.f[i];
    }}
    const float difference = std::fabs(real - expected[i]);
    worst = difference <= worst ? worst : (difference == difference ? difference : INFINITY);
  }}
  return worst;
}}

int Millionths(float value) {{ return static_cast<int>(1e6f * std::fmin(value, 2000.0f)); }}

}}  // namespace

int main() {{
  tflite::InitializeTarget();
  tflite::MicroMutableOpResolver<{len(program.calls)}> resolver;
  bool ok = true;
{adds}
  if (!ok) {{
    MicroPrintf("an operator was not added");
    return 1;
  }}
  tflite::MicroInterpreter interpreter(tflite::GetModel(g_model), resolver, arena, kArenaBytes);
  if (interpreter.AllocateTensors() != kTfLiteOk) {{
    MicroPrintf("the arena of %d bytes is too small", static_cast<int>(kArenaBytes));
    return 1;
  }}
  MicroPrintf("arena: %d of %d bytes used", static_cast<int>(interpreter.arena_used_bytes()),
              static_cast<int>(kArenaBytes));
  int failed = 0;
  for (int sample = 0; sample < kSamples; ++sample) {{
    bool passed = true;
{feeds}
    if (interpreter.Invoke() != kTfLiteOk) {{
      MicroPrintf("sample %d: the interpreter failed", sample);
      return 1;
    }}
{checks}
    failed += passed ? 0 : 1;
  }}
  MicroPrintf("%d of %d golden samples within tolerance", kSamples - failed, kSamples);
  return failed == 0 ? 0 : 1;
}}
"""


def _feed(index: int) -> str:
    return f"    std::memcpy(interpreter.input({index})->data.raw, kInput{index}[sample], sizeof(kInput{index}[sample]));"


def _check(index: int) -> str:
    return (
        f"    const float worst{index} = Worst(interpreter.output({index}), kExpected{index}[sample], kExpected{index}Count);\n"
        f"    passed = passed && worst{index} <= kTolerance{index};\n"
        f'    MicroPrintf("sample %d output {index}: %d millionths off, %d allowed", sample, Millionths(worst{index}),\n'
        f"                Millionths(kTolerance{index}));"
    )


def _percent(program: Program) -> int:
    return round(100 * (program.arena_bytes / program.least_arena_bytes - 1))


def _literal(value: float, kind: str) -> str:
    if kind != "float":
        return str(int(value))
    number = np.float32(value)
    if not math.isfinite(number):
        return "NAN" if math.isnan(number) else "INFINITY" if number > 0 else "-INFINITY"
    text = np.format_float_scientific(number, unique=True, trim="0")
    return f"{text}f"


def _comment(name: str) -> str:
    """A name that cannot end a comment or begin another line."""
    return "".join(character if character.isprintable() and character != "\\" else "?" for character in name)


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
