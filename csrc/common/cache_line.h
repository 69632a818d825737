// Memory by cache lines, for tables that no cache holds: there a miss costs more than all the
// arithmetic of a lookup.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace runtime {

inline constexpr std::size_t kCacheLine = 64;

// Starts to fetch the line at `address`, which will soon be written.
inline void FetchLine(const void* address) { __builtin_prefetch(address, /*for writing*/ 1); }

template <typename T>
struct LineAllocator {
  using value_type = T;

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}

  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kCacheLine}));
  }
  void deallocate(T* memory, std::size_t) {
    ::operator delete(memory, std::align_val_t{kCacheLine});
  }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
};

// Begins at a cache line.
template <typename T>
using LineVector = std::vector<T, LineAllocator<T>>;

}  // namespace runtime
