#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>

#include "distributed/inherited_memory.h"
#include "distributed/plan_stream.h"
#include "plans.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr double kLong = 60.0, kShort = 0.05;

class ControlRingTest : public testing::Test {
 protected:
  static constexpr int kNumRanks = 4;
  static constexpr std::size_t kRingBytes = 4096;

  ControlRingTest() { InitControlRing(bytes()); }

  std::span<std::byte> bytes() { return {memory_.data(), memory_.num_bytes()}; }
  PlanWriterStream Writer() { return PlanWriterStream(RingWriter(bytes(), kNumRanks)); }
  PlanReaderStream Reader(int rank) { return {RingReader(bytes(), rank), rank}; }

  // What every rank but `except` reads next.
  void OthersRead(int except) {
    std::vector<std::int32_t> buffer(1024);
    for (int rank = 1; rank < kNumRanks; ++rank) {
      if (rank != except) readers_[static_cast<std::size_t>(rank)].Read(buffer);
    }
  }

  InheritedMemory memory_ = InheritedMemory::Create(ControlRingBytes(kRingBytes));
  std::vector<PlanReaderStream> readers_{Reader(0), Reader(1), Reader(2), Reader(3)};
};

TEST_F(ControlRingTest, EveryRankReadsEveryPlanInOrder) {
  constexpr int kNumPlans = 2000;
  const auto size_of = [](int i) { return static_cast<std::size_t>(i * 37 % 3001); };  // > ring
  std::vector<std::thread> ranks;
  for (int rank = 1; rank < kNumRanks; ++rank) {
    ranks.emplace_back([this, rank, &size_of] {
      PlanReaderStream reader = Reader(rank);
      std::vector<std::int32_t> buffer(4096);
      for (int i = 0; i < kNumPlans; ++i) {
        ASSERT_EQ(reader.Read(buffer), i + 1);
        const auto begin = buffer.begin() + step_plan::kHeaderWords;
        const auto end = begin + static_cast<std::ptrdiff_t>(size_of(i));
        ASSERT_TRUE(std::all_of(begin, end, [i](std::int32_t word) { return word == i; }));
        reader.FinishStep(i + 1);
      }
      EXPECT_FALSE(reader.Read(buffer));
    });
  }
  PlanWriterStream writer = Writer();
  Plans plans;
  for (int i = 0; i < kNumPlans; ++i) ASSERT_TRUE(writer.Write(plans.Next(size_of(i), i), kLong));
  ASSERT_TRUE(writer.WriteEnd(kLong));
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(writer.ring().words().ranks[3].done_step, kNumPlans);
}

TEST_F(ControlRingTest, ARankThatSleepsIsWoken) {
  PlanWriterStream writer = Writer();
  Plans plans;
  std::thread rank([this] {
    std::vector<std::int32_t> buffer(64);
    EXPECT_EQ(readers_[1].Read(buffer), 1);
  });
  while (writer.ring().words().num_sleepers.load() == 0) std::this_thread::yield();
  EXPECT_TRUE(writer.Write(plans.Next(8), kLong));
  rank.join();
}

TEST_F(ControlRingTest, TheWriterWaitsForTheSlowestRank) {
  PlanWriterStream writer = Writer();
  Plans plans;
  ASSERT_TRUE(writer.Write(plans.Next(900), kLong));
  const auto second = plans.Next(900);
  OthersRead(2);
  EXPECT_FALSE(writer.HasRoom(second));
  std::thread rank([this] {
    std::vector<std::int32_t> buffer(1024);
    EXPECT_EQ(readers_[2].Read(buffer), 1);
    EXPECT_EQ(readers_[2].Read(buffer), 2);
  });
  std::thread others([this] { OthersRead(2); });
  EXPECT_TRUE(writer.Write(second, kLong));
  rank.join();
  others.join();
}

TEST_F(ControlRingTest, ARankThatReadsNothingEndsTheWait) {
  PlanWriterStream writer = Writer();
  Plans plans;
  ASSERT_TRUE(writer.Write(plans.Next(900), kLong));
  OthersRead(3);
  EXPECT_FALSE(writer.Write(plans.Next(900), kShort));
}

TEST_F(ControlRingTest, AClosedRingReleasesWhoeverWaits) {
  PlanWriterStream writer = Writer();
  Plans plans;
  std::thread rank([this] {
    std::vector<std::int32_t> buffer(2048);
    EXPECT_EQ(readers_[1].Read(buffer), 1);
    EXPECT_FALSE(readers_[1].Read(buffer));
  });
  ASSERT_TRUE(writer.Write(plans.Next(900), kLong));
  std::thread closer([this, &writer] {
    while (writer.ring().words().writer_sleeps.load() == 0) std::this_thread::yield();
    CloseControlRing(writer.ring().words());
  });
  EXPECT_FALSE(writer.Write(plans.Next(900), kLong));  // ranks 2 and 3 never read
  rank.join();
  closer.join();
}

// The message of the EngineDead that reading gives.
std::string Refusal(PlanReaderStream& reader) {
  std::vector<std::int32_t> buffer(64);
  try {
    reader.Read(buffer);
  } catch (const EngineDead& error) {
    return error.what();
  }
  return "";
}

TEST_F(ControlRingTest, ARankThatMissesAPlanNamesBoth) {
  PlanWriterStream writer = Writer();
  Plans plans;
  plans.Next(4);
  ASSERT_TRUE(writer.Write(plans.Next(4), kLong));
  const std::string why = Refusal(readers_[2]);
  EXPECT_NE(why.find("rank 2 is at step 1 with decision hash"), std::string::npos) << why;
  EXPECT_NE(why.find("rank 0 at step 2 with decision hash"), std::string::npos) << why;
}

TEST_F(ControlRingTest, ARankThatGetsAnotherPlanNamesBoth) {
  PlanWriterStream writer = Writer();
  Plans plans;
  auto plan = plans.Next(4);
  plan.back() ^= 1 << 20;
  ASSERT_TRUE(writer.Write(plan, kLong));
  const std::string why = Refusal(readers_[1]);
  EXPECT_NE(why.find("rank 1 is at step 1"), std::string::npos) << why;
  EXPECT_NE(why.find("rank 0 at step 1"), std::string::npos) << why;
}

TEST_F(ControlRingTest, APlanThatDoesNotFitTheBufferIsRefused) {
  PlanWriterStream writer = Writer();
  Plans plans;
  ASSERT_TRUE(writer.Write(plans.Next(64), kLong));
  EXPECT_EQ(Refusal(readers_[1]),
            "rank 1 has a buffer of 64 words for a plan that rank 0 wrote with 88");
}

}  // namespace
}  // namespace runtime
