#pragma once

#include <barrier>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace runtime::simulation {

// Threads that do the same job side by side, each on its own share of the data, and then wait for
// each other. The caller is one of them.
class Crew {
 public:
  // job(i) is called with i in [0, num_threads).
  Crew(std::int32_t num_threads, std::function<void(std::int32_t)> job);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Does the job once. Rethrows what a thread threw, the first thread's first.
  void Run();

 private:
  void Work(std::int32_t index);

  const std::function<void(std::int32_t)> job_;
  std::vector<std::exception_ptr> thrown_;
  std::barrier<> start_;
  std::barrier<> done_;
  bool is_over_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace runtime::simulation
