#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <iterator>
#include <string>

#include "bench/commands.h"
#include "bench/output.h"
#include "bench/simulate_options.h"
#include "bench/step_time_file.h"
#include "bench/to_python.h"
#include "runtime/event_log.h"
#include "runtime/simulation.h"
#include "runtime/version.h"
#include "scheduler/setting_names.h"

namespace runtime::bench {
namespace {

using simulation::FleetConfig;
using simulation::Percentiles;
using simulation::ReplicaConfig;
using simulation::RouterKind;
using simulation::SimulationResult;

DeviceStepTimes StepTimesOf(const SimulateOptions& options) {
  const int num_sources = !options.config.empty() + !options.calibration.empty();
  if (num_sources != 1) {
    throw ConfigError(std::to_string(num_sources) + " sources of step times: exactly one is needed",
                      "give --config DIR, --calibration FILE or --calibrate FILE");
  }
  if (!options.calibration.empty()) return ReadCalibration(options.calibration);
  const NamedShape model = ReadModel(options.config);
  const Roofline limits(model.shape, options.device.Chosen().limits, {.tp = options.tp});
  return {.model = limits.StepTimes(options.max_num_seqs),
          .source = "roofline of " + model.name + ", tp " + std::to_string(options.tp),
          .kv_tokens = std::max<std::int64_t>(limits.KvTokens(), 0),
          .kv_bytes_per_token = limits.KvBytesPerToken()};
}

std::int64_t NumBlocks(const SimulateOptions& options, const DeviceStepTimes& times) {
  if (options.kv_tokens && options.num_blocks) {
    throw ConfigError("--kv-tokens and --num-blocks both size the KV pool: give one of them");
  }
  if (options.kv_tokens && *options.kv_tokens < options.block_size) {
    throw ConfigError("--kv-tokens " + std::to_string(*options.kv_tokens) + ": must be at least " +
                          std::to_string(options.block_size) + ", one KV block",
                      "--block-size makes blocks smaller");
  }
  if (options.num_blocks) return *options.num_blocks;
  if (!options.kv_tokens && !times.kv_tokens) {
    throw ConfigError("the size of the KV pool is not known", "give --kv-tokens or --num-blocks");
  }
  const std::int64_t tokens = options.kv_tokens ? *options.kv_tokens : *times.kv_tokens;
  return tokens / std::max(options.block_size, 1);
}

void AddTier(const SimulateOptions& options, const DeviceStepTimes& times,
             SchedulerConfig& config) {
  if (options.cpu_kv_tokens == 0) return;
  if (!times.kv_bytes_per_token) {
    throw ConfigError("cpu_kv_tokens: how many bytes a token's KV has is not known",
                      "kv_bytes_per_token in the calibration file says it");
  }
  if (options.cpu_kv_tokens < options.block_size) {
    throw ConfigError("cpu_kv_tokens=" + std::to_string(options.cpu_kv_tokens) +
                      ": must be 0 or at least a block of " + std::to_string(options.block_size));
  }
  if (!(options.cpu_bandwidth > 0.0)) {
    throw ConfigError("cpu_bandwidth=" + Format("%g", options.cpu_bandwidth) +
                      ": must be above 0 bytes a second");
  }
  config.num_host_blocks = options.cpu_kv_tokens / std::max(options.block_size, 1);
  config.transfer_block_s = *times.kv_bytes_per_token * options.block_size / options.cpu_bandwidth;
}

SchedulerConfig SchedulerOf(const SimulateOptions& options, const DeviceStepTimes& times) {
  SchedulerConfig config;
  config.max_num_seqs = options.max_num_seqs;
  config.max_num_batched_tokens = options.max_num_batched_tokens;
  config.block_size = options.block_size;
  config.max_model_len = options.max_model_len;
  config.vocab_size = 1 << 15;  // of no meaning: the simulator makes up its tokens
  config.enable_prefix_caching = options.enable_prefix_caching;
  config.num_steps_in_flight = options.num_steps_in_flight;
  config.policy = FromName<SchedulingPolicy>("policy", options.policy, kPolicies);
  config.admission = FromName<AdmissionMode>("admission", options.admission, kAdmissions);
  config.eviction = FromName<EvictionPolicy>("eviction", options.eviction, kEvictions);
  config.admission_reserve = options.admission_reserve.value_or(config.admission_reserve);
  config.recompute_token_s = times.model.RecomputeTokenSeconds();
  config.recompute_context_s = times.model.RecomputeContextSeconds();
  config.target_itl_ms = options.target_itl_ms;
  if (options.target_itl_ms != 0.0) config.step_time = times.model;
  AddTier(options, times, config);
  config.Validate();
  return config;
}

FleetConfig FleetOf(const SimulateOptions& options, const DeviceStepTimes& times) {
  const std::int64_t num_blocks = NumBlocks(options, times);
  if (num_blocks > INT32_MAX) {
    throw ConfigError("num_blocks=" + std::to_string(num_blocks) + ": must be at most " +
                          std::to_string(INT32_MAX),
                      "--kv-tokens and --block-size say how many there are");
  }
  FleetConfig fleet{.replica = {SchedulerOf(options, times), static_cast<std::int32_t>(num_blocks),
                                times.model, options.event_log},
                    .num_replicas = options.num_replicas,
                    .router = FromName<RouterKind>("router", options.router, kRouters),
                    .report_interval_s = options.report_interval_s,
                    .num_threads = options.num_threads};
  fleet.replica.Validate();
  return fleet;
}

Json ToJson(const Percentiles& p, double scale) {
  return Json(Json::Object{{"mean", Json(p.mean * scale)},
                           {"p50", Json(p.p50 * scale)},
                           {"p90", Json(p.p90 * scale)},
                           {"p99", Json(p.p99 * scale)}});
}

void AddSummary(const SimulateOptions& options, const SimulationResult& result,
                Json::Object& figures) {
  constexpr double kMs = 1e3;
  const simulation::Summary s = Summarize(result, options.MakeSlo());
  figures.emplace_back("requests_done", Json(s.num_done));
  figures.emplace_back("ttft_ms", ToJson(s.ttft_s, kMs));
  figures.emplace_back("tpot_ms", ToJson(s.tpot_s, kMs));
  figures.emplace_back("e2e_ms", ToJson(s.e2e_s, kMs));
  figures.emplace_back("max_gap_ms", ToJson(s.max_gap_s, kMs));
  figures.emplace_back("requests_per_s", Json(s.requests_per_s));
  figures.emplace_back("output_tok_s", Json(s.output_tokens_per_s));
  figures.emplace_back("total_tok_s", Json(s.total_tokens_per_s));
  figures.emplace_back("goodput_per_s", Json(s.goodput_per_s));
  figures.emplace_back("slo_share", Json(s.slo_share));
  figures.emplace_back("prefix_hit_share", Json(s.cached_share));
  figures.emplace_back("slo", Json(options.SloLimits()));
}

void AddTotals(const SimulationResult& result, Json::Object& figures) {
  const SchedulerStats& totals = result.totals;
  const auto computed = static_cast<double>(std::max<std::int64_t>(result.num_scheduled_tokens, 1));
  const auto smooth = std::ranges::count_if(result.requests, [](const auto& request) {
    return request.is_done == 1 && request.max_gap_s <= 1.0f;
  });
  figures.emplace_back("goodput_without_1s_gap_per_s",
                       Json(static_cast<double>(smooth) / std::max(result.duration_s, 1e-9)));
  figures.emplace_back("duration_s", Json(result.duration_s));
  figures.emplace_back("busy_share", Json(result.busy_share));
  figures.emplace_back("kv_held_share", Json(result.held_share));
  figures.emplace_back("kv_held_share_queued", Json(result.held_share_queued));
  figures.emplace_back("kv_cached_share", Json(result.cached_share));
  figures.emplace_back("preemptions", Json(totals.num_preemptions));
  figures.emplace_back("swaps", Json(totals.num_swaps));
  figures.emplace_back("evicted_blocks", Json(totals.num_evictions));
  figures.emplace_back("stored_blocks", Json(totals.num_stored_blocks));
  figures.emplace_back("loaded_blocks", Json(totals.num_loaded_blocks));
  figures.emplace_back("computed_tokens", Json(result.num_scheduled_tokens));
  figures.emplace_back("recomputed_tokens", Json(totals.num_recomputed_tokens));
  figures.emplace_back("recomputed_share",
                       Json(static_cast<double>(totals.num_recomputed_tokens) / computed));
  figures.emplace_back("wasted_tokens", Json(result.num_wasted_tokens));
  figures.emplace_back("steps", Json(totals.num_steps));
}

std::string TextOf(const Json& value) {
  if (value.string() != nullptr) return *value.string();
  if (value.object() == nullptr) {
    const bool is_real = value.integer() == nullptr && value.number();
    return is_real ? Format("%.4g", *value.number()) : value.Shown();
  }
  std::string text;
  for (const auto& [name, item] : *value.object()) {
    text += (text.empty() ? "" : "  ") + name + " " + TextOf(item);
  }
  return text.empty() ? "none" : text;
}

void Write(const SimulateOptions& options, const Json::Object& figures) {
  const std::string line = Json(figures).Shown(std::string::npos) + "\n";
  if (options.json == "-") return Print(line);
  std::size_t width = 0;
  for (const auto& [name, value] : figures) width = std::max(width, name.size());
  for (const auto& [name, value] : figures) {
    Print(name + std::string(width - name.size() + 2, ' ') + TextOf(value) + "\n");
  }
  if (!options.json.empty()) WriteFile(line, options.json);
}

std::string HashText(const std::optional<std::uint64_t>& hash) {
  if (!hash) return "no step";
  char digits[32];
  std::snprintf(digits, sizeof(digits), "decision %016" PRIx64, *hash);
  return digits;
}

int ReplayLog(const SimulateOptions& options) {
  ReplayReport report;
  {
    Progress progress("replaying");
    report = Replay(options.replay, [&progress] { progress.Update(); });
  }
  const bool is_same = !report.difference && report.damage.empty();
  Write(options, {{"steps", Json(report.num_steps)},
                  {"requests", Json(report.num_requests)},
                  {"seconds", Json(report.seconds)},
                  {"recorded_by", Json(report.runtime_version)},
                  {"replayed_by", Json(std::string_view(Version()))},
                  {"same", Json(is_same)}});
  std::string problem = report.damage;
  if (const auto& at = report.difference) {
    problem = options.replay + ": step " + std::to_string(at->step) + " differs: the log has " +
              HashText(at->expected) + ", the replay " + HashText(at->found);
  }
  if (!is_same) std::fputs(("runtime-bench: " + problem + "\n").c_str(), stderr);
  return is_same ? 0 : kExitFound;
}

// What the simulation itself took.
class Cost {
 public:
  void AddTo(Json::Object& figures, std::int64_t num_steps) const {
    const std::chrono::duration<double> wall = Clock::now() - start_;
    const double cpu_s = CpuSeconds() - cpu_start_;
    figures.emplace_back("wall_s", Json(wall.count()));
    figures.emplace_back("cpu_s", Json(cpu_s));
    figures.emplace_back("steps_per_cpu_s",
                         Json(static_cast<double>(num_steps) / std::max(cpu_s, 1e-9)));
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

  Clock::time_point start_ = Clock::now();
  double cpu_start_ = CpuSeconds();
};

SimulationResult Simulated(const SimulateOptions& options, const FleetConfig& fleet) {
  const simulation::Workload workload = options.MakeWorkload();
  Progress progress("simulating");
  const simulation::Heartbeat heartbeat = [&progress] { progress.Update(); };
  if (options.num_replicas == 1) return Simulate(fleet.replica, workload, heartbeat);
  fleet.Validate();
  return SimulateFleet(fleet, workload, heartbeat);
}

void SimulateAndWrite(const SimulateOptions& options) {
  options.MakeSlo();  // refused before anything runs
  const DeviceStepTimes times = StepTimesOf(options);
  const FleetConfig fleet = FleetOf(options, times);
  const Cost cost;
  const SimulationResult result = Simulated(options, fleet);
  Json::Object measured;
  cost.AddTo(measured, result.totals.num_steps);
  Json::Object figures{{"engine", Json("simulated")},
                       {"scenario", Json(options.workload)},
                       {"step_times", Json(times.source)}};
  std::ranges::move(options.Chosen(), std::back_inserter(figures));
  AddSummary(options, result, figures);
  AddTotals(result, figures);
  std::ranges::move(measured, std::back_inserter(figures));
  Write(options, figures);
}

[[noreturn]] void SimulateInPython(const Words& words) {
  Words all{"simulate"};
  all.insert(all.end(), words.begin(), words.end());
  RunInPython(all);
}

}  // namespace

int RunSimulate(const Words& words) {
  if (NeedsPython(words)) SimulateInPython(words);
  SimulateOptions options;
  if (!options.Parse(words)) return 0;
  if (!options.replay.empty()) return ReplayLog(options);
  SimulateAndWrite(options);
  return 0;
}

}  // namespace runtime::bench
