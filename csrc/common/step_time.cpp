#include "runtime/step_time.h"

#include <algorithm>
#include <limits>
#include <string>

#include "common/text.h"
#include "runtime/step_plan.h"

namespace runtime {
namespace {

using Bucket = StepTimeModel::Bucket;

constexpr double kTile = StepFeatures::kTileLen;

// Pairs at or under the diagonal, of queries [start, start + count) and context from 0.
double NumPairs(double start, double count) { return count * (start + (count + 1.0) / 2.0); }

double Between(double low, double high, double share) { return low + (high - low) * share; }

// Between two buckets, or beyond them, in proportion to the tokens.
Bucket Interpolate(const Bucket& low, const Bucket& high, std::int32_t num_tokens) {
  const double share = static_cast<double>(num_tokens - low.num_tokens) /
                       static_cast<double>(high.num_tokens - low.num_tokens);
  return {num_tokens, Between(low.launch_s, high.launch_s, share),
          Between(low.gemm_s, high.gemm_s, share),
          Between(low.collective_s, high.collective_s, share)};
}

}  // namespace

void StepFeatures::AddDecode(std::int32_t num_computed) {
  ++num_rows;
  ++num_decode_rows;
  ++num_tokens;
  num_decode_tiles += (num_computed + 1) / kTile;
}

void StepFeatures::AddPrefill(std::int32_t num_computed, std::int32_t count) {
  ++num_rows;
  num_tokens += count;
  num_prefill_tiles += NumPairs(num_computed, count) / (kTile * kTile);
}

StepFeatures FeaturesOf(std::span<const std::int32_t> plan) {
  StepFeatures features;
  const std::int32_t* row = &plan[static_cast<std::size_t>(plan[step_plan::kHeaderRows])];
  const std::int32_t num_rows = plan[step_plan::kHeaderNumRows];
  for (std::int32_t i = 0; i < num_rows; ++i, row += step_plan::kRowWords) {
    if (i < plan[step_plan::kHeaderNumDecodeRows]) {
      features.AddDecode(row[1]);
    } else {
      features.AddPrefill(row[1], row[2]);
    }
  }
  if (num_rows == 0) return features;
  // prompts that are still computed hold their part of it too
  const double repeated = plan[step_plan::kHeaderRepeatedTokens] / kTile;
  features.num_repeated_tiles =
      std::min(repeated * features.num_decode_rows / num_rows, features.num_decode_tiles);
  return features;
}

StepTime StepTimeModel::Of(const StepFeatures& features) const {
  const std::int32_t tokens = features.num_tokens;
  const auto above = std::ranges::lower_bound(buckets, tokens, {}, &Bucket::num_tokens);
  const bool is_graph =
      features.num_decode_rows == features.num_rows && features.num_rows <= max_graph_rows;
  Bucket bucket;
  if (buckets.size() == 1 || above == buckets.begin() || (is_graph && above != buckets.end())) {
    bucket = above == buckets.end() ? buckets.back() : *above;
  } else {
    const auto high = std::min(above, buckets.end() - 1);
    bucket = Interpolate(*(high - 1), *high, tokens);
  }
  const double decode_tiles =
      features.num_decode_tiles - (1.0 - repeated_tile_share) * features.num_repeated_tiles;
  const double attention =
      decode_tile_s * decode_tiles + prefill_tile_s * features.num_prefill_tiles;
  return {bucket.launch_s, bucket.gemm_s, attention, bucket.collective_s,
          host_s + row_s * features.num_rows};
}

double StepTimeModel::RecomputeTokenSeconds() const {
  constexpr std::int32_t kChunk = 4096;
  return std::min(Of({.num_rows = 1, .num_tokens = kChunk}).total() / kChunk, 1.0);
}

double StepTimeModel::RecomputeContextSeconds() const {
  constexpr double kPairs = double{StepFeatures::kTileLen} * StepFeatures::kTileLen;
  return std::min(prefill_tile_s / kPairs, 1e-5);
}

void StepTimeModel::Validate() const {
  RequireSetting(!buckets.empty(), "number of buckets of the step-time model", buckets.size(),
                 "at least 1");
  const auto require_seconds = [](const char* name, double value) {
    RequireSetting(value >= 0.0 && value <= std::numeric_limits<double>::max(), name, value,
                   "at least 0 seconds");
  };
  std::int32_t last = 0;
  for (const Bucket& bucket : buckets) {
    RequireSetting(bucket.num_tokens > last, "num_tokens of a bucket", bucket.num_tokens,
                   "above " + Text(last) + ", that of the one before");
    last = bucket.num_tokens;
    require_seconds("launch_s of a bucket", bucket.launch_s);
    require_seconds("gemm_s of a bucket", bucket.gemm_s);
    require_seconds("collective_s of a bucket", bucket.collective_s);
  }
  require_seconds("decode_tile_s", decode_tile_s);
  require_seconds("prefill_tile_s", prefill_tile_s);
  RequireSetting(repeated_tile_share >= 0.0 && repeated_tile_share <= 1.0, "repeated_tile_share",
                 repeated_tile_share, "between 0 and 1");
  require_seconds("host_s", host_s);
  require_seconds("row_s", row_s);
}

}  // namespace runtime
