#include "scheduler/chunk_size.h"

#include <algorithm>

namespace runtime {

ChunkSize::ChunkSize(const SchedulerConfig& config)
    : model_(config.step_time),
      target_s_(config.target_itl_ms / 1e3),
      block_size_(config.block_size) {}

void ChunkSize::BeginStep(std::span<const PlannedRow> decode_rows) {
  is_limited_ = target_s_ > 0.0 && !decode_rows.empty();
  if (!is_limited_) return;
  features_ = {};
  for (const PlannedRow& row : decode_rows) features_.AddDecode(row.num_computed);
}

std::int32_t ChunkSize::Of(std::int32_t num_computed, std::int32_t wanted) const {
  if (!is_limited_ || Fits(num_computed, wanted)) return wanted;
  std::int32_t fits = 0, too_many = wanted;
  while (too_many - fits > 1) {
    const std::int32_t middle = fits + (too_many - fits) / 2;
    (Fits(num_computed, middle) ? fits : too_many) = middle;
  }
  if (fits >= block_size_) return fits - fits % block_size_;  // whole blocks can be shared
  const bool is_first = features_.num_rows == features_.num_decode_rows;
  return is_first ? std::min(wanted, block_size_) : 0;
}

void ChunkSize::Add(std::int32_t num_computed, std::int32_t count) {
  if (is_limited_) features_.AddPrefill(num_computed, count);
}

bool ChunkSize::Fits(std::int32_t num_computed, std::int32_t count) const {
  StepFeatures with = features_;
  with.AddPrefill(num_computed, count);
  return model_.Of(with).total() <= target_s_;
}

}  // namespace runtime
