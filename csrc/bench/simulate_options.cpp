#include "bench/simulate_options.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "bench/output.h"
#include "runtime/error.h"

namespace runtime::bench {
namespace {

using simulation::kInfinity;

constexpr std::array<std::string_view, 11> kPythonFlags{"--scenario",
                                                        "--trace",
                                                        "--calibrate",
                                                        "--calibrate-on",
                                                        "--repeated-tile-share",
                                                        "--save-calibration",
                                                        "--csv",
                                                        "--find-capacity",
                                                        "--slo-share",
                                                        "--plot",
                                                        "--append"};

Json JsonOf(double value) { return value == kInfinity ? Json("inf") : Json(value); }
Json JsonOf(std::int32_t value) { return Json(value); }
Json JsonOf(std::int64_t value) { return Json(value); }

template <typename T>
void AddGiven(Json::Object& chosen, const char* name, const std::optional<T>& value) {
  if (value) chosen.emplace_back(name, JsonOf(*value));
}

template <typename T>
void Change(T& target, const std::optional<T>& value) {
  if (value) target = *value;
}

}  // namespace

bool NeedsPython(const Words& words) {
  return std::ranges::any_of(words, [](const std::string& word) {
    return std::ranges::count(kPythonFlags, std::string_view(word).substr(0, word.find('='))) > 0;
  });
}

bool SimulateOptions::Parse(const Words& words) {
  std::string python_flags;
  for (const std::string_view flag : kPythonFlags) python_flags += " " + std::string(flag);
  Flags flags("runtime-bench simulate",
              "Serves made-up requests in virtual time: the compiled scheduler on a modelled "
              "device. With\nthe Python package as well, by `runtime simulate`:" +
                  python_flags);
  AddStepTimes(flags);
  AddWorkload(flags);
  AddEngine(flags);
  AddOutput(flags);
  return flags.Parse(words);
}

void SimulateOptions::AddStepTimes(Flags& flags) {
  flags.Value("config", "DIR", "folder with config.json: a roofline of this model", config);
  flags.Value("calibration", "FILE", "or a calibration file", calibration);
  flags.Value("tp", "N", "devices that share the model", tp);
  device.AddTo(flags);
}

void SimulateOptions::AddWorkload(Flags& flags) {
  flags.Value("workload", "NAME", "see docs/simulation.md", workload);
  flags.Value("rate", "R", "requests a second; inf: all at once", rate);
  flags.Value("cv", "X", "coefficient of variation of the gaps between arrivals", cv);
  flags.Value("num-requests", "N", "requests in all, 1000 if not said", num_requests);
  flags.Value("concurrency", "N", "closed loop: requests alive at any time", concurrency);
  flags.Value("queue-depth", "N", "closed loop: requests waiting at any time", queue_depth);
  flags.Value("max-tokens", "N", "what each request asks for; 0: up to the model's length",
              max_tokens);
  flags.Value("num-trees", "N", "trees of shared prefixes", num_trees);
  flags.Value("branching", "N", "children of each node of a prefix tree", branching);
  flags.Value("depth", "N", "levels of a prefix tree", depth);
  flags.Value("segment-len", "N", "tokens of each level", segment_len);
  flags.Value("prompt-share", "X", "share of each prompt that is shared prefix, instead",
              prompt_share);
  flags.Value("seed", "N", "the same seed draws the same requests", seed);
}

void SimulateOptions::AddEngine(Flags& flags) {
  flags.Value("max-num-seqs", "N", "requests in one step", max_num_seqs);
  flags.Value("max-num-batched-tokens", "N", "tokens in one step", max_num_batched_tokens);
  flags.Value("block-size", "N", "tokens of a KV block", block_size);
  flags.Value("max-model-len", "N", "tokens of a request", max_model_len);
  flags.Value("kv-tokens", "N", "tokens that the KV pool of a replica holds", kv_tokens);
  flags.Value("num-blocks", "N", "the same in blocks", num_blocks);
  flags.Value("cpu-kv-tokens", "N", "tokens that its CPU tier holds; 0: none", cpu_kv_tokens);
  flags.Value("cpu-bandwidth", "R", "bytes a second to and from the tier", cpu_bandwidth);
  flags.Value("num-steps-in-flight", "N", "2 plans a step while one runs", num_steps_in_flight);
  flags.Switch("enable-prefix-caching", "find cached prefixes; the default", enable_prefix_caching,
               true);
  flags.Value("eviction", "NAME", "lru or cost: which cached block goes first", eviction);
  flags.Value("policy", "NAME", "fcfs, priority or fair: who goes first", policy);
  flags.Value("admission", "NAME", "past_future, max_tokens, none or oracle", admission);
  flags.Value("admission-reserve", "SHARE", "of the blocks that a predicted peak leaves free",
              admission_reserve);
  flags.Value("target-itl-ms", "MS", "prompt chunks keep steps that decode below it",
              target_itl_ms);
  flags.Value("num-replicas", "N", "of a fleet", num_replicas);
  flags.Value("router", "NAME", "round_robin, least_work or prefix_aware", router);
  flags.Value("report-interval-s", "S", "after which the router learns what ended",
              report_interval_s);
  flags.Value("num-threads", "N", "that simulate a fleet", num_threads);
}

void SimulateOptions::AddOutput(Flags& flags) {
  flags.Value("slo-ttft-ms", "MS", "most to the first token", slo_ttft_ms);
  flags.Value("slo-tpot-ms", "MS", "most for each further token", slo_tpot_ms);
  flags.Value("slo-e2e-ms", "MS", "most in all", slo_e2e_ms);
  flags.Value("slo-gap-ms", "MS", "most between two tokens", slo_gap_ms);
  flags.Value("json", "FILE", "figures as one JSON object; -: standard output", json);
  flags.Value("event-log", "FILE", "record events and decisions, for --replay", event_log);
  flags.Value("replay", "FILE", "compare the decisions of an event log; nothing else is used",
              replay);
}

Json::Object SimulateOptions::Chosen() const {
  Json::Object chosen{{"max_num_seqs", Json(max_num_seqs)},
                      {"max_num_batched_tokens", Json(max_num_batched_tokens)},
                      {"max_model_len", Json(max_model_len)},
                      {"policy", Json(policy)},
                      {"admission", Json(admission)}};
  AddGiven(chosen, "admission_reserve", admission_reserve);
  chosen.emplace_back("target_itl_ms", Json(target_itl_ms));
  chosen.emplace_back("eviction", Json(eviction));
  chosen.emplace_back("cpu_kv_tokens", Json(cpu_kv_tokens));
  chosen.emplace_back("num_replicas", Json(num_replicas));
  chosen.emplace_back("router", Json(router));
  AddGiven(chosen, "rate", rate);
  AddGiven(chosen, "cv", cv);
  AddGiven(chosen, "num_requests", num_requests);
  AddGiven(chosen, "concurrency", concurrency);
  AddGiven(chosen, "queue_depth", queue_depth);
  AddGiven(chosen, "max_tokens", max_tokens);
  AddGiven(chosen, "num_trees", num_trees);
  AddGiven(chosen, "branching", branching);
  AddGiven(chosen, "depth", depth);
  AddGiven(chosen, "segment_len", segment_len);
  AddGiven(chosen, "prompt_share", prompt_share);
  AddGiven(chosen, "seed", seed);
  return chosen;
}

simulation::Workload SimulateOptions::MakeWorkload() const {
  auto [name, made, has_rate] = simulation::FindWorkload(workload);
  const bool is_closed = concurrency.value_or(0) != 0 || queue_depth.value_or(0) != 0;
  if (is_closed && rate) {
    throw ConfigError(std::string("--rate and ") +
                      (concurrency.value_or(0) != 0 ? "--concurrency" : "--queue-depth") +
                      ": arrivals are an open loop or a closed one");
  }
  if (!is_closed && !has_rate && !rate) {
    throw ConfigError("workload " + name + " has no rate of its own",
                      "give --rate R, or --concurrency or --queue-depth for a closed loop");
  }
  Change(made.rate, rate);
  Change(made.cv, cv);
  Change(made.num_requests, num_requests);
  Change(made.concurrency, concurrency);
  Change(made.queue_depth, queue_depth);
  Change(made.max_tokens, max_tokens);
  Change(made.prefixes.num_trees, num_trees);
  Change(made.prefixes.branching, branching);
  Change(made.prefixes.depth, depth);
  Change(made.prefixes.segment_len, segment_len);
  Change(made.prefixes.prompt_share, prompt_share);
  Change(made.seed, seed);
  made.Validate();
  return made;
}

simulation::Slo SimulateOptions::MakeSlo() const {
  for (const auto& [name, value] : {std::pair{"ttft_ms", slo_ttft_ms},
                                    {"tpot_ms", slo_tpot_ms},
                                    {"e2e_ms", slo_e2e_ms},
                                    {"gap_ms", slo_gap_ms}}) {
    if (value > 0.0) continue;
    throw ConfigError(std::string("slo ") + name + "=" + Format("%g", value) +
                      ": must be above 0 milliseconds");
  }
  return {slo_ttft_ms / 1e3, slo_tpot_ms / 1e3, slo_e2e_ms / 1e3, slo_gap_ms / 1e3};
}

Json::Object SimulateOptions::SloLimits() const {
  Json::Object limits;
  for (const auto& [name, value] : {std::pair{"ttft_ms", slo_ttft_ms},
                                    {"tpot_ms", slo_tpot_ms},
                                    {"e2e_ms", slo_e2e_ms},
                                    {"gap_ms", slo_gap_ms}}) {
    if (value < kInfinity) limits.emplace_back(name, Json(value));
  }
  return limits;
}

}  // namespace runtime::bench
