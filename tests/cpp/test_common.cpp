#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "common/check.h"
#include "common/packed_writer.h"
#include "common/siphash.h"
#include "runtime/error.h"

namespace runtime {
namespace {

std::vector<std::byte> Bytes(std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i);
  return bytes;
}

constexpr Hash128 kKey{0x0706050403020100, 0x0f0e0d0c0b0a0908};

// From the vectors of the authors' specification: key 00..0f, message 00..(n - 1).
TEST(SipHash128Test, MatchesTheAuthorsVectors) {
  EXPECT_EQ(SipHash128(kKey, Bytes(0)), (Hash128{0xe6a825ba047f81a3, 0x930255c71472f66d}));
  EXPECT_EQ(SipHash128(kKey, Bytes(1)), (Hash128{0x44af996bd8c187da, 0x45fc229b11597634}));
  EXPECT_EQ(SipHash128(kKey, Bytes(15)), (Hash128{0x11a8b03399e99354, 0xd9c3cf970fec087e}));
  EXPECT_EQ(SipHash128(kKey, Bytes(64)), (Hash128{0x3fcdd4c07d07af1e, 0x4ba75836384dad8c}));
}

// hash(bytes(range(n))) of CPython 3.11, whose hash this is, with PYTHONHASHSEED=0
TEST(SipHash13Test, MatchesAnotherImplementation) {
  EXPECT_EQ(SipHash13({}, Bytes(1)), 0x68a914128e01e473u);
  EXPECT_EQ(SipHash13({}, Bytes(7)), 0x2f098ab0c751325au);
  EXPECT_EQ(SipHash13({}, Bytes(8)), 0xead411e67ebe2eeau);
  EXPECT_EQ(SipHash13({}, Bytes(15)), 0xf30eb725bb91c9eau);
  EXPECT_EQ(SipHash13({}, Bytes(64)), 0x75e05fd5bbc870c6u);
}

TEST(SipHashTest, EveryLengthAndKeyCounts) {
  for (std::size_t n = 0; n < 40; ++n) {
    EXPECT_NE(SipHash128(kKey, Bytes(n)), SipHash128(kKey, Bytes(n + 1))) << n;
    EXPECT_NE(SipHash128(kKey, Bytes(n)), SipHash128({}, Bytes(n))) << n;
    EXPECT_NE(SipHash13(kKey, Bytes(n)), SipHash13(kKey, Bytes(n + 1))) << n;
    EXPECT_NE(SipHash13(kKey, Bytes(n)), SipHash13({}, Bytes(n))) << n;
  }
}

TEST(PackedWriterTest, WritesWordsFloatsAndLists) {
  std::array<std::int32_t, 6> buffer{};
  PackedWriter out(buffer, 1);
  out.Put(7);
  out.Put(1.0f);
  out.Put(std::vector<std::int32_t>{});
  out.Put(std::array<std::int32_t, 2>{8, 9});
  EXPECT_EQ(out.offset(), 5);
  EXPECT_EQ(buffer, (std::array<std::int32_t, 6>{0, 7, 0x3f800000, 8, 9, 0}));
}

TEST(PackedWriterDeathTest, NeverWritesPastItsBuffer) {
  std::array<std::int32_t, 2> buffer{};
  PackedWriter out(buffer, 1);
  EXPECT_DEATH(out.Put(std::array<std::int32_t, 2>{}), "packed buffer holds what is written");
  out.Put(1);
  EXPECT_DEATH(out.Put(1), "packed buffer holds what is written");
}

TEST(CheckTest, TheCallersFaultThrowsAndOursIsAnInvariantError) {
  EXPECT_NO_THROW(Require(true, "never"));
  EXPECT_THROW(Require(false, "a reason"), InvalidArgument);
  EXPECT_THROW(Hold(false, "a reason"), InvariantError);
  try {
    Hold(false, "a reason", 7);
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "broken invariant: a reason (request 7)");
    EXPECT_EQ(error.code(), "invariant_broken");
  }
  EXPECT_DEATH(Ensure(false, "a reason"), "runtime: invariant broken: a reason");
}

}  // namespace
}  // namespace runtime
