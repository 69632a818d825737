#pragma once

#include <cstdint>

namespace runtime {

using TokenId = std::int32_t;
using BlockId = std::int32_t;
using RequestId = std::int64_t;

enum class FinishReason : std::int8_t { kNone = 0, kStop = 1, kLength = 2, kAbort = 3, kError = 4 };

// Block 0 is never handed out: padding reads and writes it.
inline constexpr BlockId kNoBlock = 0;

}  // namespace runtime
