#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/step_time.h"

namespace runtime::bench {

// Step times of a model on a device, and what else is known of the two.
struct DeviceStepTimes {
  StepTimeModel model;
  std::string source;                     // where the figures come from, in words
  std::optional<std::int64_t> kv_tokens;  // that the KV pool holds
  std::optional<double> kv_bytes_per_token;
};

// A calibration file, which runtime.simulation.StepTimes.save writes. Throws ConfigError.
DeviceStepTimes ReadCalibration(const std::string& path);

}  // namespace runtime::bench
