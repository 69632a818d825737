#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>

#include "common/check.h"

namespace runtime {

// Appends 32-bit words to a buffer that somebody else owns; floats are bit-cast.
class PackedWriter {
 public:
  // Writes from word `offset` on.
  explicit PackedWriter(std::span<std::int32_t> buffer, std::int32_t offset = 0)
      : buffer_(buffer), offset_(static_cast<std::size_t>(offset)) {}

  std::int32_t offset() const { return static_cast<std::int32_t>(offset_); }

  void Put(std::int32_t word) {
    Ensure(offset_ < buffer_.size(), "a packed buffer holds what is written to it");
    buffer_[offset_++] = word;
  }
  void Put(float value) { Put(std::bit_cast<std::int32_t>(value)); }

  void Put(std::span<const std::int32_t> words) {
    Ensure(words.size() <= buffer_.size() - offset_, "a packed buffer holds what is written to it");
    if (words.empty()) return;
    std::memcpy(buffer_.data() + offset_, words.data(), words.size_bytes());
    offset_ += words.size();
  }

  void PutZeros(std::int32_t count) {
    for (std::int32_t i = 0; i < count; ++i) Put(0);
  }

 private:
  std::span<std::int32_t> buffer_;
  std::size_t offset_;
};

}  // namespace runtime
