#include "runtime/scheduler_config.h"

#include <bit>
#include <string>

#include "common/text.h"
#include "runtime/error.h"
#include "runtime/step_plan.h"

namespace runtime {
namespace {

void RequireRange(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return;
  throw ConfigError(std::string(name) + "=" + std::to_string(value) + ": must be between " +
                    std::to_string(low) + " and " + std::to_string(high) +
                    "; nearest: " + std::to_string(value < low ? low : high));
}

void RequireShare(const std::string& name, double value, double low, double high) {
  if (value >= low && value <= high) return;
  throw ConfigError(name + "=" + Text(value) + ": must be between " + Text(low) + " and " +
                    Text(high) +
                    (value != value ? "" : "; nearest: " + Text(value < low ? low : high)));
}

}  // namespace

void SchedulerConfig::Validate() const {
  // the products of these limits stay inside the plan's 32-bit offsets
  RequireRange("max_num_seqs", max_num_seqs, 1, 1 << 14);
  RequireRange("max_num_batched_tokens", max_num_batched_tokens, 1, 1 << 22);
  RequireRange("block_size", block_size, 1, 1 << 16);
  if (!std::has_single_bit(static_cast<std::uint32_t>(block_size))) {
    throw ConfigError("block_size=" + std::to_string(block_size) +
                      ": must be a power of two; nearest: " +
                      std::to_string(std::bit_floor(static_cast<std::uint32_t>(block_size))));
  }
  RequireRange("max_model_len", max_model_len, 2, 1 << 24);
  RequireRange("vocab_size", vocab_size, 1, 1 << 24);
  RequireRange("num_steps_in_flight", num_steps_in_flight, 1, 2);
  RequireShare("watermark", watermark, 0.0, 0.5);
  RequireRange("preempt_every", preempt_every, 0, 1 << 30);
  RequireRange("max_queued_requests", max_queued_requests, -1, 1 << 30);
  RequireRange("number of eos_token_ids", static_cast<std::int64_t>(eos_token_ids.size()), 0,
               step_plan::kMaxMaskedIds);
  RequireShare("admission_reserve", admission_reserve, 0.0, 0.5);
  RequireRange("length_window", length_window, 1, 1 << 16);
  RequireShare("target_itl_ms", target_itl_ms, 0.0, 1e6);
  if (target_itl_ms > 0.0 && step_time.buckets.empty()) {
    throw ConfigError(
        "target_itl_ms=" + Text(target_itl_ms) + ": must come with step_time, a model",
        "a calibration or a roofline makes one");
  }
  if (!step_time.buckets.empty()) step_time.Validate();
  // the rank of a priority stays inside 64 bits
  RequireShare("priority_ageing_s", priority_ageing_s, 0.0, 1000.0);
  RequireShare("prompt_token_weight", prompt_token_weight, 0.0, 100.0);
  RequireShare("output_token_weight", output_token_weight, 0.0, 100.0);
  for (const auto& [tenant, weight] : tenant_weights) {
    RequireShare("tenant_weights['" + tenant + "']", weight, 0.01, 100.0);
  }
  RequireShare("max_pinned_share", max_pinned_share, 0.0, 1.0);
  RequireRange("num_host_blocks", num_host_blocks, 0, 1 << 28);
  if (num_host_blocks > 0 && !enable_prefix_caching) {
    throw ConfigError("num_host_blocks=" + std::to_string(num_host_blocks) +
                          ": must be 0 without a prefix cache; nearest: 0",
                      "the CPU tier holds what the prefix cache finds: enable_prefix_caching");
  }
  RequireShare("recompute_token_s", recompute_token_s, 0.0, 1.0);
  RequireShare("recompute_context_s", recompute_context_s, 0.0, 1e-5);
  RequireShare("transfer_block_s", transfer_block_s, 0.0, 10.0);
  for (const TokenId id : eos_token_ids) RequireRange("eos_token_ids", id, 0, vocab_size - 1);
}

}  // namespace runtime
