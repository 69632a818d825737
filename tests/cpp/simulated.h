#pragma once

#include <string>

#include "runtime/error.h"
#include "runtime/simulation.h"

namespace runtime::testing {

// Every step takes a millisecond.
inline simulation::ReplicaConfig MillisecondReplica(std::int32_t num_blocks = 256) {
  simulation::ReplicaConfig config;
  config.scheduler.max_num_seqs = 16;
  config.scheduler.max_num_batched_tokens = 256;
  config.scheduler.max_model_len = 2048;
  config.scheduler.admission = AdmissionMode::kNone;
  config.num_blocks = num_blocks;
  config.step_time.buckets = {{.num_tokens = 1, .launch_s = 0.001}};
  return config;
}

inline simulation::SimulatedRequest RequestAt(double arrival_s, std::int32_t prompt_len,
                                              std::int32_t output_len) {
  simulation::SimulatedRequest request;
  request.arrival_ns = static_cast<std::int64_t>(arrival_s * simulation::kNanoseconds);
  request.prompt_len = prompt_len;
  request.output_len = output_len;
  return request;
}

inline simulation::Workload FixedWorkload(double prompt_len, double output_len,
                                          std::int64_t num_requests) {
  simulation::Workload workload;
  workload.prompt.a = prompt_len;
  workload.output.a = output_len;
  workload.num_requests = num_requests;
  return workload;
}

// The sentence that `call` is refused with; "" if it is not.
template <typename Call>
std::string Refusal(Call call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

}  // namespace runtime::testing
