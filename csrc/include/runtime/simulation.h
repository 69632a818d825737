// The scheduler under a virtual clock: the compiled code that serves, driven by made-up requests
// and by a model of step time instead of a device.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/scheduler.h"
#include "runtime/scheduler_config.h"
#include "runtime/step_time.h"

namespace runtime::simulation {

inline constexpr std::int64_t kNanoseconds = 1'000'000'000;  // of a second
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ---- workloads

// A request before it is served. Its prompt is never stored: prompts with equal prefix_id have
// equal ids in their first prefix_len tokens, everything else differs.
struct SimulatedRequest {
  std::int64_t arrival_ns = 0;
  std::int64_t prefix_id = -1;  // -1: shares nothing
  std::int32_t prefix_len = 0;
  std::int32_t prompt_len = 0;
  std::int32_t output_len = 0;  // true length, the eos token included
  std::int32_t max_tokens = 0;  // what the request asks for; 0: up to the model's length
  std::int32_t tenant = 0;
  std::int32_t priority = 0;
};

// A distribution of lengths in tokens, at least 1.
struct Lengths {
  enum class Kind { kFixed, kUniform, kLognormal, kExponential };
  Kind kind = Kind::kFixed;
  double a = 1.0;  // the length; the least one; mu; the mean
  double b = 0.0;  // -; the largest one; sigma; -

  // Throws ConfigError; `name` says whose lengths.
  void Validate(const char* name) const;
  double mean() const;
  bool is_bounded() const { return kind == Kind::kFixed || kind == Kind::kUniform; }
  double largest() const { return kind == Kind::kUniform ? b : a; }  // REQUIRES: is_bounded()
};

// A forest of shared prefixes. Each tree has `depth` levels of `segment_len` tokens, and every node
// `branching` children; a prompt starts with the path to a random leaf, its own tokens follow. With
// `prompt_share` the depth is 1 and the prefix is this share of the prompt instead.
struct SharedPrefixes {
  std::int32_t num_trees = 0;  // 0: none
  std::int32_t branching = 1;
  std::int32_t depth = 1;
  std::int32_t segment_len = 0;
  double prompt_share = 0.0;
  double request_share = 1.0;  // of requests that have a prefix
};

struct Workload {
  Lengths prompt, output;
  SharedPrefixes prefixes;
  std::int64_t num_requests = 1000;
  std::int64_t seed = 0;
  std::int32_t max_tokens = 0;  // of every request; 0: up to the model's length

  // Open loop: gaps between arrivals are gamma with this mean rate and coefficient of variation (1:
  // Poisson). Closed loop, when one of the other two is set: so many are alive, or so many wait.
  double rate = kInfinity;  // requests a second; infinity: all at once
  double cv = 1.0;
  std::int32_t concurrency = 0;
  std::int32_t queue_depth = 0;

  bool is_closed() const { return concurrency > 0 || queue_depth > 0; }
  // Throws ConfigError.
  void Validate() const;
};

// A workload whose parameters are published.
struct NamedWorkload {
  std::string name;
  Workload workload;      // its rate is infinite if it has none of its own
  bool has_rate = false;  // false: whoever uses it must say how requests arrive
};
// azure-conversation, azure-code, arxiv, mooncake, sharegpt and uniform.
std::span<const NamedWorkload> NamedWorkloads();
// One of them, or one described as fixed:IN,OUT or uniform:LEAST,LARGEST. Throws ConfigError.
NamedWorkload FindWorkload(const std::string& name);

// Yields requests in the order of their arrival.
class RequestSource {
 public:
  virtual ~RequestSource() = default;
  virtual std::optional<SimulatedRequest> Next() = 0;
  virtual std::int64_t num_requests() const = 0;
};

// The requests of a workload; a function of the workload and `max_len`, the tokens that prompt and
// output may have together. Unbounded distributions are cut there; throws ConfigError if others
// reach beyond, or if their mean does.
std::unique_ptr<RequestSource> MakeSource(const Workload& workload, std::int32_t max_len);
// Given requests. Throws ConfigError, naming the first one whose numbers are wrong.
std::unique_ptr<RequestSource> MakeSource(std::vector<SimulatedRequest> requests,
                                          std::int32_t max_len);

// ---- runs

struct ReplicaConfig {
  SchedulerConfig scheduler;  // vocab_size and eos_token_ids are the simulator's own
  std::int32_t num_blocks = 0;
  StepTimeModel step_time;
  std::string event_log = {};  // a file that Scheduler::Record writes; of one replica only

