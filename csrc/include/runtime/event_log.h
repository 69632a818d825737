#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace runtime {

// What the replay of an event log showed.
struct ReplayReport {
  // Where it decided something else. A hash is missing where no step was planned.
  struct Difference {
    std::int64_t step = 0;
    std::optional<std::uint64_t> expected, found;
  };

  std::int64_t num_steps = 0;  // decided as recorded
  std::int64_t num_requests = 0;
  double seconds = 0.0;         // that the scheduler's clock passed
  std::string runtime_version;  // that recorded it
  std::optional<Difference> difference;
  std::string damage;  // why the log could not be read on, with the byte; empty: it was whole
};

// Feeds the events of a log (Scheduler::Record) to a new scheduler and compares its decisions with
// those recorded, up to the first that differs. A damaged log is replayed up to there.
// `heartbeat` is called now and then and may throw.
//
// Throws ConfigError: the file cannot be read, is no event log, or is one of another version.
ReplayReport Replay(const std::string& path, const std::function<void()>& heartbeat = {});

}  // namespace runtime
