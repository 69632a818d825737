// Apart from who calls them: inlined there, they look mismatched to the compiler.
#include "counted_new.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace runtime::testing {

std::atomic<std::int64_t> num_allocations = 0;
std::atomic<std::int64_t> fails_at = 0;

namespace {

void* Allocate(std::size_t size, std::size_t alignment = alignof(std::max_align_t)) {
  ++num_allocations;
  if (fails_at > 0 && --fails_at == 0) throw std::bad_alloc();
  const std::size_t whole = (size + alignment - 1) / alignment * alignment;
  if (void* memory = std::aligned_alloc(alignment, whole)) return memory;
  throw std::bad_alloc();
}

}  // namespace
}  // namespace runtime::testing

void* operator new(std::size_t size) { return runtime::testing::Allocate(size); }
// What algorithms with a buffer that they can do without ask for.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return runtime::testing::Allocate(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return runtime::testing::Allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size) { return runtime::testing::Allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
