#include "common/siphash.h"

#include <bit>
#include <cstring>

namespace runtime {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as little-endian");

std::uint64_t LastWord(std::span<const std::byte> data) {
  std::uint64_t word = 0;
  const std::size_t tail = data.size() % 8;
  if (tail != 0) std::memcpy(&word, data.data() + data.size() - tail, tail);
  return word | static_cast<std::uint64_t>(data.size()) << 56;
}

// SipHash-c-d: `kRounds` is c, and Squeeze is told d.
template <int kRounds>
struct SipState {
  std::uint64_t v0, v1, v2, v3;

  explicit SipState(const Hash128& key)
      : v0(key.low ^ 0x736f6d6570736575),
        v1(key.high ^ 0x646f72616e646f6d),
        v2(key.low ^ 0x6c7967656e657261),
        v3(key.high ^ 0x7465646279746573) {}

  void Round() {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }

  void Absorb(std::uint64_t word) {
    v3 ^= word;
    for (int i = 0; i < kRounds; ++i) Round();
    v0 ^= word;
  }

  void Absorb(std::span<const std::byte> data) {
    for (std::size_t at = 0; at + 8 <= data.size(); at += 8) {
      std::uint64_t word;
      std::memcpy(&word, data.data() + at, 8);
      Absorb(word);
    }
    Absorb(LastWord(data));
  }

  std::uint64_t Squeeze(int num_rounds) {
    for (int i = 0; i < num_rounds; ++i) Round();
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

}  // namespace

Hash128 SipHash128(const Hash128& key, std::span<const std::byte> data) {
  SipState<2> state(key);
  state.v1 ^= 0xee;
  state.Absorb(data);
  state.v2 ^= 0xee;
  const std::uint64_t low = state.Squeeze(4);
  state.v1 ^= 0xdd;
  return {low, state.Squeeze(4)};
}

std::uint64_t SipHash13(const Hash128& key, std::span<const std::byte> data) {
  SipState<1> state(key);
  state.Absorb(data);
  state.v2 ^= 0xff;
  return state.Squeeze(3);
}

}  // namespace runtime
