#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <set>

#include "kv_cache/block_table.h"
#include "runtime/block_allocator.h"
#include "runtime/error.h"
#include "streams.h"

namespace runtime {

// Reaches the calls that owners make, to make them wrongly.
struct BlockAllocatorPeer {
  static void RemoveOwner(BlockAllocator& allocator, BlockId block) {
    allocator.RemoveOwner(block);
  }
  static void SetNumFree(BlockAllocator& allocator, std::int32_t n) { allocator.num_free_ = n; }
  static std::int32_t& NumOwners(BlockAllocator& allocator, BlockId block) {
    return allocator.slot(block).num_owners;
  }
  // The entry of a free block in the free queue.
  static BlockId& Queued(BlockAllocator& allocator, BlockId block) {
    return allocator.queued(allocator.slot(block).place);
  }
};

namespace {

TEST(BlockAllocatorTest, HandsOutEachBlockOnce) {
  BlockAllocator allocator(3);
  const auto blocks = allocator.Allocate(3);
  ASSERT_TRUE(blocks);
  std::set<BlockId> ids;
  for (const BlockRef& block : *blocks) ids.insert(block.id());
  EXPECT_EQ(ids, (std::set<BlockId>{1, 2, 3}));
  EXPECT_EQ(allocator.num_free(), 0);
}

TEST(BlockAllocatorTest, ShortageTakesNothing) {
  BlockAllocator allocator(3);
  EXPECT_FALSE(allocator.Allocate(4));
  EXPECT_EQ(allocator.num_free(), 3);
  BlockTable table(allocator);
  EXPECT_FALSE(table.Append(4));
  EXPECT_EQ(table.size(), 0);
  EXPECT_EQ(allocator.num_free(), 3);
  allocator.Check();
}

TEST(BlockAllocatorTest, NegativeCountsAreRefused) {
  BlockAllocator allocator(3);
  BlockTable table(allocator);
  EXPECT_THROW(allocator.Allocate(-1), InvalidArgument);
  EXPECT_THROW((void)table.Append(-1), InvalidArgument);
}

TEST(BlockAllocatorTest, PoolWithoutBlocksIsRefusedWithTheValue) {
  try {
    BlockAllocator allocator(0);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "num_blocks=0: must be at least 1");
    EXPECT_NE(error.hint(), "");
  }
}

TEST(BlockAllocatorTest, SharedBlockReturnsWithItsLastOwner) {
  BlockAllocator allocator(1);
  auto blocks = allocator.Allocate(1);
  {
    const BlockRef shared = blocks->front().Share();
    EXPECT_EQ(allocator.num_owners(shared.id()), 2);
    blocks->clear();
    EXPECT_EQ(allocator.num_free(), 0);
  }
  EXPECT_EQ(allocator.num_free(), 1);
}

TEST(BlockAllocatorTest, MovedReferenceOwnsOnce) {
  BlockAllocator allocator(2);
  auto blocks = allocator.Allocate(2);
  BlockRef first = std::move(blocks->front());
  first = std::move(blocks->back());
  blocks->clear();
  EXPECT_EQ(allocator.num_free(), 1);
}

TEST(BlockAllocatorTest, BlocksWithoutContentGoBeforeCachedOnes) {
  struct Listener final : EvictionListener {
    void OnEvict(BlockId block) override { evicted.push_back(block); }
    std::vector<BlockId> evicted;
  } listener;
  BlockAllocator allocator(3);
  allocator.SetEvictionListener(&listener);
  allocator.SetContent(1, 7);
  allocator.SetContent(2, 8);
  {
    const BlockRef second = allocator.Share(2);
    const BlockRef first = allocator.Share(1);
  }
  const auto blocks = allocator.Allocate(3);
  EXPECT_EQ(blocks->front().id(), 3);
  EXPECT_EQ(listener.evicted, (std::vector<BlockId>{1, 2}));  // in the order of their release
}

TEST(BlockAllocatorTest, CachedBlocksKeepTheOrderOfTheirReleaseHoweverOftenOthersAreShared) {
  struct Listener final : EvictionListener {
    void OnEvict(BlockId block) override { evicted.push_back(block); }
    std::vector<BlockId> evicted;
  } listener;
  BlockAllocator allocator(5);
  allocator.SetEvictionListener(&listener);
  for (BlockId block = 1; block <= 5; ++block) allocator.SetContent(block, block);
  for (int i = 0; i < 20; ++i) {  // each leaves the free queue and comes back at its end
    for (const BlockId block : {4, 2}) {
      const BlockRef shared = allocator.Share(block);
      allocator.Check();
    }
    allocator.Check();
  }
  const auto blocks = allocator.Allocate(5);
  EXPECT_EQ(listener.evicted, (std::vector<BlockId>{1, 3, 5, 4, 2}));
}

TEST(BlockAllocatorDeathTest, DoubleFreeAborts) {
  BlockAllocator allocator(2);
  EXPECT_DEATH(BlockAllocatorPeer::RemoveOwner(allocator, 1), "released once by each owner");
}

TEST(BlockAllocatorDeathTest, UnknownAndUnownedBlocksAbort) {
  BlockAllocator allocator(2);
  EXPECT_DEATH(allocator.num_owners(0), "block ids run from 1 to num_blocks");
  EXPECT_DEATH(allocator.num_owners(3), "block ids run from 1 to num_blocks");
  EXPECT_DEATH(allocator.Share(1), "a shared block is owned or cached");
}

TEST(BlockAllocatorDeathTest, DestroyedWhileOwnedAborts) {
  EXPECT_DEATH(
      {
        auto* allocator = new BlockAllocator(1);
        const auto blocks = allocator->Allocate(1);
        delete allocator;
      },
      "no block is owned when its allocator is destroyed");
}

TEST(BlockTableDeathTest, EmptyTableHasNoLastBlock) {
  BlockAllocator allocator(1);
  BlockTable table(allocator);
  EXPECT_DEATH(table.PopBack(), "empty block table has no last block");
}

TEST(BlockAllocatorTest, CheckSeesEveryKindOfDamage) {
  BlockAllocator allocator(3);
  allocator.Check();
  BlockAllocatorPeer::SetNumFree(allocator, 2);
  EXPECT_THROW(allocator.Check(), InvariantError);
  BlockAllocatorPeer::SetNumFree(allocator, 3);
  BlockAllocatorPeer::NumOwners(allocator, 2) = 1;  // in the free queue, and owned
  EXPECT_THROW(allocator.Check(), InvariantError);
  BlockAllocatorPeer::NumOwners(allocator, 2) = 0;
  BlockAllocatorPeer::Queued(allocator, 3) = 1;  // twice in the free queue
  EXPECT_THROW(allocator.Check(), InvariantError);
  BlockAllocatorPeer::Queued(allocator, 3) = kNoBlock;  // lost
  EXPECT_THROW(allocator.Check(), InvariantError);
  BlockAllocatorPeer::Queued(allocator, 3) = 3;
  allocator.Check();
}

void RunAllocatorStream(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  BlockAllocator allocator(static_cast<std::int32_t>(1 + below(12)));
  std::vector<BlockRef> held;
  for (int op = 0; op < 24; ++op) {
    const std::size_t at = held.empty() ? 0 : below(held.size());
    if (below(3) == 0 || held.empty()) {
      const auto count = static_cast<std::int32_t>(below(6));
      const std::int32_t num_free = allocator.num_free();
      auto blocks = allocator.Allocate(count);
      ASSERT_EQ(blocks.has_value(), count <= num_free);
      ASSERT_EQ(allocator.num_free(), blocks ? num_free - count : num_free);
      if (blocks) std::ranges::move(*blocks, std::back_inserter(held));
    } else if (below(2) == 0) {
      held.push_back(held[at].Share());
    } else {
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
    }
    allocator.Check();
    std::set<BlockId> owned;
    for (const BlockRef& block : held) owned.insert(block.id());
    ASSERT_EQ(allocator.num_free() + static_cast<std::int32_t>(owned.size()),
              allocator.num_blocks());
  }
  held.clear();
  ASSERT_EQ(allocator.num_free(), allocator.num_blocks());
}

TEST(BlockAllocatorStreamTest, AnyOrderOfCallsKeepsTheInvariants) {
  testing::ForEachSeed(5000, RunAllocatorStream);
}

}  // namespace
}  // namespace runtime
