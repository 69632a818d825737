#pragma once

#include <cstdint>

#include "runtime/simulation.h"

namespace runtime::simulation {

// Turns the sums over time in `result` into shares; `queued_s` sums the time that requests waited.
void MakeShares(SimulationResult& result, double queued_s, std::int32_t num_replicas);

}  // namespace runtime::simulation
