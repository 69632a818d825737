// Cached prefixes that callers want kept: each pin owns its blocks as a request does.
#include <algorithm>
#include <string>
#include <utility>

#include "runtime/error.h"
#include "scheduler/core.h"

namespace runtime {

PinnedPrefix Scheduler::Core::Pin(std::span<const TokenId> tokens, const std::string& salt) {
  {
    const Change change(is_lost_);
    DrainInbox();
  }
  auto share = std::make_unique<KvShare>(allocator_);
  share->chain.salt = salt;
  const KvPool::Hit hit = kv_.Match(*share, tokens, static_cast<std::int32_t>(tokens.size()));
  if (hit.blocks.empty()) return {};
  const auto limit = static_cast<std::int32_t>(config_.max_pinned_share * kv_.num_blocks());
  const std::int32_t room =
      std::min(limit - NumPinned(), kv_.num_available() + hit.num_blocks() - hit.num_free);
  if (hit.num_blocks() > room) {
    throw CapacityError("a prefix of " + std::to_string(hit.num_blocks()) +
                            " blocks: pinned prefixes hold " + std::to_string(NumPinned()) +
                            " blocks, and there is room for " + std::to_string(std::max(room, 0)) +
                            " more",
                        "unpin others, pin a shorter prefix, or raise max_pinned_share");
  }
  if (recorder_) recorder_->OnPin(tokens, salt);
  kv_.Adopt(*share, hit);
  pins_.push_back({num_pins_made_++, std::move(share)});
  return {pins_.back().id, hit.num_blocks() * kv_.block_size()};
}

bool Scheduler::Core::Unpin(std::int64_t id) {
  if (recorder_) recorder_->OnUnpin(id);
  return DropPin(id);
}

bool Scheduler::Core::DropPin(std::int64_t id) {
  const auto found = std::ranges::find(pins_, id, &Pinned::id);
  if (found == pins_.end()) return false;
  kv_.Release(*found->share);
  pins_.erase(found);
  return true;
}

bool Scheduler::Core::DropOldestPin() { return !pins_.empty() && DropPin(pins_.front().id); }

std::int32_t Scheduler::Core::NumPinned() const {
  std::int32_t count = 0;
  for (const Pinned& pin : pins_) count += pin.share->table.size();
  return count;
}

}  // namespace runtime
