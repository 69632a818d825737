#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "runtime/request_params.h"
#include "runtime/scheduler_config.h"
#include "runtime/types.h"

namespace runtime::testing {

// What a model would sample after `context`: a hash of every token and its position. `salt` stands
// for what else decides (the seed, the ids a penalty sees).
TokenId SampleAfter(std::span<const TokenId> context, std::uint64_t salt, std::int32_t vocab_size);

// Executes StepPlans as a device would, from the plan's words alone, and throws std::logic_error on
// a plan that no device could execute. A KV slot holds a hash of the token and position written to
// it, and a token is sampled from all slots of its context, so a wrong block shows as a wrong
// token. A copy reads its source when its plan is written and writes its destination when it is
// done; until then the source may not change, and the destination holds garbage.
class FakeDevice {
 public:
  FakeDevice(const SchedulerConfig& config, std::int32_t num_blocks);

  // One token per row of the plan; -1 for rows that sample nothing.
  std::vector<TokenId> Execute(std::span<const std::int32_t> plan);

  // The copies of a plan start, before or after its rows are executed; those of a step are done.
  void StartCopies(std::span<const std::int32_t> plan);
  void FinishCopies(std::int32_t step);

  // The tokens that a scored row has computed, by (row of the device, position).
  const std::map<std::int32_t, std::vector<TokenId>>& scored() const { return scored_; }

 private:
  struct Row {
    bool is_live = false;
    std::int32_t epoch = 0;
    std::int32_t flags = 0;
    std::int64_t seed = 0;
    std::int32_t prompt_len = 0;
    std::int32_t num_computed = -1;  // -1: a new row, its first plan says
    TokenId last_token = -1;
    std::vector<TokenId> known_ids;
    std::vector<BlockId> table;
  };

  struct Copy {
    bool to_host;
    BlockId device, host;
    std::vector<std::uint64_t> content;
  };

  std::span<std::uint64_t> DeviceBlock(BlockId block);
  std::span<std::uint64_t> HostBlock(BlockId block);
  void CheckHeader(std::span<const std::int32_t> plan) const;
  void ApplyNewRows(std::span<const std::int32_t> plan);
  void ApplyNewBlocks(std::span<const std::int32_t> plan);
  void ApplyFreedRows(std::span<const std::int32_t> plan);
  void CheckRow(const Row& row, std::int32_t num_computed, std::int32_t num_scheduled,
                std::int32_t flags, bool is_decode) const;
  void WriteKv(const Row& row, std::int32_t position, TokenId token);
  std::uint64_t& Slot(const Row& row, std::int32_t position);
  TokenId Sample(Row& row);
  void RequireUnshared(const Row& row, BlockId block) const;

  const SchedulerConfig config_;
  std::int32_t num_blocks_;
  std::int32_t last_step_ = 0;
  std::vector<Row> rows_;
  std::vector<std::uint64_t> kv_, host_kv_;
  std::map<std::int32_t, std::vector<Copy>> copies_;  // by step
  std::map<std::int32_t, std::vector<TokenId>> scored_;
};

// What decides a request's tokens besides its context.
std::uint64_t SampleSalt(std::int64_t seed, bool sees_ids, std::span<const TokenId> ids);

}  // namespace runtime::testing
