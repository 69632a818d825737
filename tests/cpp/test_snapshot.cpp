#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "serving.h"
#include "stories.h"

namespace runtime::testing {
namespace {

TEST(SnapshotTest, AnIdleSchedulerOwnsNothing) {
  Serving serving(Config(), 20);
  const SchedulerSnapshot snapshot = serving.scheduler().Snapshot();
  EXPECT_TRUE(snapshot.request_ids.empty());
  EXPECT_EQ(snapshot.num_owners, std::vector<std::int32_t>(21, 0));
  EXPECT_EQ(snapshot.is_cached, std::vector<std::int8_t>(21, 0));
}

TEST(SnapshotTest, TablesCoverTheOwnedBlocks) {
  SchedulerConfig config = Config();
  config.max_num_seqs = 2;
  Serving serving(config, 20);
  for (const RequestId id : {5, 6, 7}) serving.Submit(id, Prompt(6, 10 * id), Greedy(6));
  serving.Step();
  const SchedulerSnapshot snapshot = serving.scheduler().Snapshot();
  EXPECT_EQ(snapshot.request_ids, (std::vector<RequestId>{5, 6, 7}));
  EXPECT_EQ(snapshot.phases,
            (std::vector{RequestPhase::kRunning, RequestPhase::kRunning, RequestPhase::kWaiting}));
  EXPECT_EQ(snapshot.prompt_lens, (std::vector<std::int32_t>{6, 6, 6}));
  EXPECT_EQ(snapshot.num_computed[2], 0);
  EXPECT_EQ(snapshot.table_lens[2], 0);
  EXPECT_EQ(std::reduce(snapshot.table_lens.begin(), snapshot.table_lens.end()),
            static_cast<std::int32_t>(snapshot.blocks.size()));
  std::vector<std::int32_t> owners(21, 0);
  for (const BlockId block : snapshot.blocks) ++owners[static_cast<std::size_t>(block)];
  EXPECT_EQ(snapshot.num_owners, owners);
}

TEST(SnapshotTest, FinishedPrefixesStayCachedWithoutAnOwner) {
  Serving serving(Config(), 20);
  serving.Submit(1, Prompt(12), Greedy(1));
  serving.RunUntilDrained();
  const SchedulerSnapshot snapshot = serving.scheduler().Snapshot();
  EXPECT_EQ(std::ranges::count(snapshot.is_cached, 1),
            serving.scheduler().stats().num_cached_blocks);
  EXPECT_GT(std::ranges::count(snapshot.is_cached, 1), 0);
  EXPECT_EQ(std::ranges::count(snapshot.num_owners, 0), 21);
}

TEST(SnapshotTest, APreemptedRequestWaits) {
  SchedulerConfig config = Config();
  config.admission = AdmissionMode::kNone;
  Serving serving(config, 8);  // too few for both at their longest
  for (const RequestId id : {1, 2}) serving.Submit(id, Prompt(8, 10 * id), Greedy(16));
  bool seen = false;
  while (serving.Step()) {
    const SchedulerSnapshot snapshot = serving.scheduler().Snapshot();
    seen |= std::ranges::count(snapshot.phases, RequestPhase::kPreempted) > 0;
  }
  EXPECT_TRUE(seen);
}

}  // namespace
}  // namespace runtime::testing
