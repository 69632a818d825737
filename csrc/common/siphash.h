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

// SipHash-1-3, the authors' faster variant for hash tables: half the rounds, 64 bits of output.
// Whoever does not know the key cannot make tables collide; it hides nothing and proves nothing.
std::uint64_t SipHash13(const Hash128& key, std::span<const std::byte> data);

}  // namespace runtime
