#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "runtime/scheduler_config.h"
#include "scheduler/event_records.h"

namespace runtime {

// Token ids in place of those that an event log does not have: blocks with equal hashes get equal
// ids, others different ones, so that the prefix cache hits where it hit.
//
// A block's ids are the digits of a number, to the base of all ids but eos. That is its hash where
// block_size digits can tell all hashes apart; with fewer, its place among the different blocks
// that followed the same one.
class ReplayTokens {
 public:
  static constexpr TokenId kEos = 0;

  // The full blocks of a request, as far as the log knows them.
  struct Sequence {
    std::vector<event_log::Word> blocks;
  };

  explicit ReplayTokens(const SchedulerConfig& config);

  // A look at the whole log, in order, before any id is asked for.
  void Expect(std::int64_t request, const std::vector<event_log::Word>& prompt_blocks);
  void Expect(std::int64_t request, event_log::Word block);

  // All blocks of a request, given those of its prompt. Once for each request.
  Sequence SequenceOf(std::int64_t request, std::vector<event_log::Word> prompt_blocks);
  // At a position, never kEos. In a block that never got full any id will do.
  TokenId At(const Sequence& sequence, std::int32_t position) const;

 private:
  void Number(event_log::Word parent, event_log::Word block);

  const std::int32_t block_size_;
  const std::uint64_t base_;
  std::vector<std::uint64_t> powers_;  // of the base, for each digit that may not be 0
  bool has_room_ = false;              // for hashes
  std::unordered_map<std::int64_t, std::vector<event_log::Word>> outputs_;  // by request
  // only without room for hashes
  std::unordered_map<std::int64_t, event_log::Word> last_;         // block, by request
  std::unordered_map<event_log::Word, std::uint64_t> numbers_;     // by block
  std::unordered_map<event_log::Word, std::uint64_t> num_follow_;  // different blocks, by block
};

}  // namespace runtime
