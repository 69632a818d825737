#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace runtime {

struct Hash128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  friend bool operator==(const Hash128&, const Hash128&) = default;
};

// SipHash-2-4 with 128 bits of output: J.-P. Aumasson and D. J. Bernstein, "SipHash: a fast
// short-input PRF", 2012, with the output extension of the authors' specification.
Hash128 SipHash128(const Hash128& key, std::span<const std::byte> data);

}  // namespace runtime
