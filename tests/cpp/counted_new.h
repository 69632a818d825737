#pragma once

#include <atomic>
#include <cstdint>

namespace runtime::testing {

// An executable with counted_new.cpp has an operator new that counts, and fails once.
extern std::atomic<std::int64_t> num_allocations;
// The allocation that fails, counted from the one to come; 0: none.
extern std::atomic<std::int64_t> fails_at;

}  // namespace runtime::testing
