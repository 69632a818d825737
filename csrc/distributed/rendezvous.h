// Exchanges: every rank gives bytes and gets everybody's, in rank order. They are numbered by their
// order, so a rank may be one ahead.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace runtime {

// Where rank 0 collects what the others send. Thread-safe.
class Rendezvous {
 public:
  explicit Rendezvous(int num_ranks) : given_(static_cast<std::size_t>(num_ranks)) {}

  // Rank `rank` has given its part of its next exchange.
  void Add(int rank, std::string bytes);

  // Waits until every rank has given its part of the next exchange and takes them; empty once
  // `gives_up()`, which is asked at Add, at Wake and now and then.
  std::vector<std::string> Take(std::string own, const std::function<bool()>& gives_up);

  void Wake() { changed_.notify_all(); }

 private:
  bool IsComplete() const;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::deque<std::string>> given_;
};

}  // namespace runtime
