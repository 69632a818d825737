// The other end of a Launcher: what the process of a rank above 0 says and hears.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace runtime {

// A thread of its own shows rank 0 that this process runs, and ends the process at once when rank 0
// is gone, however that came about: then the socket between them reaches its end. Methods are for
// one thread, but SetPhase and Fail for any.
class RankLink {
 public:
  // Takes over the descriptors that the launcher left. Throws ConfigError in a process that it did
  // not start.
  RankLink();
  ~RankLink();
  RankLink(const RankLink&) = delete;
  RankLink& operator=(const RankLink&) = delete;

  int rank() const;
  int num_ranks() const;

  // The next bytes that rank 0 sent. Waits.
  std::string Receive();

  // What this rank does now, as it follows "rank 1 was killed": "while loading the model".
  void SetPhase(std::string_view phase);

  // As Launcher::Exchange. Waits.
  std::vector<std::string> Exchange(std::string_view bytes);

  // This rank cannot go on; the process should end. `is_echo`: because of another rank, so that
  // rank 0 waits a moment for that one's own account.
  void Fail(std::string_view type, std::string_view cause, std::string_view hint, bool is_echo);

  // Waits for the next StepPlan, writes it to `buffer` and returns its step; nullopt: the group
  // ends. Throws EngineDead for a plan that is not the next one or not the one that rank 0 wrote.
  std::optional<std::int32_t> ReadPlan(std::span<std::int32_t> buffer);

  // The step has been run.
  void FinishStep(std::int32_t step);

  // How many collectives this rank has called so far: all ranks must have made the same calls, and
  // where they wait for each other for ever, rank 0 sees who has not.
  void ShowCalls(std::uint32_t num_calls);

 private:
  class End;
  std::unique_ptr<End> end_;
};

}  // namespace runtime
