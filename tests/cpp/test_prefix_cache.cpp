#include <gtest/gtest.h>

#include <numeric>

#include "common/check.h"
#include "kv_cache/kv_pool.h"
#include "kv_cache/prefix_cache.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr std::int32_t kBlockSize = 4;

std::vector<TokenId> Tokens(TokenId first, std::int32_t count) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Three helpers make a test a story: Run computes a request's tokens, Hits looks them up, End gives
// its blocks back.
class PrefixCacheTest : public ::testing::Test {
 protected:
  explicit PrefixCacheTest(EvictionPolicy eviction = EvictionPolicy::kLru)
      : pool_(allocator_, {.block_size = kBlockSize,
                           .watermark = 0.0,
                           .enable_prefix_caching = true,
                           .hash_seed = 1,
                           .eviction = eviction,
                           .costs = {kBlockSize, 1e-3, 1e-3, 0.0}}) {}

  struct Holder {
    Holder(BlockAllocator& allocator, std::vector<TokenId> ids, std::string salt)
        : tokens(std::move(ids)), share(allocator) {
      share.chain.salt = std::move(salt);
    }
    std::vector<TokenId> tokens;
    KvShare share;
  };
  using Request = std::unique_ptr<Holder>;

  Request Begin(std::vector<TokenId> tokens, std::string salt = "") {
    auto request = std::make_unique<Holder>(allocator_, std::move(tokens), std::move(salt));
    const auto len = static_cast<std::int32_t>(request->tokens.size());
    const auto hit = pool_.Match(request->share, request->tokens, len);
    pool_.Adopt(request->share, hit);
    pool_.Extend(request->share, pool_.BlocksFor(len) - request->share.table.size());
    return request;
  }

  void Publish(Holder& request) {
    pool_.Publish(request.share, request.tokens, static_cast<std::int32_t>(request.tokens.size()));
    pool_.Check();
  }

  Request Run(std::vector<TokenId> tokens, std::string salt = "") {
    Request request = Begin(std::move(tokens), std::move(salt));
    Publish(*request);
    return request;
  }

  void End(Request request) {
    pool_.Release(request->share);
    pool_.Check();
  }

  std::int32_t Hits(const std::vector<TokenId>& tokens, std::string salt = "") {
    Holder probe(allocator_, tokens, std::move(salt));
    const auto len = static_cast<std::int32_t>(tokens.size());
    return static_cast<std::int32_t>(pool_.Match(probe.share, tokens, len).blocks.size());
  }

  BlockAllocator allocator_{8};
  KvPool pool_;
};

TEST_F(PrefixCacheTest, FullBlocksOfAnEqualPrefixAreFound) {
  End(Run(Tokens(0, 11)));
  EXPECT_EQ(Hits(Tokens(0, 11)), 2);
  EXPECT_EQ(Hits(Tokens(0, 8)), 2);
  EXPECT_EQ(Hits(Tokens(0, 7)), 1);
  EXPECT_EQ(Hits(Tokens(1, 8)), 0);
}

TEST_F(PrefixCacheTest, SameTokensBehindAnotherPrefixAreNotFound) {
  End(Run(Tokens(0, 8)));
  auto other = Tokens(100, 4);
  const auto tail = Tokens(4, 4);
  other.insert(other.end(), tail.begin(), tail.end());
  EXPECT_EQ(Hits(other), 0);
  EXPECT_EQ(Hits(tail), 0);
}

TEST_F(PrefixCacheTest, OnlyEqualSaltsShare) {
  End(Run(Tokens(0, 4), "alice"));
  EXPECT_EQ(Hits(Tokens(0, 4), "alice"), 1);
  EXPECT_EQ(Hits(Tokens(0, 4), "bob"), 0);
  EXPECT_EQ(Hits(Tokens(0, 4)), 0);
}

