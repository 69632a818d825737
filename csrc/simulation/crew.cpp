#include "simulation/crew.h"

#include <utility>

namespace runtime::simulation {

Crew::Crew(std::int32_t num_threads, std::function<void(std::int32_t)> job)
    : job_(std::move(job)),
      thrown_(static_cast<std::size_t>(num_threads)),
      start_(num_threads),
      done_(num_threads) {
  for (std::int32_t i = 1; i < num_threads; ++i) {
    threads_.emplace_back([this, i] {
      for (;;) {
        start_.arrive_and_wait();
        if (is_over_) return;
        Work(i);
        done_.arrive_and_wait();
      }
    });
  }
}

Crew::~Crew() {
  is_over_ = true;
  start_.arrive_and_wait();
}

void Crew::Run() {
  start_.arrive_and_wait();
  Work(0);
  done_.arrive_and_wait();
  for (const std::exception_ptr& thrown : thrown_) {
    if (thrown) std::rethrow_exception(thrown);
  }
}

void Crew::Work(std::int32_t index) {
  try {
    job_(index);
  } catch (...) {
    thrown_[static_cast<std::size_t>(index)] = std::current_exception();
  }
}

}  // namespace runtime::simulation
