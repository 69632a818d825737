#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "bench/flags.h"
#include "bench/model_file.h"
#include "common/json.h"
#include "runtime/simulation.h"

namespace runtime::bench {

// Whether a command line asks for what only `runtime simulate` of the Python package does.
bool NeedsPython(const Words& words);

// The flags of `runtime simulate` that need no Python; the same names, defaults and meaning.
struct SimulateOptions {
  std::string config, calibration;
  DeviceFlags device;
  std::int32_t tp = 1;

  std::string workload = "azure-conversation";
  std::optional<double> rate, cv, prompt_share;
  std::optional<std::int64_t> num_requests, seed;
  std::optional<std::int32_t> concurrency, queue_depth, max_tokens, num_trees, branching, depth,
      segment_len;

  std::int32_t max_num_seqs = 256, max_num_batched_tokens = 8192, block_size = 16;
  std::int32_t max_model_len = 16384, cpu_kv_tokens = 0, num_steps_in_flight = 2;
  std::int32_t num_replicas = 1, num_threads = 1;
  double cpu_bandwidth = 2.5e10, report_interval_s = 0.05, target_itl_ms = 0.0;
  std::optional<std::int32_t> kv_tokens, num_blocks;
  std::optional<double> admission_reserve;
  bool enable_prefix_caching = true;
  std::string eviction = "lru", policy = "fcfs", admission = "past_future", router = "least_work";

  double slo_ttft_ms = simulation::kInfinity, slo_tpot_ms = simulation::kInfinity;
  double slo_e2e_ms = simulation::kInfinity, slo_gap_ms = simulation::kInfinity;

  std::string json, event_log, replay;

  // False when --help was asked for and is printed. Throws UsageError.
  bool Parse(const Words& words);

  // What was chosen, under the names of the flags; of the workload only what was given.
  Json::Object Chosen() const;
  // Each throws ConfigError.
  simulation::Workload MakeWorkload() const;
  simulation::Slo MakeSlo() const;
  Json::Object SloLimits() const;  // in milliseconds, those that are set

 private:
  void AddStepTimes(Flags& flags);
  void AddWorkload(Flags& flags);
  void AddEngine(Flags& flags);
  void AddOutput(Flags& flags);
};

}  // namespace runtime::bench
