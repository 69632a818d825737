#pragma once

#include <cstddef>
#include <string>

#include "common/unique_fd.h"

namespace runtime {

// Throws CapacityError where a limit of the system is why (`error` is an errno), else EngineDead:
// "what: reason".
[[noreturn]] void ThrowSystemError(const std::string& what, int error);

// Memory that processes share through an inherited descriptor. It has no name, so nothing is left
// behind whoever dies, and all of its pages are there from the start.
class InheritedMemory {
 public:
  // New memory, zeroed. Throws CapacityError if the system has too little.
  static InheritedMemory Create(std::size_t num_bytes);

  // All of the memory behind a descriptor.
  static InheritedMemory Map(UniqueFd file);

  InheritedMemory(InheritedMemory&& other) noexcept;
  InheritedMemory& operator=(InheritedMemory&&) = delete;
  ~InheritedMemory();

  std::byte* data() const { return data_; }
  std::size_t num_bytes() const { return num_bytes_; }
  int fd() const { return file_.get(); }

 private:
  InheritedMemory(UniqueFd file, std::size_t num_bytes);

  UniqueFd file_;
  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

}  // namespace runtime