TEST_F(PrefixCacheTest, SharersHoldTheSameBlocks) {
  const Request first = Run(Tokens(0, 8));
  const Request second = Run(Tokens(0, 9));
  EXPECT_EQ(second->share.table[1], first->share.table[1]);
  EXPECT_EQ(allocator_.num_free(), 8 - 3);
}

TEST_F(PrefixCacheTest, LeavesAreEvictedBeforeTheirParents) {
  End(Run(Tokens(0, 16)));
  auto taken = allocator_.Allocate(5);  // 4 blocks hold nothing, so one cached block goes
  EXPECT_EQ(Hits(Tokens(0, 16)), 3);
  taken = allocator_.Allocate(2);
  EXPECT_EQ(Hits(Tokens(0, 16)), 1);
  pool_.Check();
}

TEST_F(PrefixCacheTest, LeastRecentlyUsedChainIsEvictedFirst) {
  End(Run(Tokens(0, 8)));
  End(Run(Tokens(50, 8)));
  End(Run(Tokens(0, 8)));  // used again
  const auto taken = allocator_.Allocate(6);
  EXPECT_EQ(Hits(Tokens(0, 8)), 2);
  EXPECT_EQ(Hits(Tokens(50, 8)), 0);
}

class CostEvictionTest : public PrefixCacheTest {
 protected:
  CostEvictionTest() : PrefixCacheTest(EvictionPolicy::kCost) {}
};

TEST_F(CostEvictionTest, LeavesAreEvictedBeforeTheirParentsThoughTheyCostMore) {
  End(Run(Tokens(0, 16)));
  auto taken = allocator_.Allocate(5);
  EXPECT_EQ(Hits(Tokens(0, 16)), 3);
  taken = allocator_.Allocate(2);
  EXPECT_EQ(Hits(Tokens(0, 16)), 1);
  pool_.Check();
}

TEST_F(CostEvictionTest, WhatWasUsedMoreOftenOutlivesWhatWasUsedLast) {
  for (int i = 0; i < 3; ++i) End(Run(Tokens(0, 4)));
  End(Run(Tokens(50, 4)));
  const auto taken = allocator_.Allocate(7);
  EXPECT_EQ(Hits(Tokens(0, 4)), 1);
  EXPECT_EQ(Hits(Tokens(50, 4)), 0);
}

TEST_F(CostEvictionTest, WhatCostsMoreOutlivesWhatWasUsedLast) {
  Request deep = Run(Tokens(0, 8));
  End(Run(Tokens(50, 4)));
  End(std::move(deep));
  End(Run(Tokens(50, 4)));  // used twice, but at the beginning of its prompt
  const auto taken = allocator_.Allocate(6);
  EXPECT_EQ(Hits(Tokens(0, 8)), 2);
  EXPECT_EQ(Hits(Tokens(50, 4)), 0);
}

TEST_F(CostEvictionTest, OldFameFades) {
  for (int i = 0; i < 3; ++i) End(Run(Tokens(0, 4)));
  for (TokenId first = 100; first < 400; first += 10) End(Run(Tokens(first, 32)));
  EXPECT_EQ(Hits(Tokens(0, 4)), 0);
}

TEST_F(PrefixCacheTest, TwinsComputedSideBySideKeepOneIndexedChain) {
  Request first = Begin(Tokens(0, 8));
  Request second = Begin(Tokens(0, 12));
  Publish(*first);
  Publish(*second);  // its first two blocks are twins, its third is a child of the first's
  EXPECT_NE(second->share.table[0], first->share.table[0]);
  EXPECT_EQ(second->share.chain.twins.size(), 2u);
  EXPECT_EQ(Hits(Tokens(0, 12)), 3);
  End(std::move(first));
  const auto taken = allocator_.Allocate(allocator_.num_free());
  EXPECT_EQ(Hits(Tokens(0, 12)), 3) << "the second request keeps the chain of its child alive";
  End(std::move(second));
}

