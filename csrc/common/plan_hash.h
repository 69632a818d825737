// The decision hash of StepPlans: each one's covers every plan up to it.
#pragma once

#include <cstdint>
#include <span>

#include "common/siphash.h"

namespace runtime {

// The hash after `words`, a plan whose two words of the hash itself are still 0, when it was
// `previous` before; 0 before the first.
inline std::uint64_t PlanHash(std::uint64_t previous, std::span<const std::int32_t> words) {
  return SipHash13({previous, 0}, std::as_bytes(words));
}

}  // namespace runtime