  // Tokens that a prompt and its output may have together.
  std::int32_t max_len() const;
  // Throws ConfigError.
  void Validate() const;
};

// Times count from the arrival.
struct RequestRecord {
  double arrival_s = 0.0;
  float ttft_s = 0.0f;
  float e2e_s = 0.0f;
  float max_gap_s = 0.0f;  // longest time between two of its tokens
  std::int32_t prompt_len = 0;
  std::int32_t output_len = 0;
  std::int32_t num_cached = 0;
  std::int32_t num_preemptions = 0;
  std::int32_t replica = 0;
  std::int32_t tenant = 0;
  std::int32_t is_done = 0;

  // NaN for an output of one token.
  double tpot_s() const;
};

struct TimelinePoint {
  double time_s = 0.0;
  std::int32_t num_running = 0;
  std::int32_t num_waiting = 0;
  std::int64_t num_held_blocks = 0;  // owned by requests
  std::int64_t num_cached_blocks = 0;
};

struct SimulationResult {
  std::vector<RequestRecord> requests;  // in the order of arrival
  std::vector<TimelinePoint> timeline;  // at most kMaxTimeline points, evenly thinned
  SchedulerStats totals;                // sums over replicas
  double duration_s = 0.0;              // until the last token
  std::int64_t num_scheduled_tokens = 0;
  std::int64_t num_wasted_tokens = 0;  // sampled for requests that had ended
  double busy_share = 0.0;             // of the replicas' time
  double held_share = 0.0;             // blocks owned by requests, mean over time
  double held_share_queued = 0.0;      // the same over the time while requests waited
  double cached_share = 0.0;           // cached blocks, owned or not, mean over time
  double step_seconds = 0.0;           // sum of step times

  static constexpr std::size_t kMaxTimeline = 4096;
};

// Called now and then by the thread that runs a simulation; may throw to end it.
using Heartbeat = std::function<void()>;

// One replica. A function of its arguments.
SimulationResult Simulate(const ReplicaConfig& config, const Workload& workload,
                          const Heartbeat& heartbeat = {});
SimulationResult Simulate(const ReplicaConfig& config, std::vector<SimulatedRequest> trace,
                          const Heartbeat& heartbeat = {});

enum class RouterKind { kRoundRobin, kLeastWork, kPrefixAware };

// Replicas behind a router. The router knows at once what it sent where; what has finished it
// learns from reports, `report_interval_s` apart. Between two reports replicas advance
// independently, on `num_threads` threads; the result does not depend on how many.
struct FleetConfig {
  ReplicaConfig replica;
  std::int32_t num_replicas = 1;
  RouterKind router = RouterKind::kLeastWork;
  double report_interval_s = 0.05;
  std::int32_t num_threads = 1;

  // Throws ConfigError.
  void Validate() const;
};

// Open-loop workloads only.
SimulationResult SimulateFleet(const FleetConfig& config, const Workload& workload,
                               const Heartbeat& heartbeat = {});
SimulationResult SimulateFleet(const FleetConfig& config, std::vector<SimulatedRequest> trace,
                               const Heartbeat& heartbeat = {});

// ---- figures

// Most seconds that a request may take.
struct Slo {
  double ttft_s = kInfinity;
  double tpot_s = kInfinity;
  double e2e_s = kInfinity;
  double gap_s = kInfinity;

  bool IsMet(const RequestRecord& request) const;
};

struct Percentiles {
  double mean = 0.0, p50 = 0.0, p90 = 0.0, p99 = 0.0;
};

struct Summary {
  std::int64_t num_done = 0;
  Percentiles ttft_s, tpot_s, e2e_s, max_gap_s;
  double requests_per_s = 0.0;
  double output_tokens_per_s = 0.0;
  double total_tokens_per_s = 0.0;
  double goodput_per_s = 0.0;  // requests a second that meet the SLO
  double slo_share = 0.0;      // of the requests
  double cached_share = 0.0;   // of prompt tokens
};

Summary Summarize(const SimulationResult& result, const Slo& slo);

}  // namespace runtime::simulation
