#pragma once

#include <cstddef>
#include <span>

#include "runtime/communicator.h"

namespace runtime {

// out[count] = the sum of the parts, each [count], in their order: float types in float32, rounded
// once to nearest even; int32 modulo 2^32. `out` may be one of the parts.
void SumInOrder(DataType type, std::span<const void* const> parts, std::size_t count, void* out);

}  // namespace runtime
