#pragma once

#include <cstdint>

namespace runtime {

using TokenId = std::int32_t;
using BlockId = std::int32_t;
using RequestId = std::int64_t;

// Block 0 is never handed out: padding reads and writes it.
inline constexpr BlockId kNoBlock = 0;

}  // namespace runtime
