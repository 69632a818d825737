#include "distributed/rank_sum.h"

#include <algorithm>
#include <bit>
#include <cstdint>

namespace runtime {
namespace {

struct Float32 {
  using Stored = float;
  using Sum = float;
  static float Load(float value) { return value; }
  static float Store(float sum) { return sum; }
};

// Unsigned, so that an overflow wraps.
struct Int32 {
  using Stored = std::uint32_t;
  using Sum = std::uint32_t;
  static std::uint32_t Load(std::uint32_t value) { return value; }
  static std::uint32_t Store(std::uint32_t sum) { return sum; }
};

struct BFloat16 {
  using Stored = std::uint16_t;
  using Sum = float;
  static float Load(std::uint16_t value) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
  }
  static std::uint16_t Store(float sum) {
    const auto bits = std::bit_cast<std::uint32_t>(sum);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return static_cast<std::uint16_t>((is_nan ? bits | 0x400000u : rounded) >> 16);
  }
};

// Conversions after F. Giesen, "half_to_float_fast" and "float_to_half_fast3_rtne" (public domain,
// 2012): the exponent is moved, and a floating-point addition aligns the subnormal numbers.
struct Float16 {
  using Stored = std::uint16_t;
  using Sum = float;
  static constexpr std::uint32_t kExponent = 0x7c00u << 13;
  static constexpr std::uint32_t kSmallestNormal = 113u << 23;  // 2^-14 as float32

  static float Load(std::uint16_t value) {
    std::uint32_t bits = (value & 0x7fffu) << 13;
    const std::uint32_t exponent = bits & kExponent;
    bits += (127u - 15u) << 23;
    if (exponent == kExponent) bits += (128u - 16u) << 23;  // infinity and NaN
    if (exponent == 0) {                                    // zero and subnormal numbers
      const float aligned = std::bit_cast<float>(bits + (1u << 23));
      bits = std::bit_cast<std::uint32_t>(aligned - std::bit_cast<float>(kSmallestNormal));
    }
    return std::bit_cast<float>(bits | (value & 0x8000u) << 16);
  }

  static std::uint16_t Store(float sum) {
    const auto signed_bits = std::bit_cast<std::uint32_t>(sum);
    const std::uint32_t sign = signed_bits & 0x80000000u;
    return static_cast<std::uint16_t>(StoreMagnitude(signed_bits ^ sign) | sign >> 16);
  }

  static std::uint32_t StoreMagnitude(std::uint32_t bits) {
    constexpr std::uint32_t kTooLarge = (127u + 16u) << 23;
    constexpr std::uint32_t kAlign = ((127u - 15u) + (23u - 10u) + 1u) << 23;
    if (bits >= kTooLarge) return bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    if (bits < kSmallestNormal) {
      const float aligned = std::bit_cast<float>(bits) + std::bit_cast<float>(kAlign);
      return std::bit_cast<std::uint32_t>(aligned) - kAlign;
    }
    const std::uint32_t odd = (bits >> 13) & 1u;
    return (bits - ((127u - 15u) << 23) + 0xfffu + odd) >> 13;
  }
};

// In blocks, so that the sums stay in the first-level cache while the parts stream by.
template <typename Type>
void Sum(std::span<const void* const> parts, std::size_t count, void* out) {
  constexpr std::size_t kBlock = 1024;
  typename Type::Sum sums[kBlock];
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t n = std::min(kBlock, count - begin);
    std::fill_n(sums, n, typename Type::Sum{});
    for (const void* part : parts) {
      const auto* values = static_cast<const typename Type::Stored*>(part) + begin;
      for (std::size_t i = 0; i < n; ++i) sums[i] += Type::Load(values[i]);
    }
    auto* stored = static_cast<typename Type::Stored*>(out) + begin;
    std::transform(sums, sums + n, stored, &Type::Store);
  }
}

}  // namespace

void SumInOrder(DataType type, std::span<const void* const> parts, std::size_t count, void* out) {
  switch (type) {
    case DataType::kFloat32:
      return Sum<Float32>(parts, count, out);
    case DataType::kBFloat16:
      return Sum<BFloat16>(parts, count, out);
    case DataType::kFloat16:
      return Sum<Float16>(parts, count, out);
    case DataType::kInt32:
      return Sum<Int32>(parts, count, out);
  }
}

}  // namespace runtime
