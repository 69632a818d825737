// Threads as ranks. What processes add (death, names in /dev/shm) is tested in tests/python.
#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <latch>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "distributed/rank_sum.h"
#include "distributed/shm_communicator.h"
#include "runtime/communicator.h"
#include "runtime/error.h"

namespace runtime {
namespace {

using Halves = std::vector<std::uint16_t>;

Halves Sum(DataType type, const std::vector<Halves>& parts) {
  std::vector<const void*> addresses;
  for (const Halves& part : parts) addresses.push_back(part.data());
  Halves sum(parts[0].size());
  SumInOrder(type, addresses, sum.size(), sum.data());
  return sum;
}

bool IsNan(DataType type, std::uint16_t bits) {
  return (bits & 0x7fff) > (type == DataType::kFloat16 ? 0x7c00 : 0x7f80);
}

TEST(SumInOrderTest, EveryHalfIsItsOwnSum) {
  Halves all(1 << 16);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  for (const DataType type : {DataType::kFloat16, DataType::kBFloat16}) {
    const Halves sum = Sum(type, {all});
    for (std::size_t i = 0; i < all.size(); ++i) {
      // the sum begins with +0, and 0 + -0 is 0
      const std::uint16_t expected = all[i] == 0x8000 ? 0 : all[i];
      EXPECT_TRUE(IsNan(type, all[i]) ? IsNan(type, sum[i]) : sum[i] == expected)
          << Name(type) << i;
    }
  }
}

TEST(SumInOrderTest, RoundsToNearestEven) {
  // 2048 + 1, 2048 + 3, 65504 + 16, 65504 + 15.99, 2^-24 + 2^-24, 2^-14 - 2^-24
  EXPECT_EQ(Sum(DataType::kFloat16, {{0x6800, 0x6800, 0x7bff, 0x7bff, 0x0001, 0x0400},
                                     {0x3c00, 0x4200, 0x4c00, 0x4bff, 0x0001, 0x8001}}),
            (Halves{0x6800, 0x6802, 0x7c00, 0x7bff, 0x0002, 0x03ff}));
  // 256 + 1, 256 + 3, largest + largest, -1 + 1
  EXPECT_EQ(Sum(DataType::kBFloat16,
                {{0x4380, 0x4380, 0x7f7f, 0xbf80}, {0x3f80, 0x4040, 0x7f7f, 0x3f80}}),
            (Halves{0x4380, 0x4382, 0x7f80, 0x0000}));
}

TEST(SumInOrderTest, AddsInOrderAndRoundsOnce) {
  // 256 + 0.5 + 0.5 + 1 is 258 in float32; rounded after each addition it would stay 256
  EXPECT_EQ(Sum(DataType::kBFloat16, {{0x4380}, {0x3f00}, {0x3f00}, {0x3f80}}), Halves{0x4381});
  const float parts[] = {1e8f, 1.0f, -1e8f};
  const void* in_order[] = {&parts[0], &parts[1], &parts[2]};
  const void* another[] = {&parts[0], &parts[2], &parts[1]};
  float sum = -1;
  SumInOrder(DataType::kFloat32, in_order, 1, &sum);
  EXPECT_EQ(sum, 0.0f);
  SumInOrder(DataType::kFloat32, another, 1, &sum);
  EXPECT_EQ(sum, 1.0f);
}

TEST(SumInOrderTest, IntegersWrap) {
  const std::int32_t largest = std::numeric_limits<std::int32_t>::max(), one = 1;
  const void* parts[] = {&largest, &one};
  std::int32_t sum = 0;
  SumInOrder(DataType::kInt32, parts, 1, &sum);
  EXPECT_EQ(sum, std::numeric_limits<std::int32_t>::min());
}

constexpr std::size_t kPiece = 4096;
// elements of float32 around one piece, and around what every rank adds by itself
constexpr std::size_t kCounts[] = {1, 1023, 1024, 1025, 5000};

CommunicatorOptions Options(int rank, int size, double timeout_s = 20.0,
                            std::size_t piece_bytes = kPiece) {
  CommunicatorOptions options;
  options.rank = rank;
  options.size = size;
  options.timeout_s = timeout_s;
  options.piece_bytes = piece_bytes;
  return options;
}

std::shared_ptr<SharedMemory> Memory(const CommunicatorOptions& options) {
  auto memory =
      std::make_shared<SharedMemory>(SharedMemory::Anonymous(ShmGroup::MemoryBytes(options)));
  ShmGroup::Format(*memory, options);
  return memory;
}

// Runs work(communicator) on every rank; what each threw, or "", in rank order.
std::vector<std::string> RunRanks(const CommunicatorOptions& like,
                                  const std::function<void(Communicator&)>& work) {
  const auto memory = Memory(like);
  std::vector<std::string> errors(static_cast<std::size_t>(like.size));
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < like.size; ++rank) {
    ranks.emplace_back([&, rank] {
      CommunicatorOptions options = like;
      options.rank = rank;
      try {
        ShmCommunicator communicator(memory, options);
        work(communicator);
      } catch (const CommunicatorError& error) {
        errors[static_cast<std::size_t>(rank)] = error.what();
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  return errors;
}

void ExpectSuccess(const CommunicatorOptions& options,
                   const std::function<void(Communicator&)>& work) {
  for (const std::string& error : RunRanks(options, work)) EXPECT_EQ(error, "");
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Element i of a rank; sums of these depend on the order of addition.
float Value(int rank, std::size_t i) { return std::sin(static_cast<float>(i + 1) * (rank + 1)); }

std::vector<float> Values(int rank, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = Value(rank, i);
  return values;
}

float SumOf(int size, std::size_t i) {
  float sum = 0;
  for (int rank = 0; rank < size; ++rank) sum += Value(rank, i);
  return sum;
}

class ShmCommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(ShmCommunicatorTest, AllReduceAddsInRankOrder) {
  for (const std::size_t piece : {kPiece, std::size_t{1} << 18}) {
    ExpectSuccess(Options(0, GetParam(), 20.0, piece), [](Communicator& group) {
      for (const std::size_t count : {1, 1023, 1024, 1025, 5000, 8192, 8193, 30001}) {
        std::vector<float> x = Values(group.rank(), count);
        group.AllReduce(x.data(), x.data(), count, DataType::kFloat32, nullptr);
        for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(x[i], SumOf(group.size(), i)) << i;
      }
    });
  }
}

TEST_P(ShmCommunicatorTest, AllGatherKeepsRankOrder) {
  ExpectSuccess(Options(0, GetParam()), [](Communicator& group) {
    for (const std::size_t count : kCounts) {
      const std::vector<float> x = Values(group.rank(), count);
      std::vector<float> out(count * group.size());
      group.AllGather(x.data(), out.data(), count, DataType::kFloat32, nullptr);
      for (std::size_t i = 0; i < out.size(); ++i) {
        ASSERT_EQ(out[i], Value(static_cast<int>(i / count), i % count)) << i;
      }
    }
  });
}

TEST_P(ShmCommunicatorTest, ReduceScatterGivesEachItsPart) {
  ExpectSuccess(Options(0, GetParam()), [](Communicator& group) {
    for (const std::size_t count : kCounts) {
      const std::vector<float> x = Values(group.rank(), count * group.size());
      std::vector<float> out(count);
      group.ReduceScatter(x.data(), out.data(), count, DataType::kFloat32, nullptr);
      for (std::size_t i = 0; i < count; ++i) {
        ASSERT_EQ(out[i], SumOf(group.size(), group.rank() * count + i)) << i;
      }
    }
  });
}

TEST_P(ShmCommunicatorTest, BroadcastGivesTheRootsData) {
  ExpectSuccess(Options(0, GetParam()), [](Communicator& group) {
    for (int root = 0; root < group.size(); ++root) {
      std::vector<float> x = Values(group.rank(), 5000);
      group.Broadcast(x.data(), x.size(), DataType::kFloat32, root, nullptr);
      ASSERT_EQ(x, Values(root, 5000));
    }
  });
}

TEST_P(ShmCommunicatorTest, ManyCallsInARow) {
  ExpectSuccess(Options(0, GetParam()), [](Communicator& group) {
    std::int32_t total = 0;
    for (std::int32_t i = 0; i < 300; ++i) {
      std::int32_t one[2] = {i, 0};
      group.AllReduce(one, one, 1, DataType::kInt32, nullptr);
      group.Broadcast(&one[1], 1, DataType::kInt32, i % group.size(), nullptr);
      if (i % 7 == 0) group.Barrier();
      group.AllReduce(one, one, 0, DataType::kInt32, nullptr);  // nothing to do
      total += one[0];
    }
    EXPECT_EQ(total, 300 * 299 / 2 * group.size());
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, ShmCommunicatorTest, testing::Values(1, 2, 3, 4));

TEST(ShmFailureTest, RanksThatDoNotComeAreNamed) {
  std::latch given_up(2);
  const auto errors = RunRanks(Options(0, 4, 0.2), [&](Communicator& group) {
    if (group.rank() % 2 == 1) return given_up.wait();
    const std::unique_ptr<void, std::function<void(void*)>> at_end(
        &given_up, [&](void*) { given_up.count_down(); });
    group.Barrier();
  });
  for (const int rank : {0, 2}) {
    EXPECT_TRUE(Contains(errors[rank],
                         "ranks 1, 3 have not arrived within 0.2 s, in collective 1, barrier"))
        << errors[rank];
  }
}

TEST(ShmFailureTest, ARankThatLeftIsNamed) {
  const auto errors = RunRanks(Options(0, 3), [](Communicator& group) {
    std::int32_t word = 0;
    if (group.rank() != 1) group.AllReduce(&word, &word, 1, DataType::kInt32, nullptr);
  });
  EXPECT_EQ(errors[1], "");
  for (const int rank : {0, 2}) {
    EXPECT_TRUE(Contains(errors[rank], "rank 1 (process ")) << errors[rank];
    EXPECT_TRUE(Contains(errors[rank], ") left the group, in collective 1, all_reduce of 1 int32"))
        << errors[rank];
  }
}

TEST(ShmFailureTest, DifferentCallsAreNamed) {
  const auto errors = RunRanks(Options(0, 2), [](Communicator& group) {
    float x[8] = {};
    if (group.rank() == 0) group.AllReduce(x, x, 8, DataType::kFloat32, nullptr);
    if (group.rank() == 1) group.Broadcast(x, 4, DataType::kInt32, 1, nullptr);
  });
  for (const std::string& error : errors) {
    EXPECT_TRUE(Contains(error, "all_reduce of 8 float32")) << error;
    EXPECT_TRUE(Contains(error, "broadcast of 4 int32 from rank 1")) << error;
  }
}

TEST(ShmFailureTest, AbortEndsCallsUnderWayAndLaterOnes) {
  const auto errors = RunRanks(Options(0, 3, 60.0), [](Communicator& group) {
    if (group.rank() == 2) {
      std::thread([&] { group.Abort("the step was too long"); }).join();
      EXPECT_THROW(group.Poll(), CommunicatorError);
      group.Abort("another cause");
    }
    group.Barrier();
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "the step was too long");
}

TEST(ShmFailureTest, RanksMustAgreeOnTheSizes) {
  const auto memory = Memory(Options(0, 3));
  try {
    ShmCommunicator(memory, Options(1, 2));
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_TRUE(Contains(error.what(), "rank 1 was told 2 ranks and 4096 bytes a piece, rank 0 3"))
        << error.what();
  }
}

TEST(MakeCommunicatorTest, SaysWhatSharedMemoryLacks) {
  CommunicatorOptions options = Options(0, 2, 1.0, std::size_t{1} << 44);
  options.unique_id = MakeUniqueId(Backend::kSharedMemory);
  try {
    MakeCommunicator(options);
    FAIL();
  } catch (const CapacityError& error) {
    EXPECT_TRUE(Contains(error.what(), "a group of 2 ranks needs 67108865 MiB")) << error.what();
    EXPECT_TRUE(Contains(error.hint(), "--shm-size")) << error.hint();
  }
}

TEST(MakeCommunicatorTest, AGroupOfOneNeedsNobody) {
  CommunicatorOptions options = Options(0, 1);
  options.unique_id = MakeUniqueId(Backend::kSharedMemory);
  const auto group = MakeCommunicator(options);
  float x = 2.5f;
  group->AllReduce(&x, &x, 1, DataType::kFloat32, nullptr);
  EXPECT_EQ(x, 2.5f);
}

TEST(MakeCommunicatorTest, RefusesWhatCannotWork) {
  const auto refusal = [](CommunicatorOptions options) -> std::string {
    try {
      MakeCommunicator(options);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal(Options(0, 65)), "size=65: must be from 1 to 64");
  EXPECT_EQ(refusal(Options(2, 2)), "rank=2: must be from 0 to 1");
  EXPECT_EQ(refusal(Options(0, 2, 0.0)), "timeout_s=0: must be a positive number of seconds");
  EXPECT_EQ(refusal(Options(0, 2, 1.0, 100)), "piece_bytes=100: must be at least 4096");
  EXPECT_EQ(refusal(Options(0, 2)), "unique_id is not one that Communicator.unique_id made");
  EXPECT_THROW(BackendNamed("mpi"), ConfigError);
}

}  // namespace
}  // namespace runtime
