// How long a step takes: what simulations go by, and the scheduler where it sizes prompt chunks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace runtime {

// What a step does, as far as its time depends on it. A tile of attention is kTileLen tokens of
// context by one query token (decode) or by kTileLen of them (prefill); rows count the fraction of
// tiles that their queries see, as whole ones would hide how a step's time grows with its context.
struct StepFeatures {
  static constexpr std::int32_t kTileLen = 128;

  std::int32_t num_rows = 0;
  std::int32_t num_decode_rows = 0;
  std::int32_t num_tokens = 0;
  double num_decode_tiles = 0.0;
  double num_prefill_tiles = 0.0;
  double num_repeated_tiles = 0.0;  // of num_decode_tiles, those that another row reads as well

  // A row whose token follows `num_computed` others.
  void AddDecode(std::int32_t num_computed);
  // A row that computes `count` prompt tokens after `num_computed` others.
  void AddPrefill(std::int32_t num_computed, std::int32_t count);
};

// Of a StepPlan that Scheduler::Schedule wrote.
StepFeatures FeaturesOf(std::span<const std::int32_t> plan);

// Where the seconds of a step go.
struct StepTime {
  double launch = 0.0, gemm = 0.0, attention = 0.0, collectives = 0.0, host = 0.0;
  double total() const { return launch + gemm + attention + collectives + host; }
};

// t = t0(bucket) + gemm(bucket) + attention(sum of tiles) + collectives(bucket) + host.
//
// A step of decodes only, of at most `max_graph_rows`, takes the time of the next larger bucket, as
// a captured graph does; any other lies between two buckets in proportion to its tokens. Beyond the
// last bucket the last slope goes on.
struct StepTimeModel {
  struct Bucket {
    std::int32_t num_tokens = 0;
    double launch_s = 0.0, gemm_s = 0.0, collective_s = 0.0;
  };

  std::vector<Bucket> buckets;  // of rising num_tokens
  std::int32_t max_graph_rows = 0;
  double decode_tile_s = 0.0;
  // Of a tile that another row reads as well, and a device finds in its cache; against one that
  // only one row reads. From 0 to 1.
  double repeated_tile_share = 1.0;
  double prefill_tile_s = 0.0;
  double host_s = 0.0;
  double row_s = 0.0;  // of the host, for each row

  StepTime Of(const StepFeatures& features) const;

  // What the scheduler's recompute_token_s and recompute_context_s are on this device, within the
  // bounds of SchedulerConfig: a token of a large prefill, where weights are read once for many.
  double RecomputeTokenSeconds() const;
  double RecomputeContextSeconds() const;

  // Throws ConfigError.
  void Validate() const;
};

}  // namespace runtime
