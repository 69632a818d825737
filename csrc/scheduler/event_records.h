// What an event log consists of; docs/event_log.md says it in words. Each record is described once:
// `Visit` calls `io` with every field in turn, to write it or to read it; of an enum it names the
// last value too. A new kind of event is a struct here, a call in Recorder and a case in the
// replay.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/scheduler_config.h"

namespace runtime::event_log {

// Of the file. Raised by every change of what is below.
inline constexpr std::uint32_t kVersion = 4;

enum class Kind : std::int64_t {
  kHeader = 0,
  kClock = 1,
  kSubmit = 2,
  kAbort = 3,
  kStop = 4,
  kResetPrefixCache = 5,
  kPlan = 6,
  kNoPlan = 7,
  kUpdate = 8,
  kTransferDone = 9,
  kPin = 10,
  kUnpin = 11,
};
inline constexpr std::int64_t kNumKinds = 12;

// A keyed hash, the same for the same thing throughout one log and unlike that of any other log.
using Word = std::uint64_t;

// The first record. A tenant is known by its hash.
struct Header {
  static constexpr Kind kKind = Kind::kHeader;
  std::string runtime_version;
  std::int32_t num_blocks = 0;
  SchedulerConfig config;  // without tenant_weights
  std::map<Word, double> tenant_weights;

  void Visit(auto& io) {
    io(runtime_version);
    io(num_blocks);
    // names every setting: a new one does not compile until it is recorded
    auto& [max_num_seqs, max_num_batched_tokens, block_size, max_model_len, vocab_size,
           eos_token_ids, enable_prefix_caching, num_steps_in_flight, watermark, preempt_every,
           max_queued_requests, seed, constant_block_hash, policy, priority_ageing_s, weights,
           prompt_token_weight, output_token_weight, admission, admission_reserve, length_window,
           target_itl_ms, step_time, eviction, max_pinned_share, num_host_blocks, recompute_token_s,
           recompute_context_s, transfer_block_s] = config;
    io(max_num_seqs);
    io(max_num_batched_tokens);
    io(block_size);
    io(max_model_len);
    io(vocab_size);
    io(enable_prefix_caching);
    io(num_steps_in_flight);
    io(watermark);
    io(preempt_every);
    io(constant_block_hash);
    io.Choice(policy, SchedulingPolicy::kFair);
    io(priority_ageing_s);
    io(tenant_weights);
    io(prompt_token_weight);
    io(output_token_weight);
    io.Choice(admission, AdmissionMode::kOracle);
    io(admission_reserve);
    io(length_window);
    io(target_itl_ms);
    VisitStepTime(io, step_time);
    io.Choice(eviction, EvictionPolicy::kCost);
    io(max_pinned_share);
    io(num_host_blocks);
    io(recompute_token_s);
    io(recompute_context_s);
    io(transfer_block_s);
    // these decide nothing: token values and request ids are not recorded, and who was turned away
    // at the queue never came
    (void)eos_token_ids, (void)max_queued_requests, (void)seed, (void)weights;
  }

 private:
  struct Bucket {
    StepTimeModel::Bucket of;

    void Visit(auto& io) {
      io(of.num_tokens);
      io(of.launch_s);
      io(of.gemm_s);
      io(of.collective_s);
    }
  };

  static void VisitStepTime(auto& io, StepTimeModel& model) {
    std::vector<Bucket> buckets;
    for (const auto& bucket : model.buckets) buckets.push_back({bucket});
    io(buckets);
    model.buckets.clear();
    for (const Bucket& bucket : buckets) model.buckets.push_back(bucket.of);
    io(model.max_graph_rows);
    io(model.decode_tile_s);
    io(model.repeated_tile_share);
    io(model.prefill_tile_s);
    io(model.host_s);
    io(model.row_s);
  }
};

// The scheduler's time went on.
struct Clock {
  static constexpr Kind kKind = Kind::kClock;
  std::int64_t passed_us = 0;

  void Visit(auto& io) { io(passed_us); }
};

// A request arrived. The first one is number 0, the next one number 1.
struct Submit {
  static constexpr Kind kKind = Kind::kSubmit;
  std::int32_t prompt_len = 0;
  std::int32_t max_tokens = 0;  // 0: not given
  std::int32_t score_start = -1;
  std::int32_t priority = 0;
  std::int32_t true_output_len = 0;  // 0: not known
  std::int32_t num_list_words = 0;   // of its new_rows record, the known ids apart
  bool has_penalties = false;        // so that the record has its known ids
  Word tenant = 0;
  std::vector<Word> blocks;  // the full blocks of its prompt, each with all before it and the salt

  void Visit(auto& io) {
    io(prompt_len);
    io(max_tokens);
    io(score_start);
    io(priority);
    io(true_output_len);
    io(num_list_words);
    io(has_penalties);
    io(tenant);
    io(blocks);
  }
};

struct Abort {
  static constexpr Kind kKind = Kind::kAbort;
  std::int64_t request = 0;

  void Visit(auto& io) { io(request); }
};

struct Stop {
  static constexpr Kind kKind = Kind::kStop;
  std::int64_t request = 0;
  std::int32_t num_kept = 0;

  void Visit(auto& io) {
    io(request);
    io(num_kept);
  }
};

struct ResetPrefixCache {
  static constexpr Kind kKind = Kind::kResetPrefixCache;

  void Visit(auto&) {}
};

// Schedule() planned a step; `decision` is its DecisionOf.
struct Plan {
  static constexpr Kind kKind = Kind::kPlan;
  Word decision = 0;

  void Visit(auto& io) { io(decision); }
};

// Schedule() found nothing that could run.
struct NoPlan {
  static constexpr Kind kKind = Kind::kNoPlan;

  void Visit(auto&) {}
};

// The oldest step in flight was retired: where it ended requests by a token, and the blocks that
// its tokens filled.
struct Update {
  static constexpr Kind kKind = Kind::kUpdate;
  struct End {
    std::int32_t row = 0;   // index in its plan
    bool is_error = false;  // no token of the vocabulary; else an eos or stop token

    void Visit(auto& io) {
      io(row);
      io(is_error);
    }
  };
  struct FullBlock {
    std::int64_t request = 0;
    Word block = 0;

    void Visit(auto& io) {
      io(request);
      io(block);
    }
  };
  std::vector<End> ends;
  std::vector<FullBlock> blocks;

  void Visit(auto& io) {
    io(ends);
    io(blocks);
  }
};

// The copies of a plan are done.
struct TransferDone {
  static constexpr Kind kKind = Kind::kTransferDone;
  std::int32_t step = 0;

  void Visit(auto& io) { io(step); }
};

// A prefix was pinned: its full blocks, as those of a prompt. The first pin is number 0.
struct Pin {
  static constexpr Kind kKind = Kind::kPin;
  std::vector<Word> pinned;

  void Visit(auto& io) { io(pinned); }
};

struct Unpin {
  static constexpr Kind kKind = Kind::kUnpin;
  std::int64_t pin = 0;

  void Visit(auto& io) { io(pin); }
};

}  // namespace runtime::event_log
