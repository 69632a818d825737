#pragma once

#include <exception>

#include "common/check.h"

namespace runtime {

// Stands around a change of state. One that an exception ends halfway, memory that ran out above
// all, leaves a state that is lost: good for nothing but destruction.
class Change {
 public:
  explicit Change(bool& is_lost) : is_lost_(is_lost) {
    Require(!is_lost, "the scheduler failed in an earlier call: it can only be destroyed");
  }
  ~Change() { is_lost_ = std::uncaught_exceptions() > num_thrown_; }
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;

 private:
  bool& is_lost_;
  const int num_thrown_ = std::uncaught_exceptions();
};

}  // namespace runtime
