// Replaces operator new in the executable that includes this: counts allocations, and fails one.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace runtime::testing {

inline std::atomic<std::int64_t> num_allocations = 0;
// The allocation that fails, counted from the one to come; 0: none.
inline std::atomic<std::int64_t> fails_at = 0;

inline void* Allocate(std::size_t size) {
  ++num_allocations;
  if (fails_at > 0 && --fails_at == 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}

}  // namespace runtime::testing

void* operator new(std::size_t size) { return runtime::testing::Allocate(size); }
void* operator new[](std::size_t size) { return runtime::testing::Allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