TEST_F(PrefixCacheTest, TwinOfAFreeBlockIsNotHeldWhenNoBlockCanBeSpared) {
  Request first = Begin(Tokens(0, 4));
  Request second = Begin(Tokens(0, 8));
  Publish(*first);
  End(std::move(first));
  pool_.Reserve(second->share, pool_.num_available());
  Publish(*second);
  EXPECT_FALSE(second->share.chain.open);
  EXPECT_EQ(Hits(Tokens(0, 8)), 1);
  End(std::move(second));
}

TEST_F(PrefixCacheTest, ClearForgetsEverythingAndFreesNothing) {
  Request running = Run(Tokens(0, 8));
  running->share.chain.open = false;
  pool_.ClearPrefixes();
  EXPECT_EQ(Hits(Tokens(0, 8)), 0);
  EXPECT_EQ(pool_.num_cached(), 0);
  EXPECT_EQ(allocator_.num_free(), 6);
  Publish(*running);
  EXPECT_EQ(Hits(Tokens(0, 8)), 0);
  End(std::move(running));
}

TEST_F(PrefixCacheTest, ReservedBlocksAreForTheirOwnerOnly) {
  Request owner = Begin(Tokens(0, 4));
  Request other = Begin(Tokens(100, 4));
  pool_.Reserve(owner->share, 5);
  EXPECT_EQ(pool_.num_available(), 1);
  EXPECT_FALSE(pool_.CanExtend(other->share, 2, 0));
  EXPECT_TRUE(pool_.CanExtend(owner->share, 5, 0));
  EXPECT_TRUE(pool_.CanExtend(owner->share, 6, 0));
  pool_.Extend(owner->share, 2);
  EXPECT_EQ(pool_.num_available(), 1);
  pool_.Check();
  EXPECT_DEATH(pool_.Extend(other->share, 2), "taken by no other");
  End(std::move(owner));
  EXPECT_EQ(pool_.num_reserved(), 0);
  End(std::move(other));
}

TEST(PrefixCacheCollisionTest, EqualHashesChangeNothing) {
  BlockAllocator allocator(8);
  KvPool pool(allocator, {kBlockSize, 0.0, true, 1, true});
  const auto run = [&](const std::vector<TokenId>& tokens, const std::string& salt) {
    KvShare share(allocator);
    share.chain.salt = salt;
    const auto len = static_cast<std::int32_t>(tokens.size());
    const auto hit = pool.Match(share, tokens, len);
    const auto hits = static_cast<std::int32_t>(hit.blocks.size());
    pool.Adopt(share, hit);
    pool.Extend(share, pool.BlocksFor(len) - hits);
    pool.Publish(share, tokens, len);
    pool.Check();
    pool.Release(share);
    return hits;
  };
  EXPECT_EQ(run(Tokens(0, 8), ""), 0);
  EXPECT_EQ(run(Tokens(0, 8), ""), 2) << "tokens decide";
  EXPECT_EQ(run(Tokens(9, 8), ""), 0);
  EXPECT_EQ(run(Tokens(0, 8), "salt"), 0) << "a salt is compared, not only hashed";
  EXPECT_EQ(run(Tokens(4, 8), ""), 0) << "and so is the block before";
  EXPECT_EQ(run(Tokens(9, 8), ""), 2);
  EXPECT_EQ(run(Tokens(0, 3), ""), 0);
}

TEST(PrefixCacheDisabledTest, NothingIsFound) {
  BlockAllocator allocator(4);
  KvPool pool(allocator, {kBlockSize, 0.0, false, 1, false});
  KvShare share(allocator);
  const auto tokens = Tokens(0, 8);
  pool.Extend(share, 2);
  pool.Publish(share, tokens, 8);
  EXPECT_TRUE(pool.Match(share, tokens, 8).blocks.empty());
  EXPECT_EQ(pool.num_cached(), 0);
  pool.Release(share);
}

}  // namespace
}  // namespace runtime
