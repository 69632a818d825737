// Times of the scheduler alone: no model, no device, no binding, made-up tokens. Each is a median,
// in microseconds. runtime/bench/scheduler.py measures the same through the Python binding.
#pragma once

#include <cstdint>
#include <functional>

namespace runtime::bench {

// Called now and then while something is measured.
using Tick = std::function<void()>;

struct DecodeTimes {
  double schedule_us = 0.0, update_us = 0.0;
  double scheduler_us = 0.0;  // both, of one step
  double p99_us = 0.0;        // likewise; the 99th percentile
};

// Steps in which `batch` requests decode and nothing else happens.
DecodeTimes TimeDecodes(std::int32_t batch, std::int32_t num_steps, const Tick& tick = {});

// One admission decision beside `batch` running decodes: what Schedule takes longer while a request
// waits that fits now but not at the predicted peak. The predictions come from a history of 2048
// finished outputs.
double TimeAdmission(std::int32_t batch, const Tick& tick = {});

// From Submit to the plan of a prompt whose full blocks but the last are all cached.
double TimePrefixHit(std::int32_t prompt_len, const Tick& tick = {});

}  // namespace runtime::bench
