// Check() must see each kind of damage; the damage is done through a friend.
#include <gtest/gtest.h>

#include "runtime/error.h"
#include "scheduler/core.h"
#include "serving.h"

namespace runtime {

struct SchedulerPeer {
  static Scheduler::Core& Core(Scheduler& scheduler) { return *scheduler.core_; }
  static std::vector<Request*>& Running(Scheduler& s) { return Core(s).running_; }
  static std::deque<Request*>& Waiting(Scheduler& s) { return Core(s).waiting_.all_.requests; }
  static std::vector<std::int32_t>& FreeRows(Scheduler& s) { return Core(s).free_rows_; }
  static std::vector<Transfer>& Transfers(Scheduler& s) { return Core(s).transfers_; }
  static std::int32_t& NumCopying(Scheduler& s) { return Core(s).num_copying_; }
  static std::int32_t& NumReleasing(Scheduler& s) { return Core(s).num_releasing_; }
};

namespace testing {
namespace {

class CheckTest : public ::testing::Test {
 protected:
  CheckTest() : serving_(Config(), 20) {
    for (RequestId id = 1; id <= 4; ++id) {
      serving_.Submit(id, std::vector<TokenId>(6, static_cast<TokenId>(id)), {.max_tokens = 9});
    }
    serving_.Step();
    EXPECT_NO_THROW(scheduler().Check());
    tier_.Submit(1, std::vector<TokenId>(8, 1), {.max_tokens = 1});
    tier_.Step();  // it has ended, and is being stored
  }

  static SchedulerConfig TierConfig() {
    SchedulerConfig config = Config();
    config.num_host_blocks = 4;
    config.transfer_block_s = 0.0;
    return config;
  }

  static SchedulerConfig Config() {
    SchedulerConfig config;
    config.max_num_seqs = 2;
    config.max_num_batched_tokens = 16;
    config.block_size = 4;
    config.max_model_len = 32;
    config.vocab_size = 100;
    return config;
  }

  Scheduler& scheduler() { return serving_.scheduler(); }
  Request& running(std::size_t i = 0) { return *SchedulerPeer::Running(scheduler())[i]; }

  // Sets `value` to `damaged` for one Check, which must name `invariant`.
  template <typename T>
  void ExpectSeen(T& value, std::type_identity_t<T> damaged, const std::string& invariant) {
    ExpectSeen(value, damaged, invariant, serving_);
  }
  template <typename T>
  static void ExpectSeen(T& value, std::type_identity_t<T> damaged, const std::string& invariant,
                         Serving& serving) {
    std::swap(value, damaged);
    try {
      serving.scheduler().Check();
      ADD_FAILURE() << "not seen: " << invariant;
    } catch (const InvariantError& error) {
      EXPECT_NE(std::string(error.what()).find(invariant), std::string::npos) << error.what();
    }
    std::swap(value, damaged);
    EXPECT_NO_THROW(serving.scheduler().Check());
  }

  Serving serving_;
  Serving tier_{TierConfig(), 20};
};

TEST_F(CheckTest, QueuesAndStates) {
  auto& running_queue = SchedulerPeer::Running(scheduler());
  auto& waiting_queue = SchedulerPeer::Waiting(scheduler());
  ExpectSeen(running_queue, {running_queue[0]}, "exactly one queue");
  ExpectSeen(running_queue, {running_queue[1], running_queue[0]}, "the running queue is in order");
  ExpectSeen(waiting_queue, {waiting_queue[1], waiting_queue[0]}, "the waiting queue is in order");
  ExpectSeen(running().state, RequestState::kWaiting, "in the running queue runs");
  ExpectSeen(waiting_queue[0]->state, RequestState::kRunning, "in the waiting queue waits");
  ExpectSeen(running().id, 2, "ids are unique");
}

TEST_F(CheckTest, TokensAndBlocks) {
  ExpectSeen(running().num_computed, 20, "exactly the computed and planned tokens");
  ExpectSeen(running().num_computed, 8, "computed tokens are known");
  ExpectSeen(running().num_unknown, 1, "one token per step in flight");
  ExpectSeen(running().num_retired, 7, "computed tokens are known");
  ExpectSeen(running().max_len, 6, "computed tokens are known");
  ExpectSeen(running().num_retired, 3, "a block that is still written is not shared");
}

TEST_F(CheckTest, RowsAndReserves) {
  ExpectSeen(running().row, -1, "a request has a row while it runs");
  ExpectSeen(running().row, running(1).row, "a row is free or belongs to one request");
  ExpectSeen(running().kv.num_reserved, 1, "reserved blocks are counted");
  ExpectSeen(SchedulerPeer::NumReleasing(scheduler()), 1, "that release blocks later are counted");
  auto& free_rows = SchedulerPeer::FreeRows(scheduler());
  ExpectSeen(free_rows, {0}, "a row is free or belongs to one request");
}

TEST_F(CheckTest, Copies) {
  ExpectSeen(running().is_copying, true, "a request that waits for a copy has one");
  ExpectSeen(SchedulerPeer::NumCopying(tier_.scheduler()), 1, "copied blocks are counted", tier_);
  Transfer& transfer = SchedulerPeer::Transfers(tier_.scheduler()).front();
  ExpectSeen(transfer.request->num_in_flight, 1, "copied while no step holds it", tier_);
  ExpectSeen(transfer.copy.blocks[0].first, 20, "a block is owned while it is copied", tier_);
  ExpectSeen(transfer.copy.kind, KvCopy::Kind::kLoad, "a block is owned while it is copied", tier_);
  std::vector<BlockRef> held;
  held.push_back(transfer.copy.host.front().Share());
  EXPECT_THROW(tier_.scheduler().Check(), InvariantError);
}

TEST_F(CheckTest, OwnersOfBlocks) {
  const auto leaked = serving_.allocator().Allocate(1);
  EXPECT_THROW(scheduler().Check(), InvariantError);
}

}  // namespace
}  // namespace testing
}  // namespace runtime
