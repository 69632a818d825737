#include "kv_cache/kv_pool.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "common/check.h"

namespace runtime {

namespace {

BlockAllocator* MakeHost(std::optional<BlockAllocator>& host, std::int32_t num_blocks) {
  return num_blocks > 0 ? &host.emplace(num_blocks) : nullptr;
}

PrefixCache::Options CacheOptions(const KvPool::Options& options) {
  return {options.block_size, options.hash_seed, options.constant_hash, options.eviction,
          options.costs};
}

}  // namespace

KvPool::KvPool(BlockAllocator& allocator, const Options& options)
    : allocator_(allocator),
      options_(options),
      block_shift_(std::countr_zero(static_cast<std::uint32_t>(options.block_size))),
      watermark_(static_cast<std::int32_t>(std::ceil(options.watermark * allocator.num_blocks()))),
      cache_(allocator, MakeHost(host_allocator_, options.num_host_blocks), CacheOptions(options)) {
}

KvPool::Hit KvPool::Match(KvShare& share, std::span<const TokenId> tokens,
                          std::int32_t max_tokens) {
  Hit hit;
  if (!options_.enable_prefix_caching) return hit;
  const auto found = cache_.Match(share.chain, tokens, max_tokens / options_.block_size);
  hit.blocks = found.device;
  for (const BlockId block : hit.blocks) hit.num_free += allocator_.num_owners(block) == 0;
  const auto num_host = static_cast<std::int32_t>(found.host.size());
  const KvCosts& costs = options_.costs;
  if (costs.Transfer(num_host) >= costs.Recompute(hit.num_blocks(), num_host)) return hit;
  hit.host = found.host;
  // what is stored is on the device, so this one is being loaded
  hit.is_awaited = host_allocator_->num_owners(hit.host.front()) > 0;
  return hit;
}

void KvPool::Adopt(KvShare& share, const Hit& hit) {
  Ensure(share.table.size() == 0, "a cached prefix starts an empty block table");
  cache_.Adopt(share.chain, hit.blocks, share.table);
}

void KvPool::Reserve(KvShare& share, std::int32_t count) {
  Ensure(num_available() >= count, "reserved blocks are free");
  share.num_reserved += count;
  num_reserved_ += count;
}

void KvPool::Extend(KvShare& share, std::int32_t count) {
  Ensure(CanExtend(share, count, 0), "blocks set aside for one request are taken by no other");
  const std::int32_t from_reserve = std::min(count, share.num_reserved);
  share.num_reserved -= from_reserve;
  num_reserved_ -= from_reserve;
  Ensure(share.table.Append(count), "available blocks are free");
}

void KvPool::Publish(KvShare& share, std::span<const TokenId> tokens, std::int32_t num_final) {
  if (!options_.enable_prefix_caching) return;
  const std::int32_t num_full = num_final >> block_shift_;
  PrefixChain& chain = share.chain;
  if (!chain.open || chain.num_indexed >= num_full) return;
  cache_.ExtendHashes(chain, tokens, num_full);
  while (chain.open && chain.num_indexed < num_full) {
    cache_.Publish(chain, tokens, share.table, num_available() > 0);
  }
}

void KvPool::Release(KvShare& share) {
  num_reserved_ -= share.num_reserved;
  share.num_reserved = 0;
  PrefixCache::Release(share.chain, share.table);
}

std::int32_t KvPool::NumShared(const KvShare& share) const {
  if (allocator_.num_shared() == 0) return share.num_shared = 0;
  const std::int32_t size = share.table.size();
  const auto is_shared = [&](std::int32_t i) { return allocator_.num_owners(share.table[i]) > 1; };
  // it changes little from one look to the next
  std::int32_t count = std::min(share.num_shared, size);
  while (count < size && is_shared(count)) ++count;
  while (count > 0 && !is_shared(count - 1)) --count;
  return share.num_shared = count;
}

KvCopy KvPool::Load(const KvShare& share, const Hit& hit) {
  KvCopy copy{KvCopy::Kind::kLoad, cache_.HoldOnHost(hit.host.back()), {}};
  copy.blocks.reserve(hit.host.size());
  for (std::int32_t i = 0; i < hit.num_host_blocks(); ++i) {
    copy.blocks.emplace_back(share.table[hit.num_blocks() + i],
                             hit.host[static_cast<std::size_t>(i)]);
  }
  return copy;
}

std::optional<KvCopy> KvPool::Store(const KvShare& share, std::int32_t num_ahead) {
  if (host() == nullptr) return std::nullopt;
  const std::span<const BlockId> unstored = cache_.Unstored(share.chain);
  KvCopy copy{KvCopy::Kind::kStore, cache_.HoldOnHost(share.chain), {}};
  const auto first = static_cast<std::int32_t>(copy.host.size());
  const auto count =
      std::min(static_cast<std::int32_t>(unstored.size()), host_allocator_->num_free());
  const std::int64_t cost = options_.costs.Transfer(std::int64_t{num_ahead} + 2 * count);
  if (cost >= options_.costs.Recompute(first, count)) {
    copy.ReleaseHost();
    return std::nullopt;
  }
  auto taken = host_allocator_->Allocate(count);
  for (std::int32_t i = 0; i < count; ++i) {
    BlockRef& host = (*taken)[static_cast<std::size_t>(i)];
    copy.blocks.emplace_back(unstored[static_cast<std::size_t>(i)], host.id());
    copy.host.push_back(std::move(host));
  }
  return copy;
}

void KvPool::FinishStore(const KvShare& share, KvCopy& copy) {
  if (share.chain.tail != kNoNode) cache_.PublishOnHost(share.chain, copy.host);
  copy.ReleaseHost();
}

void KvPool::Check() const {
  allocator_.Check();
  if (host_allocator_) host_allocator_->Check();
  cache_.Check();
  Hold(num_reserved_ >= 0 && num_available() >= 0, "no more blocks are set aside than are free");
}

}  // namespace runtime
