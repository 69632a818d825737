// The ranks of one host: rank 0 is the process that starts the others, watches them and tells them
// what to do. One process per rank; no network, no name in any file system.
//
// A rank is lost when its process ends, or when it says why it cannot go on. The first such event
// is the group's failure: it is kept, everybody who waits is woken, and all other ranks are killed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace runtime {

struct LaunchOptions {
  // Program and arguments of every rank but 0; the program is a path. It builds a RankLink.
  std::vector<std::string> argv;
  int num_ranks = 2;  // rank 0 included; at most 64
  // NAME=VALUE, in place of the caller's variable of that name.
  std::vector<std::string> environment;
  // Ranks that say nothing for so long while they start have failed: a process that is stopped, or
  // was never scheduled.
  double start_silence_s = 60.0;
  std::size_t ring_bytes = std::size_t{1} << 20;
};

// Why the group cannot go on. `what` is a sentence without a full stop that names the rank.
struct RankFailure {
  int rank = 0;
  std::string what;
  // As the rank reported them: the type of its exception, its text, what to do. Empty for a process
  // that ended without a word.
  std::string type, cause, hint;
  std::string phase;
};

// One rank as rank 0 sees it now.
struct RankState {
  int rank = 0;
  std::int64_t pid = 0;
  std::string phase;             // what it does: "while loading the model", "in step 12"
  std::int32_t begun_step = -1;  // the last step that it read, -1: none
  std::int32_t done_step = -1;   // the last step that it ended, -1: none
  double silent_s = 0.0;         // since its process last ran
  std::uint32_t num_calls = 0;   // of collectives, as RankLink::ShowCalls said last
};

// Rank 0's side. Every method may be called from any thread, but Publish from one thread only.
class Launcher {
 public:
  // Starts the processes and returns at once. Throws ConfigError, CapacityError.
  explicit Launcher(LaunchOptions options);
  // Stop(0).
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  int num_ranks() const;

  // Sends bytes to one rank, whose RankLink::Receive returns them. Throws EngineDead.
  void Send(int rank, std::string_view bytes);

  // Gives this rank's bytes to all and returns everybody's, in rank order, once every rank has
  // called RankLink::Exchange. Throws EngineDead if a rank is lost before.
  std::vector<std::string> Exchange(std::string_view bytes);

  // Whether Publish would not have to wait for a rank to read earlier plans.
  bool HasRoom(std::span<const std::int32_t> plan) const;

  // Gives a StepPlan to every rank, in order. Throws EngineDead if a rank is lost or reads nothing
  // for `timeout_s`.
  void Publish(std::span<const std::int32_t> plan, double timeout_s);

  std::optional<RankFailure> failure() const;

  // The failure, or nullopt after `timeout_s` or once the group is being stopped.
  std::optional<RankFailure> WaitForFailure(double timeout_s) const;

  // Rank 0's own finding about a rank; counts if it is the first one.
  void Fail(RankFailure failure);

  // Of ranks 1..num_ranks - 1.
  std::vector<RankState> ranks() const;

  // Asks the ranks to end, waits up to `grace_s`, kills those that are left and waits for them.
  // Idempotent.
  void Stop(double grace_s);

 private:
  class Group;
  std::unique_ptr<Group> group_;
};

}  // namespace runtime
