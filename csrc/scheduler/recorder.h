#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/record_file.h"
#include "common/siphash.h"
#include "scheduler/event_records.h"
#include "scheduler/request.h"

namespace runtime {

// What a plan decides: rows, blocks, copies and freed rows. Token ids and sampling parameters are
// left out, as an event log does not know them.
std::uint64_t DecisionOf(std::span<const std::int32_t> plan);

// Writes down what the scheduler's thread is told and what it decides, in its order:
// docs/event_log.md. Token ids, salts and tenants' names leave as hashes under a key that is drawn
// here and kept nowhere; request ids do not leave at all.
class Recorder {
 public:
  // Of the scheduler's time: events are in the file after so long, or when there are many.
  static constexpr std::int64_t kFlushEveryUs = 1'000'000;

  // Throws ConfigError when the file cannot be written.
  Recorder(const std::string& path, const SchedulerConfig& config, std::int32_t num_blocks);

  void OnTime(std::int64_t now_us);
  void OnSubmit(Request& request);
  void OnAbort(const Request& request);
  void OnStop(const Request& request, std::int32_t num_kept);
  void OnResetPrefixCache();
  void OnPlan(std::span<const std::int32_t> plan);
  void OnNoPlan();
  void OnTransferDone(std::int32_t step);
  void OnPin(std::span<const TokenId> tokens, const std::string& salt);
  void OnUnpin(std::int64_t pin);

  // Between two calls of OnUpdate: a token joined the request's, or ended it.
  void OnToken(Request& request);
  void OnEnd(std::int32_t row, bool is_error);
  void OnUpdate();

 private:
  void Write(auto record);
  Hash128 HashOf(const std::string& text) const;
  // The hashes of blocks that got full since the last call, to `take(hash)`.
  void TakeFullBlocks(Request& request, auto take) const;

  const std::int32_t block_size_;  // 0: nothing is cached, so no block's content matters
  const Hash128 key_;
  std::int64_t time_us_ = 0;
  std::int64_t flushed_us_ = 0;
  event_log::Update update_;
  RecordWriter file_;
};

}  // namespace runtime
