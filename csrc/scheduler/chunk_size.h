#pragma once

#include <cstdint>
#include <span>

#include "runtime/scheduler_config.h"
#include "runtime/step_time.h"
#include "scheduler/plan_writer.h"

namespace runtime {

// Sizes prompt chunks so that a step which also decodes takes no longer than target_itl_ms, as the
// step-time model sees it. The first chunk of a step is a block at least, so that prompts come to
// an end however long the decodes alone take. Without a target every chunk is as large as is asked
// for.
class ChunkSize {
 public:
  explicit ChunkSize(const SchedulerConfig& config);

  // Starts a step with its decodes.
  void BeginStep(std::span<const PlannedRow> decode_rows);
  // Tokens that a prompt may compute after `num_computed` others, of `wanted`; 0: no more prompts
  // in this step.
  std::int32_t Of(std::int32_t num_computed, std::int32_t wanted) const;
  // The step computes them.
  void Add(std::int32_t num_computed, std::int32_t count);

 private:
  bool Fits(std::int32_t num_computed, std::int32_t count) const;

  const StepTimeModel model_;
  const double target_s_;
  const std::int32_t block_size_;
  bool is_limited_ = false;  // this step
  StepFeatures features_;
};

}  // namespace runtime
