#include "simulation/replay_tokens.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace runtime {

using event_log::Word;

ReplayTokens::ReplayTokens(const SchedulerConfig& config)
    : block_size_(config.block_size),
      base_(static_cast<std::uint64_t>(std::max(config.vocab_size - 1, 1))) {
  powers_.push_back(1);
  while (static_cast<std::int32_t>(powers_.size()) < block_size_ && base_ > 1 && !has_room_) {
    powers_.push_back(powers_.back() * base_);
    has_room_ = powers_.back() > std::numeric_limits<std::uint64_t>::max() / base_;
  }
}

void ReplayTokens::Expect(std::int64_t request, const std::vector<Word>& prompt_blocks) {
  if (has_room_) return;
  Word parent = 0;
  for (const Word block : prompt_blocks) Number(std::exchange(parent, block), block);
  last_[request] = parent;
}

void ReplayTokens::Expect(std::int64_t request, Word block) {
  outputs_[request].push_back(block);
  if (!has_room_) Number(std::exchange(last_[request], block), block);
}

void ReplayTokens::Number(Word parent, Word block) {
  const auto [entry, is_new] = numbers_.try_emplace(block, 0);
  if (is_new) entry->second = num_follow_[parent]++;
}

ReplayTokens::Sequence ReplayTokens::SequenceOf(std::int64_t request,
                                                std::vector<Word> prompt_blocks) {
  Sequence sequence{std::move(prompt_blocks)};
  const auto outputs = outputs_.extract(request);
  if (outputs.empty()) return sequence;
  const std::vector<Word>& more = outputs.mapped();
  sequence.blocks.insert(sequence.blocks.end(), more.begin(), more.end());
  return sequence;
}

TokenId ReplayTokens::At(const Sequence& sequence, std::int32_t position) const {
  const auto index = static_cast<std::size_t>(position / block_size_);
  const auto digit = static_cast<std::size_t>(position % block_size_);
  if (index >= sequence.blocks.size() || digit >= powers_.size()) return kEos + 1;
  const Word block = sequence.blocks[index];
  const std::uint64_t number = has_room_ ? block : numbers_.at(block);
  return static_cast<TokenId>(number / powers_[digit] % base_) + kEos + 1;
}

}  // namespace runtime
